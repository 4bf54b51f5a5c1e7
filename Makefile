PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench sanitize clean

demo: $(VENV)/.installed
	$(BIN)/ksurgeon convert resnet50 --rule shuffle -o converted/resnet50-shuffle --yes

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.convert

# The kernels on random chains under AddressSanitizer and UndefinedBehaviorSanitizer, every instruction set.
KERNELS := ksurgeon/kernels/cpu/src
build/sanitize: tests/kernels/sanitize.cpp $(wildcard $(KERNELS)/*)
	mkdir -p build
	$(CXX) -O1 -g1 -std=c++17 -ffp-contract=fast -fsanitize=address,undefined -fno-sanitize-recover=all \
		-I$(KERNELS) $(KERNELS)/*.cpp tests/kernels/sanitize.cpp -pthread -o $@

sanitize: build/sanitize
	build/sanitize 300

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
