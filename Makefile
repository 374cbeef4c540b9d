# `make demo`, `make test` and `make dev` set everything up by themselves: Python 3.11 and make are all they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export DAGSTER_DISABLE_TELEMETRY := 1

.PHONY: demo test dev lint install clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## 120 sandbox markets from candles to rankings, offline
	MDMS_HOME=.mdms/demo MDMS_EXCHANGE_URL=sandbox MDMS_HISTORY=400 $(BIN)/mdms run

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -n 2

dev: $(READY)  ## Dagster UI and daemon; MDMS_EXCHANGE_URL=sandbox make dev works offline
	$(BIN)/mdms dev

lint: $(READY)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .mdms build *.egg-info
