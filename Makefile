# Two commands on a fresh machine: `make demo` and `make test`. Both install first what is missing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TPU_VENV := .venv-tpu
# Compiled bytecode halves the start-up time of every process; some environments switch it off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install gcs gcp tpu tpu-compiler demo test lint bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "convscale needs CPython 3.11: $(PYTHON) was not found; name it with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

# Storage and data in Google's buckets; and what Ray needs to start machines there.
gcs gcp: install
	UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$@]'

# On a TPU's host: the library by which PyTorch/XLA reaches it, in the version that goes with torch-xla.
tpu: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt libtpu

# The TPU's compiler, for `convscale aot`, which makes it on first use; it needs nothing of the other environment.
tpu-compiler: $(TPU_VENV)/.installed

$(TPU_VENV)/.installed: constraints-tpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "convscale needs CPython 3.11: $(PYTHON) was not found; name it with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(TPU_VENV)/bin/python || $(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-tpu.txt uv
	UV_COMPILE_BYTECODE=1 $(TPU_VENV)/bin/uv pip install --quiet --python $(TPU_VENV)/bin/python --constraint constraints-tpu.txt jax libtpu
	touch $@

demo: install
	$(BIN)/convscale search studies/digits.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint tpu-compiler
	$(BIN)/pytest

bench: install
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.host
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.law
	$(BIN)/python -m benchmarks.samplers
	$(BIN)/python -m benchmarks.samplers --proposal

clean:
	rm -rf $(VENV) $(TPU_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
