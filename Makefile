# Targets for users; `make help` lists them. Everything runs in a virtual environment of the repository.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro sweep stream study report test lint ui sync bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

repro: $(READY) ## run the main job, from raw data to artifacts/report.json; only what has changed runs
	dvc repro

sweep: $(READY) ## search the parameters of the search (params.yaml: sweep); goes on where it was interrupted
	dvc repro sweep/dvc.yaml

stream: $(READY) ## AutoEmb beside fixed dimensions along the rows in the order of time (params.yaml: stream)
	dvc repro stream/dvc.yaml

study: $(READY) ## one study: NAME=overall PROFILE=quick; cells that are done are not run again
	python -m stages.study run $(NAME) --profile $(or $(PROFILE),quick) $(if $(JOBS),--jobs $(JOBS)) $(if $(ONLY),--only $(ONLY))

report: $(READY) ## all studies' results in one page, studies/report.html
	python -m stages.study html

test: $(READY) ## run the tests
	pytest -q

lint: $(READY) ## style and types
	ruff check .
	mypy

ui: $(READY) ## open the MLflow UI on the results
	mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}

sync: $(READY) ## bring results that are not in MLflow yet, e.g. from DVC's cache, into it
	python -m stages.sync

bench: $(VENV)/.bench ## time everything beside other libraries; the tables go to benchmarks/results/
	python -m benchmarks

clean: ## remove results, caches and the virtual environment; data and source stay
	rm -rf $(VENV) artifacts .pipeline .dvc/cache .dvc/tmp mlflow.db mlartifacts studies/*/artifacts studies/*/.dvc studies/report.html

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer; name it: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	test -e .dvc/config || $(BIN)/dvc init --quiet $$(git rev-parse --git-dir >/dev/null 2>&1 || echo --no-scm)
	git rev-parse --git-dir >/dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	touch $@

$(VENV)/.bench: $(READY) requirements-bench.lock
	$(BIN)/pip install --quiet -r requirements-bench.lock
	touch $@
