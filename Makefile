# The environment is made by whatever needs it first: git, make and a Python >= 3.11 with venv are all it takes.
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

.PHONY: cartpole atari test faults lint bench bench-row bench-peers captures docs dist clean

cartpole: .venv/ready          ## train a CartPole agent, and watch it
	$(BIN)/python examples/cartpole.py

atari: .venv/ready             ## train an Atari agent (wants a GPU and a dozen cores), and watch it
	$(BIN)/python examples/atari.py

test: lint                     ## everything that has to hold, in WORKERS processes (2)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --max-worker-restart=0 -m "not alone"
	$(BIN)/python -m pytest -q -m alone

faults: .venv/ready            ## a long storm of SIGKILLs, and all tests of faults at length (KILLS=5000: most of an hour)
	AREPLAY_FAULTS=long $(BIN)/python -m pytest -q tests/faults
	$(BIN)/python -m tests.faults.storm --kills $(KILLS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready             ## the figures of the README, on this machine (some twenty minutes)
	$(BIN)/python -m benchmarks

bench-row: .venv/ready         ## rows of your own (ROW=7056 or FIELDS="obs=4x84x84:uint8 reward=:float32", ONLY=queue, OUT=folder, QUICK=1)
	$(BIN)/python -m benchmarks.row $(if $(ROW),--row $(ROW)) $(if $(FIELDS),--fields $(FIELDS)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-peers: .venv/ready       ## areplay beside its peers (PEERS="cpprb reverb", WORKS=atari, ROUNDS=5, QUICK=1)
	$(BIN)/python -m benchmarks.peers $(if $(PEERS),--peers $(PEERS)) $(if $(WORKS),--works $(WORKS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

captures: .venv/ready          ## docs/images/top.svg and doctor.svg, of this machine
	$(BIN)/python docs/images/captures.py

docs: .venv/ready              ## the documentation: docs/_build/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build
	@echo "docs/_build/index.html"

dist: .venv/ready              ## sdist and wheel in dist/, looked at and tried in an environment of their own
	rm -rf build dist *.egg-info
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tests.distribution dist

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist docs/_build *.egg-info
