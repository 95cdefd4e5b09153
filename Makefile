PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: study test lint format bench docs tensorboard browser qt

study: $(INSTALLED)
	$(BIN)/python scripts/compare.py --out runs/study study

test: lint browser qt
	$(BIN)/python -m pytest -n 2

browser: # opens the report in a test
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends chromium; } || \
		{ echo "make test opens a page in Chromium and cannot install it: install the package 'chromium'"; exit 1; }

qt: # draws Procgen's games; the rest works without
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libQt5Gui.so.5")' 2>/dev/null || { apt-get update -q && \
		{ apt-get install -yq --no-install-recommends libqt5core5a libqt5gui5 || \
		apt-get install -yq --no-install-recommends libqt5core5t64 libqt5gui5t64; }; } || \
		echo "make cannot install what Procgen's games need: install libqt5core5a and libqt5gui5 (or libqt5core5t64 and libqt5gui5t64)"

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) qt
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
