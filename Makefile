PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: study test lint format bench docs tensorboard browser

study: $(INSTALLED)
	$(BIN)/python scripts/compare.py --out runs/quick quick

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

browser: # opens the report in a test
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends chromium; } || \
		{ echo "make test opens a page in Chromium and cannot install it: install the package 'chromium'"; exit 1; }

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)
	$(BIN)/python scripts/bench.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

tensorboard: $(INSTALLED)
	$(BIN)/tensorboard --logdir runs

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rlpre needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@
