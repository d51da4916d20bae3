# `run` and `test` do all the set-up by themselves and are quick when it is done. The middle three are for a team's
# retraining, of DATASET, and of VARIANTS where they are named; .github/workflows/retrain.yml calls them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
comma  := ,
TABLE  ?= diffrec-ml1m-clean
BIN    := $(VENV)/bin
# Spark is tried where there is a Java for it.
EXTRAS := dev$(comma)team$(if $(shell command -v java),$(comma)spark)

export DAGSTER_DISABLE_TELEMETRY := yes
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export OMP_WAIT_POLICY := PASSIVE
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# In the recipes these are the shell's and never make's own: make would run what stands in them.
export DATASET ?= sample
export VARIANTS ?=

.DEFAULT_GOAL := help
.PHONY: help run test ui team pull retrain lint types bench results screenshots clean

help:  ## show these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

run: $(VENV)/.run  ## set up, then take the sample log to a champion in the registry
	@test -f data/sample/interactions.csv || $(BIN)/noise2next datasets sample
	@$(BIN)/noise2next run --dataset sample

test: $(VENV)/.dev  ## set up, then run the whole test suite
	@$(BIN)/pytest -q --numprocesses logical --maxprocesses 4 --dist loadscope

ui: $(VENV)/.run  ## Dagster on localhost:3000 and MLflow on localhost:5000 over the same state; one Ctrl-C ends both
	@echo "Dagster: http://localhost:3000   MLflow: http://localhost:5000   Ctrl-C ends both"
	@$(BIN)/mlflow server --backend-store-uri "sqlite:///$(CURDIR)/mlflow.db" \
		--default-artifact-root "file://$(CURDIR)/mlartifacts" --workers 1 --uvicorn-opts "--log-level warning" & \
	mlflow=$$!; trap 'kill $$mlflow 2>/dev/null; wait $$mlflow' EXIT; trap : INT TERM; \
	env -u DAGSTER_HOME PYTHONWARNINGS=ignore $(BIN)/dagster dev --port 3000 --log-level warning

team: $(VENV)/.team  ## set up with what a team's servers need: S3 and PostgreSQL
	@:

pull: $(VENV)/.team  ## the logs, and what was made of DATASET before, from the DVC remote; without one, the sample log
	@set -e; if [ -z "$$($(BIN)/dvc config core.remote)" ]; then $(BIN)/noise2next datasets sample; exit; fi; \
	$(BIN)/dvc pull data.dvc; $(BIN)/dvc pull --allow-missing --with-deps "leaderboard@$$DATASET"

retrain: $(VENV)/.team  ## rerun of DATASET what has changed, then let the gate decide on the champion
	@set -e; PATH="$(CURDIR)/$(BIN):$$PATH"; \
	targets=$$(noise2next targets --dataset "$$DATASET" $${VARIANTS:+--variants "$$VARIANTS"}); \
	dvc repro $$targets; dvc repro --single-item "leaderboard@$$DATASET"; \
	noise2next register --dataset "$$DATASET"

lint: $(VENV)/.dev  ## style, import arrows, workflows
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec mlflow/compose.yaml
	@$(BIN)/zizmor --offline --quiet .github/workflows

types: $(VENV)/.dev  ## mypy, strict
	@$(BIN)/mypy

bench: $(VENV)/.dev  ## measure latency, scale, drift, speed, gate and serving again, write benchmarks/*.md and the README's figures
	@$(BIN)/python benchmarks/latency.py
	@$(BIN)/python benchmarks/scale.py
	@$(BIN)/python benchmarks/drift.py
	@-$(BIN)/python benchmarks/speed.py --whole
	@-$(BIN)/python benchmarks/speed_sequences.py
	@-$(BIN)/python benchmarks/speed_rows.py
	@-$(BIN)/python benchmarks/inference_steps.py
	@-$(BIN)/python benchmarks/kept_memory.py
	@$(BIN)/python benchmarks/gate.py
	@-$(BIN)/python benchmarks/serving.py
	@$(BIN)/python benchmarks/readme.py

results: $(VENV)/.dev  ## train a table of docs/results again (TABLE=..., an hour or more; goes on where it stopped)
	@$(BIN)/noise2next reproduce $(TABLE)
	@$(BIN)/python benchmarks/readme.py

screenshots: $(VENV)/.dev  ## materialise the sample in a browser and keep its pictures in docs/ (needs Chromium)
	@$(BIN)/pytest -q --slow --screenshots docs tests/test_browser.py

clean:  ## remove everything derived; data and the environment stay
	@rm -rf artifacts mlflow.db* mlartifacts .dagster .tmp_dagster_home_*

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "noise2next needs Python 3.11; name yours: make PYTHON=/path/to/python3.11 run" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV): a few minutes the first time"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "adding the tools for tests"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.team

$(VENV)/.team: $(VENV)/.run
	@echo "adding what a team's servers need"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[team]'
	@touch $@
