PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: compare test test-all lint bench wheel clean

compare: $(READY)
	$(BIN)/taut compare --out results --overwrite
	$(BIN)/taut gaps --data "digits(binarised=True)" --batch-size 128 --out results/VAE-gaps --overwrite

# One thread in each worker: the workers themselves use all cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/local_table.py
	$(BIN)/python benchmarks/gradient_variance.py
	$(BIN)/python benchmarks/plateau.py
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/time_to_optimum.py
	$(BIN)/python benchmarks/race.py

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --wheel
	$(BIN)/python -m zipfile -l dist/*.whl

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist results *.egg-info
