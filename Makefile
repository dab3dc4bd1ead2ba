# make demo      train a small system in minutes: corpus, three training stages, WER, a spoken answer, report.html
# make demo DEVICE=cuda  the same on a GPU
# make test      check the style and run the quick tests; lists the tests left to test-all
# make test-all  run all tests
# make fuzz      send random calls and messages to a server, for SECONDS=300 each; SEED=19 are those of make test
# make docs      build the documentation as a site in site/, with strict checks
# make wheel     build the package in dist/
# Each target sets up .venv first and needs only Python 3.11, pip and make.

PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
WORKERS ?= 2
SECONDS ?= 300
SEED ?= 19

.PHONY: help demo test test-all fuzz docs wheel lint install install-dev clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash egs/mini/demo.sh $(if $(DEVICE),--device $(DEVICE))

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m "not long"

test-all: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal

fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 OMNIKIT_FUZZ_SECONDS=$(SECONDS) OMNIKIT_FUZZ_SEED=$(SEED) $(RUN) -m pytest -q -rP \
		tests/serve/test_openapi.py tests/serve/clients/test_mutations.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "open site/index.html"

# build/ is removed first, because setuptools packs files left by an earlier build
wheel: $(VENV)/.installed-dev
	rm -rf build
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# a stamp is written only after a complete installation, so the next call repeats an interrupted one
INSTALL = $(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
	echo "installing omnikit and what it needs into $(VENV) (minutes the first time)"; \
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable

$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	@$(INSTALL) '.[judge]'
	@touch $@

$(VENV)/.installed-dev: setup.cfg setup.py pyproject.toml constraints.txt
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: setup.cfg setup.py pyproject.toml constraints.txt
	@$(INSTALL) '.[docs]'
	@touch $@

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
