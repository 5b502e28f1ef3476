# Everything that a contributor runs. Needs make and Python 3.11 or newer; the servers come by themselves (tools/services).

PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,$(PYTHONS),$(shell $(python) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(python))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Scripts without a suffix have to be named.
LINTED := . tools/services
TYPED_TOOLS := tools/_services benchmarks tests/support tests/conftest.py

# What the last `make bench` measured, a line of JSON each.
FIGURES := $(VENV)/.figures.jsonl
# On the embedded log, those that end soon.
BRIEF_SHAPES := 'parallel 100' 'sequential 1000' 'events 200'

# More than an engine keeps in memory.
BACKLOG := 24000

# How many processes run the tests: many of them wait. Without it, as for a part of them: python -m pytest tests/engine
PROCESSES ?= 3
# Several hundred short programs are started by the tests; each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv check lint types test pythons demo bench bench-all services stop clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## .venv with the project and everything that its tests need

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || test "$$(id -u)" != 0 || \
		{ apt-get update && apt-get install -y --no-install-recommends python3-venv; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[mysql,msgspec,uvloop,encryption,offload]' --group dev
	@touch $@

lint: venv ## ruff: rules and format
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)

types: venv ## mypy
	$(BIN)/mypy
	$(BIN)/mypy $(TYPED_TOOLS)

check: lint types ## lint and types, no tests

test: venv ## lint, types and the whole test suite, on real servers
	$(MAKE) --no-print-directory --output-sync --jobs 3 lint types fetch
	$(MAKE) --no-print-directory --jobs 2 suite pythons

.PHONY: suite fetch
suite: venv
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup --reruns 1

fetch:
	-tools/services fetch

pythons: venv ## the core, the API and the embedded path on every other supported Python that is there
	tools/pythons

demo: venv ## see it work: examples/demo.py
	$(BIN)/python examples/demo.py

bench: venv ## how fast it is here, beside a program without an engine: about 5 minutes, and a table
	$(BIN)/python -m benchmarks.throughput > $(FIGURES)
	$(BIN)/python -m benchmarks.throughput --eager >> $(FIGURES)
	$(BIN)/python -m benchmarks.throughput --broker embedded --database sqlite >> $(FIGURES)
	$(BIN)/python -m benchmarks.latency >> $(FIGURES)
	$(BIN)/python -m benchmarks.latency --eager >> $(FIGURES)
	$(BIN)/python -m benchmarks.latency --broker embedded --database sqlite >> $(FIGURES)
	$(BIN)/python -m benchmarks.shapes --runs 3 >> $(FIGURES)
	$(BIN)/python -m benchmarks.shapes --runs 3 --broker embedded --database sqlite --shapes $(BRIEF_SHAPES) >> $(FIGURES)
	@$(BIN)/python -m benchmarks.table $(FIGURES)

bench-all: bench ## the same, and all that takes long: memory, a million instances, sizing, takeovers, other engines
	$(BIN)/python -m benchmarks.throughput --workflows $(BACKLOG) --runs 3 >> $(FIGURES)
	$(BIN)/python -m benchmarks.throughput --workflows $(BACKLOG) --runs 3 --broker embedded --database sqlite >> $(FIGURES)
	$(BIN)/python -m benchmarks.engines >> $(FIGURES)
	$(BIN)/python -m benchmarks.engines --eager >> $(FIGURES)
	$(BIN)/python -m benchmarks.transactions >> $(FIGURES)
	$(BIN)/python -m benchmarks.transactions --broker embedded --database sqlite >> $(FIGURES)
	$(BIN)/python -m benchmarks.capacity >> $(FIGURES)
	$(BIN)/python -m benchmarks.capacity --eager >> $(FIGURES)
	$(BIN)/python -m benchmarks.memory >> $(FIGURES)
	$(BIN)/python -m benchmarks.population >> $(FIGURES)
	$(BIN)/python -m benchmarks.takeover >> $(FIGURES)
	$(BIN)/python -m benchmarks.idle >> $(FIGURES)
	$(BIN)/python -m benchmarks.rivals all >> $(FIGURES)
	@$(BIN)/python -m benchmarks.table $(FIGURES)

services: ## start Kafka, PostgreSQL and MariaDB and leave them running
	tools/services start
	tools/services env

stop: ## stop them
	tools/services stop

clean: ## forget the environment, the servers' data and all caches
	tools/services stop --clean
	rm -rf $(VENV) $(VENV)-* .services .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
