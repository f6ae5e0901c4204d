# PYTHON chooses the interpreter of the new environment.
PYTHON ?= python3
BIN := .venv/bin
# One thread per process: with as many threads as cores in each, they would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4

.PHONY: help venv demo quick test slow faults docs lint

help: ## List what make can do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

venv: .venv/.installed ## Create .venv with the package, its tools and the tested versions of everything

.venv/.installed: setup.cfg pyproject.toml requirements/tested.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c requirements/tested.txt 'setuptools<82' wheel
	$(BIN)/pip install --disable-pip-version-check -q -c requirements/tested.txt --no-build-isolation -e '.[lite,dev]'
	touch $@

demo: venv ## Train, resume and evaluate a small model on generated images
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/demo.sh

quick: lint ## Lint and run the fastest tests (under 90 seconds)
	$(PYTEST) -m 'not slow' tests/models tests/datasets tests/engine tests/evaluation

test: lint ## Lint and run all tests but the slow ones (under 10 minutes on 2 cores)
	$(PYTEST) -m 'not slow'

slow: venv ## Run the slow tests, one after the other
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

faults: venv ## Inject the faults of docs/reliability.md (about an hour)
	set -e; for script in tests/faults/[a-z]*.py; do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script; done

docs: venv ## Build the pages of docs/ with the API reference into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: venv ## Check style, types, spelling and shell scripts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/shellcheck .ci/run $(wildcard tools/*.sh tools/*/*.sh)
