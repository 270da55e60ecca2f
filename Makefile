# Each target sets up what it needs, in .venv, from nothing but Python 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv/.peers
OLDEST := .venv-oldest
PYTEST := pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-oldest lint docs bench startup fuzz chaos audit

demo: $(INSTALLED)
	$(BIN)/boxless demo

test: $(INSTALLED)
	$(BIN)/$(PYTEST)

# The same with the oldest version of everything that pyproject.toml allows, in an environment of its own.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages, in site/. MkDocs Material prints an advertisement for its successor unless told not to.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The libraries that boxless is measured against are needed here only.
bench: $(PEERS)
	$(BIN)/python benchmarks/bench.py

# A million links, and 2.5 GB of boxes for a while.
startup: $(INSTALLED)
	$(BIN)/python benchmarks/startup.py --boxes

# 30,000 broken and hostile inputs, ten minutes of a core.
fuzz: $(INSTALLED)
	$(BIN)/python tests/stress/fuzz.py

# Kills, full disks, vanished drives, power cuts: the table of docs/reliability.md. Twenty minutes of a core.
chaos: $(INSTALLED)
	$(BIN)/python tests/stress/chaos.py

# Known advisories about the pinned packages; asks osv.dev, and fails where it cannot be reached.
audit:
	$(PYTHON) tests/stress/audit.py

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("boxless needs Python 3.11 or newer, but $(PYTHON) is %d.%d: name another, as in make PYTHON=python3.12 test" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(OLDEST)/.installed: pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

$(PEERS): $(INSTALLED) benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r benchmarks/requirements.txt
	@touch $@
