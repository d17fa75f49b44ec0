# make demo: sets up .venv, then trains and scores on the bundled images.   make test: runs the tests.
# Everything is installed into .venv and stays in this folder, with one exception: as root on Debian,
# `make test` installs a browser if there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
TORCH ?= torch==2.13.0
DEMO := runs/demo
# The newest supported pair of Python and JAX, in a virtual environment of its own.
NEWEST_PYTHON ?= $(shell for p in python3.13 $(HOME)/.pyenv/versions/3.13*/bin/python3.13; do \
	$$p -c '' 2>/dev/null && echo $$p && break; done)
NEWEST := .venv-newest
NEWEST_TESTS := tests/model tests/training/test_steps.py tests/weights/test_goldens.py tests/test_settings.py
CACHED := XDG_CACHE_HOME='$(CURDIR)/.cache'

.PHONY: demo test test-fast newest newest-here parity bench accelerator lint format demo-images goldens clean
.DELETE_ON_ERROR:

demo: $(VENV)/.package
	rm -rf $(DEMO)
	@echo "1. Train a head on the 28 bundled training images: this only shows how training works."
	$(CACHED) $(BIN)/python -m cinemae_jax.train --config configs/demo.py --workdir $(DEMO)/trained
	@echo "2. Score the bundled test images with the bundled detector, which has seen none of them."
	$(CACHED) $(BIN)/python -m cinemae_jax.evaluate --config configs/demo.py --workdir $(DEMO) \
		--config.eval.detector=clip

test: $(VENV)/.test $(VENV)/.browser
	$(PYTEST) -m "not parity" $(ARGS)

# For the inner loop: leaves out what trains, serves or starts processes.
test-fast: $(VENV)/.test
	$(PYTEST) -m "not parity and not slow" $(ARGS)

# A fast part of the tests and the demo on the newest pair; skipped, with a line, without that Python.
newest:
	@if [ -n "$(NEWEST_PYTHON)" ]; then \
		$(MAKE) --no-print-directory VENV=$(NEWEST) PYTHON=$(NEWEST_PYTHON) newest-here; \
	else \
		echo "make newest: skipped: there is no python3.13 (set NEWEST_PYTHON)"; \
	fi

newest-here: $(VENV)/.test
	@$(BIN)/python -c 'import jax, sys; print("Python", sys.version.split()[0], "JAX", jax.__version__)'
	$(PYTEST) -m "not slow and not parity" $(NEWEST_TESTS)
	$(MAKE) --no-print-directory VENV=$(VENV) PYTHON=$(PYTHON) DEMO=runs/demo-newest demo

parity: $(VENV)/.parity
	$(PYTEST) -m parity $(ARGS)

# Times the package against PyTorch; takes minutes, needs a quiet machine.
bench: $(VENV)/.parity
	$(BIN)/python -m benchmarks $(ARGS)

# Right and fast on the accelerator of this machine, in eight minutes; docs/performance.md.
accelerator: $(VENV)/.package
	$(BIN)/python -m benchmarks.accelerator $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rebuilds the bundled images from their Debian packages; needs a Debian system.
demo-images: $(VENV)/.test
	$(BIN)/python scripts/build_demo_set.py

# Rewrites the fixtures computed by the PyTorch reference.
goldens: $(VENV)/.parity
	$(BIN)/python -m weights_convert goldens

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.package
	$(PIP) --editable '.[test]'
	touch $@

# The tests of the web page need a browser.  Installs Debian's Chromium if there is none and apt-get is
# available to root; otherwise those tests are skipped and say so.
$(VENV)/.browser: | $(VENV)/bin/python
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome; do \
		command -v "$$name" >/dev/null && exit 0; \
	done; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0; \
	{ apt-get -qq update; apt-get -qq -y install --no-install-recommends chromium; } >/dev/null 2>&1; true
	@touch $@

# TORCH selects the build.  A CPU build (from an index that pip knows) is a few hundred MB; PyPI's own
# CUDA wheel for Linux also works and takes some gigabytes.
$(VENV)/.parity: pyproject.toml $(VENV)/.test
	$(PIP) '$(TORCH)'
	$(PIP) --editable '.[test,parity]'
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) .cache runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
