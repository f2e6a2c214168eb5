# make demo   install into .venv, then watch a learned model and a planner solve a task
# make test   install the test extra, then run the tests
# make lint   install the dev extra, then ruff and mypy
# make docs   install the docs extra, then build the pages in docs/_build/html and run their doctests
# make linkcheck   ask for every address that the pages name, over the network
# make slow   the learning checks, which take many minutes
# make promises   compile every method, and variants, and check what `make test` checks of one method a family
# make learning NAME=mbpo   one method's learning goal, from minutes to hours: trained, evaluated and judged
# make bench-peers   mbrl-lib into .venv-peers, then its speed and Brax's beside ours, in about ten minutes

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test slow promises learning lint docs linkcheck bench-peers clean
.DELETE_ON_ERROR:

demo: .venv/jaxmbrl
	@n=1; while [ -e runs/demo-$$n ]; do n=$$((n + 1)); done; \
	echo; \
	echo "jaxmbrl demo: PETS learns to balance a pole (cartpole-continuous) from nothing, two seeds side by side."; \
	echo "It fits an ensemble of neural networks to what it saw and plans each step through it. 200 is a perfect trial;"; \
	echo "random actions, with which it starts, get about 20 to 30. This takes about two minutes on two CPU cores."; \
	echo; \
	$(BIN)/jaxmbrl train pets --env cartpole-continuous --preset small --steps 1000 --seeds 2 --out runs/demo-$$n

# Most of a test's time is compiling, which keeps one core busy: so there are two workers, which compile without optimizing.
# Whole files, which share what they compile, go to one worker. A test that takes ten minutes hangs: it ends, with its stack.
WORKERS ?= 2
COMPILING := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 $$XLA_FLAGS"
HANGING := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart 0

test: .venv/test
	$(COMPILING) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(HANGING)

slow: .venv/slow
	$(BIN)/python -m pytest -m "slow and not gpu"

promises: .venv/test
	$(COMPILING) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m "promises and not gpu" tests/contracts

NAME ?=

# NAME is a method, or one of its cases, as in: make learning NAME=mbpo-hopper
learning: .venv/jaxmbrl
	$(BIN)/python benchmarks/learning.py $(NAME) --out runs/learning/results

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SPHINX := $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --doctree-dir docs/_build/doctrees

docs: .venv/docs
	$(SPHINX) --builder html docs docs/_build/html
	$(SPHINX) --builder doctest docs docs/_build/doctest

linkcheck: .venv/docs
	$(SPHINX) --builder linkcheck docs docs/_build/linkcheck

PEERS ?=

# PEERS are arguments of the script, as in: make bench-peers PEERS="--full --out benchmarks/results/peers-cpu.json"
bench-peers: .venv/test .venv-peers/mbrl
	$(BIN)/python benchmarks/peers.py $(PEERS)

clean:
	rm -rf .venv .venv-peers docs/_build docs/api

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "jaxmbrl needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/jaxmbrl: .venv/python pyproject.toml constraints.txt
	@echo "installing jaxmbrl into .venv (some minutes, once)"
	@$(INSTALL) --editable .
	@touch $@

.venv/test: .venv/jaxmbrl
	@echo "installing what the tests need"
	@$(INSTALL) --editable '.[test]'
	@touch $@

.venv/slow: .venv/test
	@echo "installing what the slow tests need besides"
	@$(INSTALL) --editable '.[test,ray]'
	@touch $@

.venv/docs: .venv/jaxmbrl
	@echo "installing what the documentation needs"
	@$(INSTALL) --editable '.[docs]'
	@touch $@

.venv/dev: .venv/jaxmbrl
	@echo "installing what development needs"
	@$(INSTALL) --editable '.[dev]'
	@touch $@ .venv/test

.venv-peers/mbrl: benchmarks/peers/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	{ echo "mbrl-lib needs Python 3.11 or 3.12 here; name one with: make PYTHON=python3.12 bench-peers"; exit 1; }
	@echo "installing mbrl-lib and PyTorch into .venv-peers (some minutes, once)"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check --requirement $<
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check --no-deps mbrl==0.2.0
	@touch $@
