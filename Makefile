# make            what there is
# make demo       fine-tune, export, serve and listen to a real Spanish voice
# make test       the tests

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
# Where to take torch from, for instance PyTorch's own CPU or CUDA index (see https://pytorch.org/get-started).
# Empty: whatever pip is set up with.
TORCH_INDEX ?=
EXTRAS := train,export,serve,phonemes,judges,demo,dev
TORCH  := $(shell grep '^torch==' constraints.txt)

.PHONY: help install demo test test-fast lint type bench images proto lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "also: install lint type bench images proto lock clean"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt setup.py monotonic_align/_kernel.pyx
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11 with its venv and headers (Debian, Ubuntu: python3.11 python3.11-venv python3.11-dev), or say which to use: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: install
	$(BIN)/python -m examples.demo

test: install
	$(BIN)/python -m pytest -m "not corpus and not cluster and not container and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.alignment

proto: install
	PATH="$(CURDIR)/$(BIN):$$PATH" shared/protos/generate.sh

# Pin what is installed now. Local build tags (+cpu, +cu…) are left out, so that any build of torch satisfies the pin.
lock:
	@{ echo "# Every package that 'make install' and the container images install, pinned. Made by 'make lock'."; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'; } > constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info monotonic_align/*.so monotonic_align/_kernel.c
