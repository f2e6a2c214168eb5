# make demo   install into .venv, then train a planner with a learned model on a small task
# make test   install the test extra, then run the tests
# make lint   install the dev extra, then ruff and mypy
# make docs   install the docs extra, then build the pages in docs/_build/html and run their doctests
# make wheel  install the dev extra, then make dist/jaxmbrl-VERSION.tar.gz, and the wheel beside it from that file
# make linkcheck   check every link in the pages, over the network
# make slow   run the learning tests, which take many minutes
# make promises   run, for all other methods and tasks, the tests that `make test` runs for one method or task of a kind
# make learning NAME=mbpo   train and evaluate a method and check its learning goal, which takes minutes to hours
# make bench-peers   install mbrl-lib into .venv-peers and dreamerv3 into .venv-peers-dreamer, and compare their speed and
#                    Brax's with ours, in about fifteen minutes

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test slow promises learning lint docs wheel linkcheck bench-peers clean
.DELETE_ON_ERROR:

demo: .venv/jaxmbrl
	@n=1; while [ -e runs/demo-$$n ]; do n=$$((n + 1)); done; \
	echo; \
	echo "jaxmbrl demo: PETS learns to balance a pole (cartpole-continuous) from scratch, with two seeds in one program."; \
	echo "It fits an ensemble of neural networks to its data and plans each step with it. The best possible return is 200;"; \
	echo "random actions, with which it starts, get about 20 to 30. This takes about two minutes on two CPU cores."; \
	echo; \
	$(BIN)/jaxmbrl train pets --env cartpole-continuous --preset small --steps 1000 --seeds 2 --out runs/demo-$$n

# Most of the test time is compilation, which uses one core, so there are two workers, which compile without optimization.
# After ten minutes a test is ended with a traceback.
WORKERS ?= 2
FAST_COMPILE := --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false
COMPILING := XLA_FLAGS="$(FAST_COMPILE) $$XLA_FLAGS"
HANGING := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart 0

test: .venv/test
	$(COMPILING) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder $(HANGING)

slow: .venv/slow
	$(BIN)/python -m pytest -m "slow and not gpu"

promises: .venv/test
	$(COMPILING) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder $(HANGING) -m "promises and not slow and not gpu"

NAME ?=

# NAME is a method or one of its cases, for example: make learning NAME=mbpo-hopper
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

wheel: .venv/dev
	$(BIN)/python -m build --outdir dist

PEERS ?=

# PEERS are arguments of the script, for example: make bench-peers PEERS="--full --out benchmarks/results/peers-cpu.json"
bench-peers: .venv/test .venv-peers/mbrl .venv-peers-dreamer/dreamerv3
	$(BIN)/python benchmarks/peers.py $(PEERS)

clean:
	rm -rf .venv .venv-peers .venv-peers-dreamer dist docs/_build docs/api

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
	@echo "installing the requirements of the tests"
	@$(INSTALL) --editable '.[test]'
	@touch $@

.venv/slow: .venv/test
	@echo "installing the further requirements of the slow tests"
	@$(INSTALL) --editable '.[test,ray]'
	@touch $@

.venv/docs: .venv/jaxmbrl
	@echo "installing the requirements of the documentation"
	@$(INSTALL) --editable '.[docs]'
	@touch $@

.venv/dev: .venv/jaxmbrl
	@echo "installing the requirements of development"
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

.venv-peers-dreamer/dreamerv3: benchmarks/peers/requirements-dreamer.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "dreamerv3 needs Python 3.11 or later here; name one with: make PYTHON=python3.12 bench-peers"; exit 1; }
	@echo "installing dreamerv3 into .venv-peers-dreamer (some minutes, once)"
	@$(PYTHON) -m venv .venv-peers-dreamer
	@.venv-peers-dreamer/bin/python -m pip install -qq --disable-pip-version-check --requirement $<
	@.venv-peers-dreamer/bin/python -m pip install -qq --disable-pip-version-check --no-deps dreamerv3==1.5.0
	@touch $@
