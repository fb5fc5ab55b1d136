# `make demo` and `make test` work on a bare machine with Python 3.10 or newer, pip and make:
# the first call builds a virtual environment in .venv, later calls reuse it until pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test neuron ascend gaudi lint format types imports bench bench-xeon docs check clean

setup: $(READY)

KERNELS := $(wildcard kernels/*.t* kernels/native/* kernels/langchain_accel_kernels/*.py)

$(READY): pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[xeon,xeon-sharding,ray,demo,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps ./kernels || \
		echo "NOTE: langchain-accel-kernels was not built, for which it needs g++ or clang++: torch computes everything"
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/rag_qa.py

test: $(READY)
	$(BIN)/python -m pytest -q

# The Inferentia tests, in a virtual environment of their own.
neuron:
	PYTHON=$(PYTHON) .ci/neuron

# The Ascend tests, likewise.
ascend:
	PYTHON=$(PYTHON) .ci/ascend

# The Gaudi tests, likewise.
gaudi:
	PYTHON=$(PYTHON) .ci/gaudi

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/host_overhead.py
	$(BIN)/python benchmarks/xeon_eager.py

# The Xeon device against its peers, each in a virtual environment of its own. Hours; WHAT="--work b --repeats 1" is less.
BENCH ?= $(VENV)/bench
bench-xeon: $(READY)
	-for peer in hf llama_cpp openvino vllm; do $(BIN)/python -m benchmarks.xeon.setup $$peer --into $(BENCH); done
	$(BIN)/python -m benchmarks.xeon.run --cache $(BENCH)/models --environments $(BENCH) --out $(BENCH)/results.json $(WHAT)
	$(BIN)/python -m benchmarks.xeon.table $(BENCH)/results.json
	$(BIN)/python -m benchmarks.xeon.plot $(BENCH)/results.json $(BENCH)/results.svg

docs: $(READY)
	$(BIN)/python -m pytest -q tests/docs

check: test neuron ascend gaudi lint types imports

clean:
	rm -rf $(VENV) build dist
