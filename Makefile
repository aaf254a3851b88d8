PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# one thread a worker: two workers share two cores
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test check oldest bench aot docs gpu wheels

demo: .venv/demo
	$(BIN)/python -m gsr_kernels continual --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: .venv/all
	$(TESTS)

# a sample of the kernels under the oldest triton that is tested
oldest: .venv/all
	test -d .venv/oldest || $(BIN)/pip install --quiet --no-deps --target .venv/oldest triton==3.7.0
	PYTHONPATH=.venv/oldest $(TESTS) python_tests/backends/triton/test_stages.py python_tests/backends/triton/test_merge.py

check: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*.* csrc/candidates/* python_tests/csrc/emulation/*

bench: .venv/all
	$(BIN)/python -m bench

# every kernel for every architecture, compiled without a GPU
aot: .venv/all
	$(BIN)/python -m bench.gpu aot --all

docs: .venv/all
	$(BIN)/python -m mkdocs serve

# on a machine with a GPU, with the Python there that holds CUDA's torch: tests and times
gpu:
	$(PYTHON) -m bench.gpu

# with the CUDA C++, for this Python; GPUs as TORCH_CUDA_ARCH_LIST says
wheels: .venv/all
	GSR_KERNELS_CUDA=1 $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python csrc/tools/symbols.py dist/*.whl

.venv/demo: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[runner]"
	touch $@

.venv/all: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[plot,test,check]"
	touch $@ .venv/demo
