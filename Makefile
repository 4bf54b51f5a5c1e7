PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench fuzz sanitize clean

demo: $(VENV)/.installed
	$(BIN)/ksurgeon convert resnet50 --rule shuffle -o converted/resnet50-shuffle --yes

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile  # one thread for each process

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.convert

CASES ?= 100000
fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES)

# Under AddressSanitizer and UndefinedBehaviorSanitizer: the kernels on random chains, every instruction set;
# then the tests of the CPU backend, which come to them through Python's side.
KERNELS := ksurgeon/kernels/cpu/src
SANITIZE := -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all
build/_chain.so: $(wildcard $(KERNELS)/*)
	mkdir -p build
	$(CXX) $(SANITIZE) -std=c++17 -ffp-contract=fast $(KERNELS)/*.cpp -shared -fPIC -pthread -ldl -o $@

build/sanitize: tests/kernels/sanitize.cpp build/_chain.so
	$(CXX) $(SANITIZE) -std=c++17 -I$(KERNELS) $^ -Wl,-rpath,'$$ORIGIN' -o $@

build/_fast.so: $(addprefix $(KERNELS)/,fast.c record.h tensors.h) $(VENV)/.installed-test
	mkdir -p build
	$(CC) $(SANITIZE) -I$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('include'))") $< -shared -fPIC -o $@

sanitize: build/sanitize build/_chain.so build/_fast.so
	build/sanitize 300
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc KSURGEON_CPU_LIBRARY=build/_chain.so PYTHONPATH=. \
		$(BIN)/python tests/kernels/sanitize.py build/_fast.so

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamp files, so that nothing is installed again until its sources change. The demo installs what a user
# would, unless an up-to-date editable installation is there; tests, lint and benchmarks need that one.
SOURCES := pyproject.toml setup.py $(wildcard ksurgeon/kernels/cpu/src/*)

$(VENV)/.installed: $(SOURCES) $(shell find ksurgeon rules recipes -type f -not -name '*.pyc') | $(BIN)/python
	@for source in $(SOURCES); do test $(VENV)/.installed-test -nt $$source || exec $(BIN)/python -m pip install .; done
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(BIN)/python -m pip install -e '.[bench]'
	touch $@

$(VENV)/.installed-test: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[test]'
	touch $@
