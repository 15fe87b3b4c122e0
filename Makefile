# Each target is enough by itself: it makes the environment it needs.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

# Python compiles what it imports: compiling all of TensorFlow takes a minute.
PIP := $(VENV)/bin/pip install --quiet --no-compile
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-slow test-browser test-hub test-package site \
	lint format table clean

demo: $(READY)  ## train alone, distill, compare, export
	$(VENV)/bin/python -m training.demo

test: lint  ## lint, and all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: test test-slow test-hub test-browser test-package site  ## every test there is

test-slow: $(READY)  ## whole programs, devices and workers, tasks, searches
	$(PYTEST) -m slow

test-browser: $(READY) site  ## pages of runs and of the site in Debian's package chromium
	$(VENV)/bin/python -m pytest tests/training/browser tests/site/browser

test-hub: $(READY)  ## networks of KerasHub, which this installs
	$(PIP) --requirement requirements-hub.lock
	$(PYTEST) tests/hub

test-package: $(READY)  ## the package, checked and in a fresh environment
	$(PIP) --requirement requirements-package.lock
	rm -rf build dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/twine check --strict dist/*
	$(VENV)/bin/python -m pytest tests/package

site: export TF_CPP_MIN_LOG_LEVEL := 3
site: export NO_MKDOCS_2_WARNING := 1
site: $(READY)  ## the documentation in site/, its guides run and its links checked
	$(PIP) --requirement requirements-site.lock
	$(VENV)/bin/mkdocs build --strict
	$(VENV)/bin/python -m pytest tests/site

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

table: $(READY)  ## README.md's tables: hours
	$(VENV)/bin/python -m benchmarks.accuracy.evidence resnet thin mobilenet \
		glyphs_10000 fashion_1000 fashion_5000

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) runs build dist site *.egg-info
