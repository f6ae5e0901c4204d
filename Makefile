# make demo | test | lint | venv. PYTHON chooses the interpreter of the new environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test lint

venv: .venv/.installed

.venv/.installed: setup.cfg pyproject.toml requirements/tested.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c requirements/tested.txt 'setuptools<82' wheel
	$(BIN)/pip install --disable-pip-version-check -q -c requirements/tested.txt --no-build-isolation -e '.[lite,dev]'
	touch $@

demo: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/demo.sh

# One thread per process: as many threads as cores in each would wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell
