# The environment is made by whatever needs it first: git, make and a Python >= 3.11 with venv are all it takes. It is
# made in steps, so that the first example takes some 250 MB, and torch and jax are for those who want them:
#   .venv/ready what `make cartpole` needs    .venv/dev what tests, lint and documentation need    .venv/all torch, jax, ALE
PYTHON ?= python3
BIN := .venv/bin
KILLS ?= 1000
WORKERS ?= 2
ROW ?=
FIELDS ?=
ONLY ?=
OUT ?=
PEERS ?=
WORKS ?=
ROUNDS ?=
QUICK ?=

INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --config-settings editable_mode=compat --editable

.PHONY: cartpole atari test test-all faults lint bench bench-row bench-peers captures docs dist clean

cartpole: .venv/ready          ## train a CartPole agent, and watch it
	$(BIN)/python examples/cartpole.py

atari: .venv/atari             ## train an Atari agent (wants a GPU and a dozen cores), and watch it
	$(BIN)/python examples/atari.py

test: lint                     ## everything that has to hold, in WORKERS processes (2)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --max-worker-restart=0 -m "not alone"
	$(BIN)/python -m pytest -q -m alone

test-all: .venv/all            ## the same with torch, jax and ALE: `make test` skips what needs one that is not installed
	$(MAKE) test

faults: .venv/dev              ## a long storm of SIGKILLs, and all tests of faults at length (KILLS=5000: most of an hour)
	AREPLAY_FAULTS=long $(BIN)/python -m pytest -q tests/faults
	$(BIN)/python -m tests.faults.storm --kills $(KILLS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev               ## the figures of the README, on this machine (some twenty minutes)
	$(BIN)/python -m benchmarks

bench-row: .venv/dev           ## rows of your own (ROW=7056 or FIELDS="obs=4x84x84:uint8 reward=:float32", ONLY=queue, OUT=folder, QUICK=1)
	$(BIN)/python -m benchmarks.row $(if $(ROW),--row $(ROW)) $(if $(FIELDS),--fields $(FIELDS)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-peers: .venv/dev         ## areplay beside its peers (PEERS="cpprb reverb", WORKS=atari, ROUNDS=5, QUICK=1)
	$(BIN)/python -m benchmarks.peers $(if $(PEERS),--peers $(PEERS)) $(if $(WORKS),--works $(WORKS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

captures: .venv/dev            ## docs/images/top.svg and doctor.svg, of this machine
	$(BIN)/python docs/images/captures.py

docs: .venv/dev                ## the documentation: docs/_build/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build
	@echo "docs/_build/index.html"

dist: .venv/dev                ## sdist and wheel in dist/, looked at and tried in an environment of their own
	rm -rf build dist *.egg-info
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tests.distribution dist

# By a path, not by an import hook (editable_mode): a folder named areplay beside one's script, such as the clone itself,
# would be found before the hook is asked.
.venv/ready: pyproject.toml
	@echo "Installing areplay and what examples/cartpole.py needs into .venv, once: some 250 MB."
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[cartpole]'
	@touch $@

.venv/dev: .venv/ready
	@echo "Installing what the tests need into .venv, once: some 300 MB more."
	$(INSTALL) '.[dev]'
	@touch $@

.venv/all: .venv/dev
	@echo "Installing torch, jax and ALE into .venv, once: 1 GB, or 6 GB where the index has torch for CUDA."
	$(INSTALL) '.[all]'
	@touch $@

.venv/atari: .venv/ready
	@echo "Installing torch and ALE into .venv, once: 1 GB, or 6 GB where the index has torch for CUDA."
	$(INSTALL) '.[atari]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist docs/_build *.egg-info
