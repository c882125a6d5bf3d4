# `make help` lists the targets. They run in the virtual environment .venv, which is created at first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SETTINGS = @python -m stages.settings $(PARAMS)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help describe repro compare sweep stream chain study report test fuzz faults lint ui sync bench docs clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

describe: $(READY) ## write the settings for a table of your own, e.g. FILE=data/clicks.csv, also with LABEL=clicked
	python -m stages.describe "$(FILE)" $(if $(LABEL),--label "$(LABEL)") $(if $(FORCE),--force)

repro: $(READY) ## run the main job, e.g. PARAMS=movielens_1m (a file of params/); unchanged stages are skipped
	$(SETTINGS)
	dvc repro

compare: $(READY) ## show what differs between the experiments of `dvc exp run`; ALL=1 also shows those of other commits
	@python -m stages.compare $(if $(ALL),--all)

sweep: $(READY) ## search the settings of the search (params.yaml: sweep); an interrupted sweep continues
	$(SETTINGS)
	dvc repro sweep/dvc.yaml

stream: $(READY) ## compare AutoEmb with fixed dimensions along the rows in the order of time (params.yaml: stream)
	$(SETTINGS)
	dvc repro stream/dvc.yaml

chain: $(READY) ## compare agents of two pages in simulated sessions (params.yaml: chain)
	$(SETTINGS)
	dvc repro chain/dvc.yaml

study: $(READY) ## run a study, e.g. NAME=overall PROFILE=quick JOBS=2 ONLY=dataset=synthetic; ON=ray://HOST:10001: on a cluster
	python -m stages.study run $(NAME) --profile $(or $(PROFILE),quick) $(if $(JOBS),--jobs $(JOBS)) $(if $(ON),--on $(ON)) $(if $(ONLY),--only $(ONLY))

report: $(READY) ## write the results of all studies to one page, studies/report.html
	python -m stages.study html

test: $(READY) ## run the tests
	OMP_NUM_THREADS=1 pytest -q --numprocesses=auto --dist=loadfile

fuzz: $(READY) ## damage every kind of file that is read, e.g. SEED=7 ONLY=csv,zip CASES=200; takes some minutes
	python -m tests.fuzz --seed $(or $(SEED),0) --cases $(or $(CASES),25) $(if $(ONLY),--only "$(ONLY)")

faults: $(READY) ## kill commands, fill disks, end servers and so on, e.g. SEED=7 KILLS=5 ONLY=kill-search,dvc; takes an hour or more
	python -m tests.faults --seed $(or $(SEED),0) --kills $(or $(KILLS),20) $(if $(ONLY),--only "$(ONLY)")

lint: $(READY) ## check style and types
	ruff check .
	mypy

ui: $(READY) ## show the results in MLflow; prints the address of the page
	python -m stages.ui

sync: $(READY) ## copy to MLflow the results that it does not have yet, e.g. those from DVC's cache
	python -m stages.sync

bench: $(VENV)/.bench ## time the project and other libraries; writes tables to benchmarks/results/
	python -m benchmarks

docs: $(VENV)/.docs ## build the site of the docs, build/site/index.html
	rm -rf build/pages build/site
	python docs/site/pages.py build/pages
	sphinx-build --quiet --fail-on-warning --keep-going -c docs/site build/pages build/site

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

$(VENV)/.docs: $(READY) requirements-docs.lock
	$(BIN)/pip install --quiet -r requirements-docs.lock
	touch $@

$(VENV)/.bench: $(READY) requirements-bench.lock
	$(BIN)/pip install --quiet -r requirements-bench.lock
	touch $@
