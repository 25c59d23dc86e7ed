# Two commands on a fresh machine: `make demo` and `make test`. They install everything in .venv next to this file.
.DEFAULT_GOAL := help
.PHONY: help demo test check coverage slow docs bench bench-long bench-peers clean
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
TEST_WORKERS ?= 2
# empty: the site has the notebooks without what they print
NOTEBOOKS ?= 1
DOC_RULES := DOC102,DOC202,DOC402,DOC403,DOC501
# pip would compile 28,000 modules; Python compiles those that run, a fifth, when they are first imported
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet -c constraints.txt
# Python keeps what it has compiled, even if the environment forbids it: else each process compiles again
export PYTHONDONTWRITEBYTECODE :=

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV), a few minutes the first time"
	$(PIP_INSTALL) -e '.[text,tune]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing with the tools of development into $(VENV), a few minutes the first time"
	$(PIP_INSTALL) -e '.[text,tune,dev]'
	@touch $(VENV)/installed $@

demo: $(VENV)/installed ## run the whole pipeline on generated data, with local Ray and a SQLite MLflow store
	$(BIN)/recsys run --config pipelines/configs/demo.yaml --run.dir $(DEMO_DIR)

test: $(VENV)/installed-dev ## run all fast tests
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed-dev ## run ruff, codespell and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select $(DOC_RULES) .
	$(BIN)/codespell
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(VENV)/installed-dev ## the same, a third slower, with the lines that no test runs; fails below 85 % of recsys
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing --cov-fail-under=85

slow: $(VENV)/installed-dev ## run the slow tests
	$(BIN)/python -m pytest -q -m "slow and not gpu and not cluster" --timeout 1800

docs: $(VENV)/installed-dev ## build the documents as a site in site/ and run every notebook; a broken link fails
	MULTIGRAIN_RUN_NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m mkdocs build -f docs/site/mkdocs.yml

bench-peers: ## install the peers of the benchmarks, each in its own environment
	for peer in rectools recbole; do $(PYTHON) -m venv .venv-$$peer; done
	.venv-rectools/bin/python -m pip install --quiet 'torch>=2.13,<2.14' 'rectools[torch]==0.19.0'
	.venv-recbole/bin/python -m pip install --quiet 'torch>=2.13,<2.14' recbole==1.2.1 'numpy<2' ray 'setuptools<80'

bench: $(VENV)/installed-dev ## run the short benchmarks and rewrite the table of docs/benchmarks.md; needs RECSYS_DATA
	$(BIN)/python -m benchmarks.suite short

bench-long: $(VENV)/installed-dev ## run the long benchmarks
	$(BIN)/python -m benchmarks.suite long

clean: ## remove the environment and the caches, keep runs and data
	rm -rf $(VENV) .venv-rectools .venv-recbole .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov build dist site *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
