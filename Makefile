# One virtual environment, .venv, made on first use and remade when it no longer fits.
#
#   make train ARGS="--help"          flags for the experiment
#   make test PYTHON=python3.12       another interpreter (remakes .venv)
#   make test PYTEST_ARGS="-k broyden -x"
#   make train EXTRAS=cuda12          an accelerator: cuda12, cuda13 or tpu
#   make test UV=                     do without uv

PYTHON ?=
UV ?= uv
EXTRAS ?=
ARGS ?=
PYTEST_ARGS ?= -n 2 --dist worksteal

comma := ,
RUN_EXTRAS := experiments$(if $(EXTRAS),$(comma)$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help train test test-all lint types format docs docs-serve constraints clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1:  \2/p' Makefile

train: ## train the language model (by default a run of about 2 minutes on a CPU)
	@$(call venv,$(RUN_EXTRAS)) -m experiments.language_model $(ARGS)

test test-all: export JAX_PLATFORMS = cpu
test: ## run the tests, without the slow ones
	@$(call venv,$(RUN_EXTRAS),dev) -m pytest $(PYTEST_ARGS)

test-all: ## run every test
	@$(call venv,$(RUN_EXTRAS),dev) -m pytest -m "" $(PYTEST_ARGS)

lint: ## check style and formatting
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff check .
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff format --check .

types: ## check types
	@$(call venv,$(RUN_EXTRAS),dev) -m pyright

format: ## mend style and formatting in place
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff check --fix-only .
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff format .

docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: ## build the documentation into site/
	@$(call venv,$(RUN_EXTRAS),docs) -m mkdocs build --strict

docs-serve: ## the documentation at http://127.0.0.1:8000, built again when a page is saved
	@$(call venv,$(RUN_EXTRAS),docs) -m mkdocs serve --strict

constraints: ## pin the newest versions that work together (needs uv)
	@"$(or $(UV),uv)" --version >/dev/null 2>&1 || { \
	  echo "make constraints needs uv: pip install uv" >&2; exit 1; }
	@{ echo "# Written by 'make constraints': the versions that are tested together."; \
	  "$(or $(UV),uv)" pip compile --quiet --universal --upgrade --python-version 3.11 \
	    --fork-strategy requires-python --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links \
	    --extra experiments --extra notebook --extra docs --extra dev pyproject.toml; \
	} > constraints.txt.new || { rm -f constraints.txt.new; exit 1; }
	@mv constraints.txt.new constraints.txt

clean: ## remove caches and built files (keeps .venv and runs/)
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . \( -name .venv -o -name .git -o -name runs \) -prune \
	  -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -exec rm -rf {} +

# $(call venv,EXTRA[,EXTRA]) runs .venv's Python with those extras installed; the words that follow
# are its arguments. The shell only finds an interpreter; tools/venv.py does the rest.
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11)
TOO_OLD := $(if $(PYTHON),PYTHON=$(PYTHON) does not start a Python 3.11 or newer.,deqjax needs \
  Python 3.11 or newer and found none on PATH; name one: make PYTHON=/path/to/python3)
venv = for python in $(PYTHONS) ''; do \
	  if [ -z "$$python" ]; then echo "$(TOO_OLD)" >&2; exit 1; fi; \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then break; fi; \
	done; exec "$$python" tools/venv.py "$(UV)" "$(1)$(if $(2),$(comma)$(2))"
