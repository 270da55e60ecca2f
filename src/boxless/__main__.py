"""`python -m boxless`, which is what `torchrun -m boxless` starts."""

import sys

from boxless.cli import main

sys.exit(main())
