# What a fresh checkout can do with nothing but Python 3.11 (with pip), git and make.
#   make demo    the main job on this machine, with what happens shown
#   make test    all tests, four files at a time         make test ARGS="tests/manager -k wait"
#   make lint    ruff, mypy, pyright
#   make docs    the documentation as a site in build/docs/html; warnings, dead links and assets of other hosts are errors
#   make bench   every benchmark's table (minutes); those that need a Slurm: make bench-slurm (an hour and a half; installs peers in ~/.cache)
#   make compare   Windlass beside Parsl, Dask, Ray and others (ten minutes; installs them in ~/.cache, 1 GB)
#   make faults  the fault matrix (ten minutes), best as root and with a Slurm    make faults ARGS="--cells 'worker / *'"
#   make evaluation   the grid of docs/evaluation/ (hours; ARGS=--short: half of one), as root with /dev/fuse
#   make fuzz    10 million runs of coverage-guided fuzzing (an hour; installs Atheris in .venv-fuzz)
#   make release-check   build what would be released, look at it, use it on every Python here (half an hour; ARGS="--tests none": five minutes)
#   make clean   forget .venv and what builds leave behind
# Each installs into .venv what it needs, and again only when pyproject.toml has changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq
ARGS   ?=
# Tests wait for real processes half of the time, so four at a time keep two cores busy.
JOBS   ?= 4
# Tests start some thousand interpreters: where this is set, as in many containers, each would compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench bench-slurm compare faults evaluation fuzz release-check clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.runtime
	@$(BIN)/windlass demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Goes through to the end, so that one run tells all that is wrong.
lint: $(VENV)/.dev
	@failed=0; \
	 step() { echo "$$*"; "$$@" || failed=1; }; \
	 step $(BIN)/ruff check; \
	 step $(BIN)/ruff format --check; \
	 step $(BIN)/mypy; \
	 step $(BIN)/python .ci/pyright_all.py; \
	 if command -v shellcheck >/dev/null; then step shellcheck .ci/run; else echo "shellcheck is not here: .ci/run is not checked"; fi; \
	 exit $$failed

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.dev
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --builder html --doctree-dir build/docs/trees docs build/docs/html
	@$(BIN)/python .ci/check_site.py build/docs/html
	@echo "build/docs/html/index.html"

bench: $(VENV)/.dev
	@for one in throughput latency computing startup pending payload connections transfer pipeline hoisting cost imbalance rest dashboard journal load simulate; do $(BIN)/python benchmarks/$$one.py || exit 1; echo; done

bench-slurm: $(VENV)/.dev
	@for one in soak factory; do $(BIN)/python benchmarks/$$one.py || exit 1; echo; done

compare: $(VENV)/.dev
	@$(BIN)/python benchmarks/compare.py $(ARGS)

faults: $(VENV)/.dev
	@$(BIN)/python benchmarks/faults.py $(ARGS)

fuzz: $(VENV)/.runtime
	@test -x .venv-fuzz/bin/python || { $(PYTHON) -m venv .venv-fuzz && $(PIP) --python .venv-fuzz/bin/python install --editable . atheris; }
	@.venv-fuzz/bin/python benchmarks/fuzz.py $(ARGS)

release-check: | $(BIN)/python
	@$(BIN)/python .ci/release_check.py $(ARGS)

evaluation: $(VENV)/.dev
	@$(PIP) install --editable '.[dev,evaluation]'
	@$(BIN)/python benchmarks/evaluation.py $(ARGS)

# Debian's Python has venv but not ensurepip, so pip may have to be put in from outside.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	 { echo "Windlass needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
	 { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --disable-pip-version-check -qq --python $(BIN)/python install pip; }

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@echo "installing Windlass into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing Windlass and its development tools into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) .venv-fuzz build dist src/windlass.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
