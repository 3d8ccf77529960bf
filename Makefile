# Every target sets up what it needs. `make help` lists them.

PYTHON ?= python3
TORCH ?= torch>=2.11
ARGS ?=
JOBS ?= 2

# An environment that is given is used as it is, torch included; otherwise one is made here.
ifdef VENV
TORCH_READY :=
else
VENV := .venv
TORCH_READY := $(VENV)/.torch
endif

RUN := $(abspath $(VENV))/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
CMAKE_BUILD ?= build/cmake
NATIVE_SOURCES := setup.py python/refiners/ops/library_file.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP_SOURCES := $(shell find csrc benchmarks tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# The environment belongs to the checkout that was installed into it last.
INSTALLED := $(VENV)/.refiners-installed
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
$(shell rm -f $(INSTALLED) $(VENV)/.refiners-tools)
endif

.DELETE_ON_ERROR:
.PHONY: help demo test lint format types docs bench csrc-build csrc-test cuda doctor install tools clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "variables: TORCH='$(TORCH)' VENV=$(VENV) PYTHON=$(PYTHON) JOBS=$(JOBS) ARGS=  (as in: make test ARGS='-k lora')"

demo: $(INSTALLED)  ## adapt a small diffusion model and write the pictures to build/demo
	$(RUN) -m refiners demo --out build/demo $(ARGS)

# Processes that share the cores must not spin while they wait for threads.
test: $(INSTALLED) $(VENV)/.refiners-tools  ## run the Python tests
	OMP_WAIT_POLICY=passive $(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

# Models are given back to the system as soon as they are freed: two of 10 GB need not be in memory at once.
parity: $(INSTALLED) $(VENV)/.refiners-tools  ## compare models of full size with diffusers and transformers, on random weights
	rm -f build/parity.jsonl
	mkdir -p build
	MALLOC_MMAP_THRESHOLD_=1048576 REFINERS_PARITY=1 REFINERS_PARITY_TABLE=$(abspath build/parity.jsonl) \
		$(RUN) -m pytest -m parity $(ARGS)
	$(RUN) scripts/parity_table.py build/parity.jsonl benchmarks/results/parity.md

lint: $(VENV)/.refiners-tools  ## check the formatting and the rules, Python and C++
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m ruff check --quiet .
	$(abspath $(VENV))/bin/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(VENV)/.refiners-tools  ## format Python and C++ in place
	$(RUN) -m ruff check --quiet --fix-only .
	$(RUN) -m ruff format --quiet .
	$(abspath $(VENV))/bin/clang-format -i $(CPP_SOURCES)

types: $(INSTALLED) $(VENV)/.refiners-tools  ## check the types, strictly
	$(RUN) -m basedpyright --pythonpath $(RUN)

docs: $(INSTALLED) $(VENV)/.refiners-tools  ## build the documentation into build/site, without a warning
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

csrc-build: $(VENV)/.refiners-tools  ## build the C++ side without Python: kernels, benchmarks, tests
	$(abspath $(VENV))/bin/cmake -S . -B $(CMAKE_BUILD) -G Ninja \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DPYTHON_EXECUTABLE=$(RUN) $(CMAKE_ARGS)
	$(abspath $(VENV))/bin/cmake --build $(CMAKE_BUILD)

csrc-test: csrc-build  ## run the C++ tests
	$(abspath $(VENV))/bin/ctest --test-dir $(CMAKE_BUILD) --output-on-failure

bench: csrc-build  ## measure the kernels
	$(CMAKE_BUILD)/refiners_bench $(ARGS)

cuda: $(INSTALLED)  ## compile the CUDA sources for sm_80 and sm_90a; a spill in a kernel fails
	$(RUN) scripts/check_ptxas.py $(ARGS)

doctor: $(INSTALLED)  ## say what is installed and which path each operator takes
	$(RUN) -m refiners doctor $(ARGS)

install: $(INSTALLED)  ## set up the environment, the library included
tools: $(VENV)/.refiners-tools  ## set up the tools of a developer

clean:  ## remove everything that was built, and the environment that was made here
	rm -rf build .venv .ruff_cache .pytest_cache
	find python -name '*.so' -delete -o -name '*.egg-info' -prune -exec rm -rf {} +

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit("refiners needs Python 3.10, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv $(VENV)
	$(PIP) '$(TORCH)'
	@touch $@

# pip would compile in a folder that it then deletes: it installs the Python part, and the rule after it compiles.
$(VENV)/.refiners-requirements: pyproject.toml $(TORCH_READY)
	@$(RUN) -W ignore -c 'import torch' || { echo "VENV=$(VENV): no torch there" >&2; exit 1; }
	$(PIP) 'setuptools>=77' wheel ninja
	REFINERS_BUILD_NATIVE=0 $(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

# A library that was moved or deleted is built again; where none could be built, a note says why.
ifeq ($(wildcard python/refiners/_C.* python/refiners/_build_note.txt),)
$(shell rm -f $(INSTALLED))
endif

$(INSTALLED): $(VENV)/.refiners-requirements $(NATIVE_SOURCES)
	$(RUN) setup.py --quiet build_ext --inplace --build-temp build/native
	@echo $(CURDIR) > $@

$(VENV)/.refiners-tools: $(VENV)/.refiners-requirements
	REFINERS_BUILD_NATIVE=0 $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
