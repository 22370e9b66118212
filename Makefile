# make demo   the main job on the built-in phantom (6 to 8 minutes on two cores, after the install)
# make test   what every change must pass
# make check  make test and the long checks besides
PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint check notebooks clean

demo: .venv/installed
	$(BIN)/mrseg demo --output runs/demo

test: .venv/installed-test lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test .venv/installed-check
	$(BIN)/python -m pytest -m "slow"
	$(BIN)/python examples/build_notebooks.py --check
	$(BIN)/python examples/build_pages.py --check docs/guides/six_scans.md

notebooks: .venv/installed-check
	$(BIN)/python examples/build_notebooks.py

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

clean:
	rm -rf .venv runs build *.egg-info
