# make demo   the main job on the built-in phantom (6 to 8 minutes on two cores, after the install)
# make test   what every change must pass
# make check  make test and the long checks besides
# make bench  every benchmark beside its peers, and one table of them (an hour on two cores; ROUNDS=2 is shorter)
# make docs   the documentation's site, in site/; a warning is an error
# make lowest the tests on the oldest versions that setup.cfg allows
# make coverage  the tests, and which lines of mrseg they run (half an hour on two cores)
# make mutants   how many small faults the tests of metrics, geometry and freezing notice (ten minutes)
# make dist   wheel and sdist, in dist/
PYTHON ?= python3
BIN := .venv/bin
# What make bench runs, and where its figures go.
BENCH := .venv-bench/bin/python
BENCHMARKS := metrics inference preprocessing features engines training input scaling
RESULTS ?= runs/bench
# Of every benchmark but growth, which times each size once; empty: each benchmark's own number.
ROUNDS ?=
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint check bench notebooks docs lowest coverage mutants dist clean

demo: .venv/installed
	$(BIN)/mrseg demo --output runs/demo

test: .venv/installed-test lint docs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest tests/test_speed.py -m speed --benchmark-columns=median,rounds

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test .venv/installed-check
	$(BIN)/python -m pytest -m "slow"
	$(BIN)/python examples/build_notebooks.py --check
	$(BIN)/python examples/build_pages.py --check docs/guides/six_scans.md

bench: .venv-bench/installed
	for name in $(BENCHMARKS); do \
	  echo "== $$name"; PYTHONPATH=$(CURDIR) $(BENCH) benchmarks/$$name.py --output $(RESULTS)/$$name.csv \
	    $(ROUNDS:%=--rounds %) || exit 1; \
	done
	PYTHONPATH=$(CURDIR) $(BENCH) benchmarks/growth.py --output $(RESULTS)/growth.csv
	PYTHONPATH=$(CURDIR) $(BENCH) benchmarks/engines.py --dice --output $(RESULTS)/engines_dice.csv
	PYTHONPATH=$(CURDIR) $(BENCH) benchmarks/gpu.py --small --networks segnet se_unet3d --output $(RESULTS)/gpu.csv
	$(BENCH) benchmarks/table.py $(RESULTS)

notebooks: .venv/installed-check
	$(BIN)/python examples/build_notebooks.py

# The site is made from sources alone: an environment without TensorFlow is enough.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest -W default --numprocesses 2 --dist loadfile

coverage: .venv/installed-measures
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov

# Another sample: make mutants SEED=2
mutants: .venv/installed-measures
	$(BIN)/python tests/mutants.py --seed $(or $(SEED),1)

dist: .venv/bin/python
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python setup.cfg
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

.venv/installed-check: .venv/installed-test
	$(BIN)/pip install --quiet --editable '.[notebooks,jax,tensorboard]'
	touch $@

.venv/installed-measures: .venv/installed-test
	$(BIN)/pip install --quiet --editable '.[measures]'
	touch $@

.venv-bench/installed: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --upgrade pip
	.venv-bench/bin/pip install --quiet --requirement benchmarks/requirements.txt
	touch $@

.venv-docs/installed: setup.cfg
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet $$($(PYTHON) -c "import configparser as c; r = c.ConfigParser(); \
	r.read('setup.cfg'); print(*r['options.extras_require']['docs'].split())")
	touch $@

.venv-lowest/installed: setup.cfg requirements/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --requirement requirements/lowest.txt
	.venv-lowest/bin/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-bench .venv-docs .venv-lowest .coverage* runs site dist build *.egg-info
