# Two commands do all the set-up: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Bytecode is left to the first import: most modules never are.
PIP_INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
EDITABLE := --config-settings editable_mode=strict --no-build-isolation --editable
SOURCES := $(wildcard src/sentence_distill/*.py data/*.py pipeline/*.py student/*.py student/*/*.py student/templates/* student/pretrained/*/* cli/*.py)

.PHONY: demo test lint format docs clean

demo: $(VENV)/.installed
	@mkdir -p demo
	cd demo && PATH="$(abspath $(BIN)):$$PATH" sh ../benchmarks/demo.sh $(if $(GLUE_DIR),"$(abspath $(GLUE_DIR))")

# Files side by side, more than there may be cores: most tests wait for processes, and compute with one thread.
test: lint
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation's site, in site/: a warning, a dead link or a foreign script fails it.
docs: $(VENV)/.developer
	$(BIN)/python docs/build_site.py site

# What a user installs, then what a developer needs besides. An editable install links single files, so it is made
# again whenever one was added.
$(VENV)/.packages: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools
	$(PIP_INSTALL) $(EDITABLE) '.[offline]'
	@touch $@

$(VENV)/.developer-packages: $(VENV)/.packages
	$(PIP_INSTALL) $(EDITABLE) '.[offline,ray,s3,plots,tensorboard,mteb,peers,docs,dev]'
	@touch $@

$(VENV)/.installed: $(VENV)/.packages $(SOURCES)
	@rm -rf build
	$(PIP_INSTALL) --no-deps $(EDITABLE) .
	@touch $@

$(VENV)/.developer: $(VENV)/.developer-packages $(VENV)/.installed
	@touch $@

clean:
	rm -rf $(VENV) build demo site *.egg-info src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
