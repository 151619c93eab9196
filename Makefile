# Every target sets up what it needs in $(VENV) and is safe to repeat.
# Needed: make, Python 3.10 or newer with its venv module, and a package index for pip.

# The interpreter to use; empty for the first that works of python3, python3.14 and so on down.
PYTHON ?=
VENV ?= .venv
# More for pytest, as in: make test ARGS="-k retry"
ARGS ?=

IN_VENV := $(VENV)/bin/python
# Named after PYTHON, so that another interpreter makes the environment anew.
MADE := $(VENV)/.made-with-$(if $(PYTHON),$(subst /,_,$(PYTHON)),any)
EXAMPLE := $(VENV)/.has-example
DEV := $(VENV)/.has-dev
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10)
# On all cores, a few tests at a time, so that none is left alone in the end.
IN_PARALLEL := --numprocesses auto --dist load --maxschedchunk 4
# Hundreds of short processes import the package: without this each would compile it anew.
export PYTHONDONTWRITEBYTECODE :=
SUITABLE := import ensurepip, sqlite3, ssl, sys, venv; sys.exit(sys.version_info < (3, 10))

# Two that are started at once install one after the other, where there is a flock, as on Linux.
ALONE := $(if $(shell command -v flock),flock $(firstword $(MAKEFILE_LIST)))

.DELETE_ON_ERROR:
.PHONY: has-example has-dev help bench demo web test test-all scale chaos check lint fix docs picture wheel clean

help: ## Show the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' $(MAKEFILE_LIST) | awk '{ n = $$1; $$1 = ""; printf "  %-8s%s\n", n, $$0 }'

demo: has-example ## Run the example: real workers, a Redis, a SQLite log; under a minute
	@$(IN_VENV) -m example_app

web: has-example ## Serve the page of what the example did, on http://localhost:8000
	@$(IN_VENV) -m example_app.web

test: has-dev ## Run the first tier of the tests, with real servers and processes, in about 4 minutes; ARGS="..." goes to pytest
	@$(IN_VENV) -m pytest $(IN_PARALLEL) $(ARGS)

test-all: has-dev ## Run the whole suite: each database, broker and place, chaos, a browser; about 10 minutes
	@$(IN_VENV) -m pytest --all --numprocesses auto --dist worksteal $(ARGS)

chaos: has-dev ## Kill and cut everything for minutes, with sections and limits, on each database; ARGS="--jobs 20000 --seed 7"
	@$(IN_VENV) tests/support/chaos.py --database postgresql $(ARGS)
	@$(IN_VENV) tests/support/chaos.py --database sqlite $(ARGS)
	@$(IN_VENV) tests/support/section_chaos.py --database postgresql $(ARGS)
	@$(IN_VENV) tests/support/section_chaos.py --database mariadb --broker rabbit $(ARGS)

scale: has-dev ## Ask a log of ten million jobs, on PostgreSQL, and of one million, on SQLite; ten minutes, 10 GB
	@$(IN_VENV) benchmarks/scale.py

bench: has-dev ## Measure the log beside bare Dramatiq and its peers, on all cores and on one; ARGS="--processes 2" and the like
	@$(IN_VENV) benchmarks/throughput.py $(ARGS)
	@$(IN_VENV) benchmarks/throughput.py --pinned $(ARGS)
	@$(IN_VENV) benchmarks/sending.py

check: lint test ## Run all that a change must pass: format, lint, types, tests

lint: has-dev ## Check format, lint, types and the words of prose; change nothing
	@$(IN_VENV) -m ruff format --check .
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m mypy
	@$(IN_VENV) -m basedpyright
	@$(IN_VENV) .ci/words

fix: has-dev ## Format, and repair what the linter can
	@$(IN_VENV) -m ruff check --fix .
	@$(IN_VENV) -m ruff format .

docs: has-dev ## Build the site of docs/ into build/site, with the demo, and refuse a broken link
	@$(IN_VENV) -m pip --disable-pip-version-check install --quiet --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(IN_VENV) -m mkdocs --quiet build
	@$(IN_VENV) -m example_app.week build/site/demo

picture: has-dev ## Make the pictures of README and docs anew, in a real Chromium; a minute
	@$(IN_VENV) -m pip --disable-pip-version-check install --quiet --editable '.[docs]'
	@$(IN_VENV) .ci/picture docs/images

wheel: has-dev ## Build the wheel and the source archive into dist/
	@rm -rf build dist
	@$(IN_VENV) -m build

clean: ## Remove the environment, caches and what was built
	rm -rf $(VENV) build dist *.egg-info .demo .demo-* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

has-example:
	@$(ALONE) $(MAKE) --no-print-directory --silent $(EXAMPLE)

has-dev:
	@$(ALONE) $(MAKE) --no-print-directory --silent $(DEV)

$(MADE):
	@for python in $(PYTHONS); do \
		if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv --clear $(VENV) && touch $@; \
			exit; \
		fi; \
	done; \
	echo "No suitable Python: looked for $(PYTHONS)." \
		"Python 3.10 or newer with its venv module is needed (on Debian: apt install python3-venv);" \
		"name one with PYTHON=/path/to/python3" >&2; \
	exit 1

$(EXAMPLE): pyproject.toml $(MADE)
	@echo "Installing what the example needs; only the first time takes a while"
	@$(IN_VENV) -m pip --disable-pip-version-check install --quiet --editable '.[example]'
	@touch $@

$(DEV): pyproject.toml $(MADE)
	@echo "Installing what the tests and checks need; only the first time takes a while"
	@$(IN_VENV) -m pip --disable-pip-version-check install --quiet --editable '.[dev]'
	@touch $(EXAMPLE) $@
