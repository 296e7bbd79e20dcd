# Two commands do all the set-up: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := $(wildcard src/sentence_distill/*.py data/*.py pipeline/*.py student/*.py student/*/*.py student/templates/* student/pretrained/*/* cli/*.py)

.PHONY: demo test lint format docs clean

demo: $(VENV)/.package
	@mkdir -p demo
	cd demo && PATH="$(abspath $(BIN)):$$PATH" sh ../benchmarks/demo.sh $(if $(GLUE_DIR),"$(abspath $(GLUE_DIR))")

# Files side by side: most tests wait for processes, and compute with one thread.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.package
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation's site, in site/: a warning, a dead link or a foreign script fails it.
docs: $(VENV)/.package
	$(BIN)/python docs/build_site.py site

# The packages, and apart from them the checkout: an editable install links single files, so it is
# made again whenever one was added.
$(VENV)/.packages: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --no-build-isolation --editable '.[offline,ray,s3,plots,tensorboard,mteb,peers,docs,dev]'
	@touch $@

$(VENV)/.package: $(VENV)/.packages $(SOURCES)
	@rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=strict --editable .
	@touch $@

clean:
	rm -rf $(VENV) build demo site *.egg-info src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
