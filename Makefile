# make demo: the main job on the bundled images, set-up included.   make test: the tests.
# Everything is installed into .venv; nothing outside this folder is touched, but that `make test`, run
# as root on Debian, installs a browser where there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH ?= torch==2.13.0
DEMO := runs/demo
CACHED := XDG_CACHE_HOME='$(CURDIR)/.cache'

.PHONY: demo test parity bench lint format demo-images goldens clean
.DELETE_ON_ERROR:

demo: $(VENV)/.package
	rm -rf $(DEMO)
	@echo "1. A head trained on the 28 bundled training images: it shows how training works, no more."
	$(CACHED) $(BIN)/python -m cinemae_jax.train --config configs/demo.py --workdir $(DEMO)/trained
	@echo "2. The bundled detector on the bundled test images, none of which it has seen."
	$(CACHED) $(BIN)/python -m cinemae_jax.evaluate --config configs/demo.py --workdir $(DEMO) \
		--config.eval.detector=tiny

test: $(VENV)/.test $(VENV)/.browser
	$(BIN)/python -m pytest -m "not parity" -n auto --dist loadfile $(ARGS)

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m parity -n auto --dist loadfile $(ARGS)

# Times the backbone beside PyTorch; minutes, and only meaningful on a quiet machine.
bench: $(VENV)/.parity
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rebuilds the bundled images from their packages; needs a Debian system.
demo-images: $(VENV)/.test
	$(BIN)/python scripts/build_demo_set.py

# Rewrites the files that the PyTorch reference vouches for.
goldens: $(VENV)/.parity
	$(BIN)/python -m weights_convert goldens

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.package
	$(PIP) --editable '.[test]'
	touch $@

# For the tests of the page: Debian's Chromium, where there is no browser and apt-get may bring one.
# Where it may not, those tests are skipped and say so.
$(VENV)/.browser: | $(VENV)/bin/python
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome; do \
		command -v "$$name" >/dev/null && exit 0; \
	done; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0; \
	{ apt-get -qq update; apt-get -qq -y install --no-install-recommends chromium; } >/dev/null 2>&1; true
	@touch $@

# TORCH names the build. Where pip has an index of CPU builds, this version is a few hundred MB;
# the wheel for CUDA that PyPI itself holds for Linux works too, and is some gigabytes.
$(VENV)/.parity: pyproject.toml $(VENV)/.test
	$(PIP) '$(TORCH)'
	$(PIP) --editable '.[test,parity]'
	touch $@

clean:
	rm -rf $(VENV) .cache runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
