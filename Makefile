# One command for each job: make build (what make alone does), demo, test, test-full, sanitize, guard; bench, bench-full,
#   bench-report; cuda, aot, aot-others, gpu, gpu-rehearse; lint, format; clean.
#
# VENV=.venv    the environment that is made, once, with pip. `make VENV= test` uses the current Python as it is: nothing
#               is installed and the network is not touched.
# TORCH=...     what pip installs as torch into VENV. Where pip's default is a build for CUDA of several gigabytes, name
#               a CPU build, with pip options if need be: make TORCH="torch==2.13.0 --index-url ..." demo. The Triton that
#               this torch wants comes with it.
# PYTHON=...    the Python (3.10 or newer) to make the environment from, or to use with VENV= .

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
BENCH_ARGS ?=
AOT_ARGS ?=
GPU_ARGS ?=
MEMORY_ARGS ?=
RESULTS ?= bench/results/reference-cpu.jsonl

# Triton comes after torch, which tools/triton_version.py asks for the version: whether a tile spills depends on the compiler.
BUILD_TOOLS := "setuptools>=70.1" numpy "rich>=13" tqdm
TEST_TOOLS := "pytest>=8" "pytest-xdist>=3.2" "hypothesis>=6.100" "pytest-benchmark>=4" expecttest networkx matplotlib "rustworkx>=0.15" scipy
# Programs that tests try on tied layers; where they are missing, these tests are skipped and listed.
TRIED_TOOLS := onnx onnxscript onnxruntime ptflops thop
DEMO_TOOLS := scikit-learn mlxtend
# Three trained networks; what it needs itself, old versions of torch among that, is not wanted.
TRAINED_NETWORKS := facenet-pytorch==2.6.0
LINT_TOOLS := ruff==0.17.5 clang-format==23.1.5 mypy==2.4.1

NATIVE := $(wildcard $(foreach end,cpp h inc,csrc/cpu/*.$(end) csrc/cpu/*/*.$(end)))
CUDA_NATIVE := $(wildcard $(foreach end,cpp h cu cuh,csrc/cuda/*.$(end) csrc/cuda/*/*.$(end)))
CUDA_BUILD := $(wildcard tools/native_build.py tools/cuda_*.py csrc/cuda/*/instances.txt) $(CUDA_NATIVE)
CUDA_ARGS ?= --strict

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
CLANG_FORMAT := clang-format
else
PY := $(VENV)/bin/python
CLANG_FORMAT := $(VENV)/bin/clang-format
ENVIRONMENT := $(VENV)/.installed
LINT_ENVIRONMENT := $(VENV)/.ready-lint
endif

# Said before pip fetches gigabytes for a GPU that is not there; it stops nothing.
SAY_CPU_BUILD = [ "$$(uname)" != Linux ] || ls /dev/nvidia[0-9]* /dev/kfd /dev/dxg 2>/dev/null | grep -q . \
  || command -v nvidia-smi >/dev/null || case '$(TORCH)' in *index-url*|*+cpu*|*.whl*|*find-links*) ;; *) \
  echo "No GPU was found here. Where pip's default torch is a build for CUDA, that is a download of gigabytes; a CPU" \
    "build is enough. To have it, stop with Ctrl-C and name it as pytorch.org, 'Get Started', 'CPU' does:" >&2; \
  echo '    make TORCH="$(TORCH) --index-url ADDRESS" $(MAKECMDGOALS)' >&2 ;; esac

.PHONY: all build demo test test-full sanitize guard bench bench-full bench-report aot aot-others cuda gpu gpu-rehearse lint format clean FORCE
all: build

demo: build
	$(PY) examples/demo.py

# The suite without its repetitions (the marker `full`); with them. PYTEST_ARGS="-m full" is what the first leaves out,
# PYTEST_ARGS="-n 0" is all in one process. Workers that have done their tests take some of another's last ones, so that
# most fixtures are made once.
WORKERS = $(if $(filter -n% --numprocesses% no:xdist --pdb,$(PYTEST_ARGS)),,$(shell $(PY) -c $(ASK_WORKERS) 2>/dev/null))
ASK_WORKERS := 'import os, xdist; own = getattr(os, "sched_getaffinity", None); \
  n = min(4, len(own(0)) if own else os.cpu_count() or 1); print(f"-n {n} --dist worksteal" if n > 1 else "")'

test: build
	$(PY) -m pytest tests -m "not full" $(WORKERS) $(PYTEST_ARGS)

test-full: build
	$(PY) -m pytest tests $(WORKERS) $(PYTEST_ARGS)

# The native module with AddressSanitizer and UBSan, over SYMCONV_FAST_FUZZ (2000) random problems; MEMORY_ARGS="100
# --dtypes float --kernels --turn own" takes minutes.
sanitize: build/.built
	$(PY) tools/sanitize.py $(MEMORY_ARGS)

# The installed native module with every tensor between pages that cannot be touched, over as many problems.
guard: build/.built
	$(PY) tools/guard.py $(MEMORY_ARGS)

# Some layers of every kind and whole networks, in under 8 minutes on an otherwise idle machine.
bench: build
	$(PY) -m pytest bench --minutes 7 $(BENCH_ARGS)

bench-full: build
	$(PY) -m pytest bench --full $(BENCH_ARGS)

# The native CUDA module for all GPUs from Ampere on, whether one is here or not; spills and serialised products are
# errors. It needs nvcc. TORCH_CUDA_ARCH_LIST="9.0a" chooses some; CUDA_ARGS="--table" lists registers.
cuda: build/.python
	$(PY) tools/cuda_build.py --everywhere $(CUDA_ARGS)
	@touch build/.cuda

# The Triton kernels compiled for GPUs that need not be here: spills, serialised products, shared memory. AOT_ARGS="--arch sm_90".
aot: $(ENVIRONMENT)
	$(PY) -m tools.aot --jobs 2 $(AOT_ARGS)

# The few of them that `make test` compiles, with every other Triton that the tiles of the table are for.
aot-others: $(ENVIRONMENT)
	@set -e; for version in $$($(PY) tools/triton_version.py --others); do \
	  [ -d build/triton-$$version ] || $(PY) -m pip install --quiet --no-deps --target build/triton-$$version triton==$$version; \
	  echo "Triton $$version"; PYTHONPATH=build/triton-$$version $(PY) -m tools.aot --quick --jobs 2; done

# All that needs a GPU, in order of value, within GPU_ARGS="--minutes 30"; and the same on a CPU, to see that it runs.
# Machines with a GPU may have no network: where no environment was made, the current Python is used as it is.
gpu:
	PYTHON=$(if $(wildcard $(PY)),$(PY),$(PYTHON)) bench/gpu.sh $(GPU_ARGS)

gpu-rehearse: build
	PYTHON=$(PY) bench/gpu.sh --rehearse

# Tables of the README and the documentation, and the plots, from stored rows.
bench-report: $(ENVIRONMENT)
	$(PY) -m bench.report $(RESULTS) --into README.md docs/benchmark.md --plots docs/figures
	$(PY) -m bench.report bench/results/reference-cpu-avx2.jsonl --into docs/benchmark-avx2.md
	$(PY) -m bench.report bench/results/reference-cpu-zen4.jsonl --into docs/benchmark-zen4.md
	$(PY) -m bench.report bench/results/reference-cpu-intel.jsonl --into docs/benchmark-intel.md

lint: $(LINT_ENVIRONMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run -Werror $(NATIVE) $(CUDA_NATIVE)
	$(PY) -m mypy

format: $(LINT_ENVIRONMENT)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(NATIVE) $(CUDA_NATIVE)

build: build/.built build/.cuda

# Where there is a GPU. Elsewhere the first result must not wait for it: one line says that it was left out.
build/.cuda: $(CUDA_BUILD) build/.python
	@$(PY) tools/cuda_build.py --if-gpu
	@touch $@

# The old module goes first: if it cannot be built again, no stale one must be tested.
build/.built: setup.py tools/native_build.py symconv_fast/operators.inc $(NATIVE) build/.python
	rm -f symconv_fast/_cpu*.so symconv_fast/libsymconv_fast.so
	SYMCONV_FAST_NO_CUDA=1 $(PY) setup.py -q build_ext --inplace
	@touch $@

# Changes only when another Python, or another torch in it, is used; then the native module is built again.
build/.python: FORCE $(ENVIRONMENT)
	@mkdir -p build
	@$(PY) -c 'import sys, importlib.metadata as m; print(sys.prefix, sys.version, m.version("torch"))' > $@.new \
	  || { echo "No torch in $(PY). Use an environment that has it, or 'make test' to have one made." >&2; rm -f $@.new; exit 1; }
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(VENV)/.ready: | $(VENV)/bin/python
	@$(SAY_CPU_BUILD)
	$(PY) -m pip install $(TORCH)
	$(PY) -m pip install $(BUILD_TOOLS) $(TEST_TOOLS) $(TRIED_TOOLS) $(DEMO_TOOLS) $$($(PY) tools/triton_version.py)
	$(PY) -m pip install --no-deps $(TRAINED_NETWORKS)
	@touch $@

# The package itself, editable: it can be imported from any folder. Its native module is built in place, by build/.built.
$(VENV)/.installed: $(VENV)/.ready setup.py pyproject.toml
	SYMCONV_FAST_NO_CPU=1 SYMCONV_FAST_NO_CUDA=1 $(PY) -m pip install --quiet --no-build-isolation --no-deps --no-index -e .
	@touch $@

$(VENV)/.ready-lint: $(VENV)/.ready
	$(PY) -m pip install $(LINT_TOOLS)
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	  || { echo "This Python cannot make environments (on Debian: the package python3-venv)." >&2; rm -rf $(VENV); exit 1; }

clean:
	rm -rf build dist *.egg-info symconv_fast/_c*.so symconv_fast/lib*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks demo_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
