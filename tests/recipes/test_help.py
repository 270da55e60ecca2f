"""Help texts name the thing first."""

import re

from boxless import cli
from boxless.recipes.load import shipped
from boxless.recipes.overrides import keys

VAGUE = re.compile(r"(Of|What|That|Whether|How|Where|Which|Whose)\b")


def texts() -> dict[str, str]:
    """The help text of each flag of each command and of each key of each recipe, but for a method's fixed name."""
    entries = {f"boxless {name} --{key}": entry for name in cli.COMMANDS for key, entry in cli._own(name).items()}
    entries |= {f"{name}: {key}": entry for name, recipe in shipped().items() for key, entry in keys(recipe).items()}
    return {name: entry.help for name, entry in entries.items() if not re.search(r"\bmethod\.(\w+\.)?name$", name)}


def test_every_flag_and_key_has_a_help_text_that_begins_with_the_thing() -> None:
    assert not {name: text for name, text in texts().items() if not text or VAGUE.match(text)}
