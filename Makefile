# Everything that a person or CI runs. The targets make their own virtual environment, .venv, from any Python 3.11 or newer.
# Another interpreter: make test PYTHON=/usr/bin/python3.12

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell scripts/find-python)
VENV := .venv
BIN := $(VENV)/bin
# What `make demo`, `make test` and `make bench` hand on, such as ARGS="-k timers".
ARGS ?=
# Of what hypothesis draws in the tests; printed, so that a failure can be had again: make test SEED=...
SEED ?= $(shell echo $$RANDOM)
SEED := $(SEED)

.PHONY: help demo test check protos bench crash simulate clean

help:  ## this list
	@grep -hE '^[a-z]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{ printf "make %-8s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo  ## place real SIP calls through a sidecar on this machine and print each call's timeline
	@$(BIN)/sipnap demo $(ARGS)

test: $(VENV)/.test  ## run all tests: unit, integration, acceptance with real Kamailio, SIPp and Node (Debian packages)
	@scripts/system-packages
	@echo "hypothesis seed $(SEED)"
	@$(BIN)/python -m pytest --durations=15 --hypothesis-seed=$(SEED) $(ARGS)

check: $(VENV)/.dev  ## formatting, lint, types, import arrows, dependencies, protos, stubs, Dockerfile, shell scripts
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

protos: $(VENV)/.dev  ## regenerate the stubs in client/sipnap/v1 from protos/
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/generate-stubs client

bench: $(VENV)/.bench  ## side-by-side benchmarks against Kamailio's own async module
	@scripts/system-packages
	@$(BIN)/python -m bench $(ARGS)

crash: $(VENV)/.test  ## kill sidecars under load, 500 times over 100,000 suspensions, with SQLite and with Redis; count losses
	@scripts/system-packages
	@$(BIN)/python -m tests.crash --journal sqlite $(ARGS)
	@$(BIN)/python -m tests.crash --journal redis $(ARGS)
	@$(BIN)/python -m tests.crash --journal workers --kills 100 --suspensions 10000 --rate 80 $(ARGS)

simulate: $(VENV)/.test  ## run 10,000 seeds of the simulator: both sides under a virtual clock, with faults
	@$(BIN)/python -m tests.simulator --seeds 10000 --jobs 2 $(ARGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info examples/node/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@scripts/make-venv "$(PYTHON)" $(VENV)

$(VENV)/.demo: pyproject.toml $(VENV)/bin/python
	@scripts/install "$(BIN)/python" '.[sidecar,sip]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/bin/python
	@scripts/install "$(BIN)/python" '.[all,test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml $(VENV)/bin/python
	@scripts/install "$(BIN)/python" '.[all,test,bench]'
	@touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV)/.dev: pyproject.toml $(VENV)/bin/python
	@scripts/install "$(BIN)/python" '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.demo
