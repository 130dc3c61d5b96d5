# What a newcomer needs; `make help` lists it. Nothing is asked for but Python 3.11 or later (PYTHON=... chooses one).
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11) and "clinvk needs Python 3.11 or later")
PYTHON ?= $(or $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,\
  $(shell $(python) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $(python)))),python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
STAMP := .venv/.installed
CLIS := .clis/.installed

.DEFAULT_GOAL := help
.PHONY: help install clis sdks tools serve check test fix fuzz bench bench-warm soak soak-warm lock

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 10

install: $(STAMP)  ## set up .venv with everything the project needs

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	@echo "setting up .venv with $$($(PYTHON) --version): about a minute the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

clis:  ## install the pinned agent CLIs for the tests, from npm (left out where npm is missing)
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(CLIS); \
	elif [ -n "$$CLINVK_REQUIRE" ]; then echo "npm is missing, and CLINVK_REQUIRE is set" >&2; exit 1; \
	else echo "npm is missing: the tests on the real CLIs will be skipped"; fi

$(CLIS): tests/clis/package.json tests/clis/package-lock.json
	@echo "installing the agent CLIs into .clis"
	@mkdir -p .clis
	@cp tests/clis/package.json tests/clis/package-lock.json .clis/
	@cd .clis && npm ci --no-audit --no-fund --loglevel=error </dev/null
	@touch $@

sdks: install  ## install the pinned SDKs for the tests, from PyPI, npm and the Go proxy (left out where one is missing)
	@tests/system/sdks/install.sh

tools: install  ## install the linters of deploy/, and the images' own packages, into .tools
	@tests/deploy/install.sh

serve: install  ## everything on this machine, on http://127.0.0.1:8080
	$(BIN)/clinvk serve

check: install  ## format, lint, types, import rules, unit tests; under fifteen seconds
	@$(BIN)/python -m tests.check

test: install clis sdks tools  ## everything; says what it skipped and why
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests --hypothesis-profile=thorough

fix: install  ## format, mend what the linter can, renew the tables of docs/configuration.md
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .
	$(BIN)/python -m tests.rules.reference

fuzz: MINUTES ?= 5
fuzz: install  ## foreign bytes of every kind for MINUTES (5): cases, time and finds; a find is exit code 1
	$(BIN)/python -m tests.fuzz $(MINUTES)

bench: install  ## the budgets, each beside a direct start of the same stub CLI
	$(BIN)/python -m bench

bench-warm: install clis  ## each installed CLI by hand, cold and warm, against one instant mock
	$(BIN)/python -m bench.warm

soak: MINUTES ?= 30
soak: install  ## everything under load with faults for MINUTES=30; samples in .soak; nothing may be lost or leak
	$(BIN)/python -m bench.soak $(MINUTES)

RUNS ?= 500
soak-warm: install clis  ## RUNS=500 runs over warm CLIs with cancels, hang-ups, kills and restarts: each must end truly
	CLINVK_REQUIRE=1 CLINVK_TEST_WARM_RUNS=$(RUNS) $(BIN)/python -m pytest -q -s tests/system/test_warm_soak.py

lock: install  ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra embedded --extra otel --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate -q -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --constraint requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate -q -o deploy/requirements.lock
