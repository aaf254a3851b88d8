PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# one thread a worker: two workers share two cores
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test check oldest oldest-torch bench aot docs gpu gpu-rehearsal wheels

demo: .venv/demo
	$(BIN)/python -m gsr_kernels continual --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: .venv/all
	$(TESTS)

# a kernel of each kind, compiled without a GPU by versions of triton that GPU machines still have
SAMPLE := ^(first_product (bf16 x fp16|fp32 x fp16, transposed|by TMA bf16 x fp16)|second_product fp32 x fp16 (tall|inside), AdamW fp32 fp32|rescale_all fp16|fold fp16 tall|prepare|finish|(convert bf16 |scale_factor |reduce_product )by cuBLAS, fp16|write_result bf16 by cuBLAS, AdamW bf16 bf16|project, recompose fp16|largest bf16|skew|rescale|recompose|(sign_counts|stability) fp32|merge bf16|sketch gaussian)$$
oldest: .venv/all
	$(MAKE) -j2 oldest-3.4.0 oldest-3.6.0

oldest-%:
	test -d .venv/triton-$* || $(BIN)/pip install --quiet --no-deps --target .venv/triton-$* triton==$*
	PYTHONPATH=.venv/triton-$* $(BIN)/python -W ignore -m bench.gpu aot --sm 90 --only "$(SAMPLE)"

# a sample of the suite under the oldest torch that is claimed, some GB with its CUDA
OLDEST := .venv/torch-2.10.0
oldest-torch:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet torch==2.10.0 --editable ".[test]"
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 \
	  $(addprefix python_tests/, optim methods linalg io integrations) python_tests/test_*.py

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

# the site, into site/; `mkdocs serve` shows it while it is written
docs: .venv/all
	$(BIN)/python -m mkdocs build --strict

# on a machine with a GPU, with the Python there that holds CUDA's torch: tests and times; rows and log go to OUT
OUT ?= runs/gpu
gpu:
	$(PYTHON) -m bench.gpu --out $(OUT)

# every part of it, small and without a GPU
gpu-rehearsal: .venv/all
	$(BIN)/python -m bench.gpu --rehearse --out runs/gpu-rehearsal

# into dist/: a pure one, then one with the CUDA C++ for this Python; GPUs as TORCH_CUDA_ARCH_LIST says
wheels: .venv/all
	GSR_KERNELS_CUDA=0 $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	GSR_KERNELS_CUDA=1 $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python csrc/tools/symbols.py dist/*linux*.whl

.venv/demo: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[runner]"
	touch $@

.venv/all: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[plot,test,check]"
	touch $@ .venv/demo
