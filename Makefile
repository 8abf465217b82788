# `make` prints the targets. Each one makes and fills .venv when it must.
PYTHON ?= python3
TORCH ?= torch==2.13.0

# What is also tested with: the oldest versions that pyproject.toml admits, and the newest. The one torch here is that of TORCH: others come
# with gigabytes of CUDA. For Python 3.12 there is none then, and the tests that need it skip.
OLDEST_PYTHON ?= python3.11
NEWEST_PYTHON ?= python3.12

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Tools such as ninja are looked up on the PATH by the packages that call them.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup check test test-all test-oldest test-newest demo bench docs replay wheel clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything the other targets need

check: $(READY) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) -s docs

docs: $(READY) ## build the documentation site into site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Two processes, since a run is one core's work; what the second prints comes when the first has ended.
SECOND_HALF := tests/cuda tests/diff tests/evaluate tests/hooks tests/identify tests/invariance tests/kernels tests/machine

test: $(READY) ## the tests, without the slow ones
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	$(BIN)/python -m pytest -m "not slow" -p no:cacheprovider $(SECOND_HALF) >"$$log" 2>&1 & second=$$!; \
	failed=0; $(BIN)/python -m pytest -m "not slow" $(addprefix --ignore=,$(SECOND_HALF)) || failed=$$?; \
	wait $$second || failed=$$?; cat "$$log"; exit $$failed

test-all: $(READY) ## every test
	$(BIN)/python -m pytest

# They run beside other tests, and some go by threads and time: what failed is run once more, alone, and then counts.
twice = $(VENV)-$(1)/bin/python -m pytest -o cache_dir=$(VENV)-$(1)/.cache -m "not slow" $(2) || \
  $(VENV)-$(1)/bin/python -m pytest -o cache_dir=$(VENV)-$(1)/.cache -m "not slow" --last-failed $(2)

test-oldest: $(VENV)-oldest/.ready ## unit, hook and diff tests, with the oldest versions admitted on Python 3.11
	$(call twice,oldest,tests/unit tests/hooks tests/diff --ignore=tests/unit/test_docs.py --ignore=tests/unit/test_site.py)

test-newest: $(VENV)-newest/.ready ## hook, diff and some unit tests, with the newest versions on Python 3.12, without torch
	$(call twice,newest,tests/hooks tests/diff tests/unit/emulator/test_api.py tests/unit/emulator/test_machine_code.py \
	  tests/unit/emulator/test_rounding_mode.py)

demo: $(READY) ## run the demonstration into demo-output/
	$(BIN)/mmabits demo --out demo-output

bench: $(READY) ## measure the emulator's speed
	$(BIN)/python -m benchmarks

replay: $(READY) ## replay the recorded hardware vectors
	$(BIN)/mmabits replay

wheel: $(READY) ## build the sdist and, from it, the wheel into dist/
	rm -rf build dist src/*.egg-info
	$(BIN)/python -m build -q --no-isolation
	@ls dist

clean: ## remove .venv and everything built
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist site demo-output bench-output src/*.egg-info .coverage htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch goes in first and is named again in the second step, so that no other package's requirement can replace it.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mmabits needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) '$(TORCH)' -e '.[dev,docs,demo,gpu,jax,nvrtc,peer,study,triton]'
	@touch $@

INSTALL := -m pip install -q --disable-pip-version-check

$(VENV)-oldest/.ready: pyproject.toml .ci/oldest.py
	@$(OLDEST_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "the oldest versions are tested on Python 3.11; try: make $(@D) OLDEST_PYTHON=..." >&2; exit 1; }
	test -x $(@D)/bin/python || $(OLDEST_PYTHON) -m venv $(@D)
	$(@D)/bin/python .ci/oldest.py dev jax triton > $(@D)/constraints.txt
	$(@D)/bin/python $(INSTALL) -c $(@D)/constraints.txt '$(TORCH)'
	$(@D)/bin/python $(INSTALL) -c $(@D)/constraints.txt '$(TORCH)' -e '.[jax,torch,triton]' hypothesis pytest
	@touch $@

$(VENV)-newest/.ready: pyproject.toml
	test -x $(@D)/bin/python || $(NEWEST_PYTHON) -m venv $(@D)
	$(@D)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager -e '.[jax]' hypothesis pytest
	@touch $@
