# The two commands a newcomer needs: `make demo` and `make test`.
# `make install TORCH=cpu` takes a torch without CUDA: 2.1 GB in all instead of 6.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_NEEDED = $(shell sed -n 's/^ *"\(torch>=.*\)",$$/\1/p' pyproject.toml)

.PHONY: install installs demo test test-slow docs lint types format bench drill cluster clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	test "$(TORCH)" != cpu || $(BIN)/python -m pip install -qq --index-url $(TORCH_INDEX) "$(TORCH_NEEDED)"
	$(BIN)/python -m pip install -qq --editable '.[all,dev]'
	mkdir -p .venv/links && ln -sfn ../.. .venv/links/sota_ml_researcher
	touch $(STAMP)

demo: install
	$(BIN)/ml-researcher demo

# One worker per core; what ends early takes over waiting tests of the others.
test: install
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

drill: install
	$(BIN)/python -m pytest -m drill -v

# The site of docs/, doctrine and reference, in build/site; a broken link fails.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Against a real SkyRL server (docs/clusters.md): `make cluster SKYRL_PYTHON=PATH/bin/python`.
cluster: install
	SKYRL_PYTHON=$(SKYRL_PYTHON) $(BIN)/python -m pytest -m cluster -v

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# Minutes long: every documented way to install, in clean environments.
installs:
	.ci/installs

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m pip install -qq --editable '.[all,bench]'
	$(BIN)/python -m benchmarks --page docs/benchmarks.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
