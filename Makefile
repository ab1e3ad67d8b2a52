# `make run` and `make test` work on a fresh machine: each creates the environment first if it is not there.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
export PYTHONWARNINGS ?= ignore

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env run demo test nbtest pytest check lab report site readme lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

env: $(VENV)/.installed ## create .venv with the exact versions of requirements.lock
$(VENV)/.installed: requirements.lock settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 >/dev/null
	touch $@

run: env ## the main job: train and score image + metadata on the simulated cohort
	mkdir -p _runs
	$(BIN)/papermill nbs/03_multimodal.ipynb _runs/03_multimodal.ipynb -k python3 --log-output --no-progress-bar 2>&1 | grep -v -E "^(Input|Output) Notebook|^Executing|^Ending|IPKernelApp|^<|^$$"; exit $${PIPESTATUS[0]}

demo: env ## the page in a browser, on this machine only; ARGS='--run FOLDER' for a model of one's own
	$(BIN)/python app/app.py $(ARGS)

test: nbtest pytest ## all tests

nbtest: env ## every notebook, as a test
	OMP_NUM_THREADS=1 timeout 1500 $(BIN)/nbdev_test --n_workers $(WORKERS) --do_print --timing

pytest: env ## what a notebook cannot test
	$(BIN)/python -m pytest -q --durations=15 tests

check: env ## nothing is left to export or clean
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	git diff --exit-code -- nbs skincancer

lab: env ## open the notebooks
	$(BIN)/jupyter lab nbs

report: env ## run the chapters of report.yml into report/, write _variables.yml; real data in $SKINCANCER_DATA or data/
	$(BIN)/skincancer_report

site: report ## the book as a site in _site/, the paper as Word and PDF in _paper/; needs Quarto
	quarto render --to html
	quarto render index.qmd --profile paper

readme: env ## write the results table of the README from results/
	$(BIN)/skincancer_readme

lock: ## requirements.lock from settings.ini, in a fresh environment
	rm -rf _lock && $(PYTHON) -m venv _lock
	_lock/bin/pip install -q -e '.[dev]' && _lock/bin/pip check
	{ echo '# Made by `make lock` from settings.ini: every package, with its version.'; \
	  _lock/bin/pip freeze --all --exclude pip --exclude-editable | sed -E '/^(nvidia-|cuda-|triton)/ s/$$/ ; sys_platform == "linux"/'; } > requirements.lock
	rm -rf _lock

clean: ## remove environment, caches and runs
	rm -rf $(VENV) .cache _runs runs
