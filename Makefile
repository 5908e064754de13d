# Targets explain themselves: `make help`.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint fuzz soak bench bench-scale clean

PYTHON := .venv/bin/python
DEMO_IMAGE := build/demo.tar

help: ## Show what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  make %-12s %s\n' "$$target" "$$text"; done

setup: ## Install what is missing: packages, .venv, guest kernel, template
	@scripts/setup.sh

demo: setup $(DEMO_IMAGE) ## From a fresh machine to real work in a sandbox
	@.venv/bin/msb load --quiet --input $(DEMO_IMAGE)
	@$(PYTHON) examples/demo.py

$(DEMO_IMAGE): scripts/build_demo_image.py
	@scripts/build_demo_image.py $@

test: ## Pass all tests; those of sandboxes boot real virtual machines
	@scripts/setup.sh --dev
	@$(PYTHON) -m pytest

test-fast: ## Pass the unit tests: they boot nothing
	@scripts/setup.sh --dev
	@$(PYTHON) -m pytest tests/unit

lint: ## Check style and types
	@scripts/setup.sh --dev
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

fuzz: ## Fuzz the guest agent's parsers, a minute each
	@scripts/setup.sh --dev
	@MSB_FUZZ_SECONDS=60 $(PYTHON) -m pytest tests/fuzz

soak: ## Work, and kill what works, at random: 10 minutes (SOAK="--minutes 30 --seed 7")
	@scripts/setup.sh --dev
	@$(PYTHON) -m tests.soak $(SOAK)

bench: setup $(DEMO_IMAGE) ## Print the figures of docs/performance.md
	@scripts/setup.sh --dev
	@$(PYTHON) -m benchmarks basics start pool podman exec idle runtime

bench-scale: setup ## Measure 100 sandboxes at once, as many as fit, and creates per second: minutes
	@scripts/setup.sh --dev
	@$(PYTHON) -m benchmarks.rate
	@$(PYTHON) -m benchmarks.many --until-full

clean: ## Remove what was built here (not ~/.microsandbox)
	@rm -rf build dist .venv .mypy_cache .pytest_cache .ruff_cache src/microsandbox/_guest/agentd-* src/microsandbox/_host/read_only_ram-*
