# make            what there is
# make demo       fine-tune, export, serve and listen to a real Spanish voice
# make train-hour an hour on two cores: a voice that speaks Spanish, with its figures before and after
# make test       the tests
# make bench      the benchmarks, training for a look only (python -m benchmarks.training measures it)

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
# Where to take torch from, for instance PyTorch's own CPU or CUDA index (see https://pytorch.org/get-started).
# Empty: whatever pip is set up with.
TORCH_INDEX ?=
# What the benchmark of serving serves, from ./store; 'make demo' makes this one.
VOICE  ?= demo-spanish
EXTRAS := train,export,serve,phonemes,judges,wandb,tune,demo,dev
TORCH  := $(shell grep '^torch==' constraints.txt)
ONNX_GPU := $(shell grep '^onnxruntime-gpu==' constraints.txt)
# Images: docker or podman, whichever has an engine that answers; BUILD_FLAGS go to its 'build'.
ENGINE      ?= $(shell for engine in docker podman; do if $$engine info >/dev/null 2>&1; then echo $$engine; break; fi; done)
BASE_IMAGE  ?= python:3.11-slim-bookworm
BUILD_FLAGS ?=
# How many processes run the tests; each may take 4 GB and two processors. 0: this one alone, as a debugger wants it.
TESTERS     ?= 2
# Anything: images for NVIDIA GPUs, called as deploy/kubernetes/components/gpu calls them. Torch's CUDA build is in its wheel;
# ONNX Runtime needs the base's.
GPU         ?=
GPU_EXTRAS  := serve-gpu,phonemes
SCRIPTS     := $(shell grep -slE '^\#!.*sh$$' .ci/* tests/infra/* tests/infra/kubernetes/* shared/protos/*.sh)

.PHONY: help install demo train-hour test overload lint type bench images sbom monitoring e2e-kubernetes lint-gateway node proto lint-proto lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "also: install overload lint type images node sbom monitoring e2e-kubernetes lint-gateway proto lint-proto lock clean"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt setup.py monotonic_align/_kernel.pyx monotonic_align/_search.h
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11 with its venv and headers (Debian, Ubuntu: python3.11 python3.11-venv python3.11-dev), or say which to use: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@# Judges that ask for packages they can do without: docs/evaluation.md.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt distillmos xls-r-sqa resemblyzer
	@touch $@

demo: install
	$(BIN)/python -m examples.demo

train-hour: install
	$(BIN)/python -m examples.hour

# transformers.js, in which a format is tested; needs npm. Its scripts would fetch CUDA's libraries.
node: build/node/.installed

build/node/.installed:
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix build/node @huggingface/transformers@4.3.1
	@touch $@

export TRANSFORMERS_JS ?= $(wildcard build/node)

test: install
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile -m "not corpus and not cluster and not container and not gpu"

# A minute at ten times what the server can do; the tests have some seconds of it.
overload: install
	OVERLOAD_SECONDS=60 $(BIN)/python -m pytest tests/integration/test_overload.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile.serve Dockerfile.train
	$(BIN)/shellcheck $(SCRIPTS)

type: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.alignment
	$(BIN)/python -m benchmarks.preprocessing
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.training --quick
	$(BIN)/python -m benchmarks.distributed --frames 64 --steps 1 --repetitions 1
	$(BIN)/python -m benchmarks.synthesis --seconds 1 5 --rounds 2
	$(BIN)/python -m benchmarks.serving --voice $(VOICE) --only ready calls first beside added throughput
	$(BIN)/python -m benchmarks.planning --voice $(VOICE)

proto: install
	PATH="$(CURDIR)/$(BIN):$$PATH" shared/protos/generate.sh
	$(BIN)/python -m shared.protos.compatibility

# The same promises, and buf's rules of form, checked by buf itself; needs npm. The tests need neither.
BUF ?= npx --yes @bufbuild/buf@1.75.0
lint-proto: BASE = $(if $(shell git rev-parse --quiet --verify refs/heads/main),branch=main,ref=HEAD)
lint-proto:
	cd shared/protos && $(BUF) lint && $(BUF) format --diff --exit-code
	@# A source archive has no past to be compared with.
	[ ! -e .git ] || { cd shared/protos && $(BUF) breaking --against '$(CURDIR)/.git#$(BASE),subdir=shared/protos'; }

# Dashboards and Kubernetes' PrometheusRule, of what deploy/monitoring says.
monitoring: install
	$(BIN)/python -m deploy.monitoring.generate

# deploy/kubernetes on a real Kubernetes: as root, on Debian 12; docs/kubernetes.md.
e2e-kubernetes: install
	tests/infra/kubernetes/e2e

# The one object whose schema Python does not have; needs npm.
lint-gateway: install
	tests/infra/kubernetes/lint-gateway

# BUILDAH_FORMAT: podman's own image format has no health check.
build-image = BUILDAH_FORMAT=docker $(ENGINE) build --file Dockerfile.$(1) --tag vits-$(1)$(if $(GPU),-gpu) \
	--build-arg BASE_IMAGE='$(BASE_IMAGE)' \
	--build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
	--build-arg REVISION="$$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)" $(BUILD_FLAGS) $(2) .

images:
	$(if $(ENGINE),,$(error no container engine answers: install podman, or start docker, or say which to use: make images ENGINE=...))
	$(if $(and $(GPU),$(filter file,$(origin BASE_IMAGE))),$(error $(BASE_IMAGE) has no CUDA: name a base with Python 3.11 and the CUDA and cuDNN that onnxruntime-gpu asks for, make images GPU=1 BASE_IMAGE=...))
	$(call build-image,serve,$(if $(GPU),--build-arg EXTRAS='$(GPU_EXTRAS)'))
	$(call build-image,train,--build-arg TORCH_INDEX='$(TORCH_INDEX)')

# What is in the images, as CycloneDX documents.
sbom:
	$(if $(ENGINE),,$(error no container engine answers: install podman, or start docker, or say which to use: make sbom ENGINE=...))
	@mkdir -p output/sbom
	for image in vits-serve vits-train; do $(ENGINE) run --rm --network=none --entrypoint=python $$image -c \
	    "print(open('/usr/share/sbom/$$image.cdx.json').read())" > output/sbom/$$image.cdx.json || exit 1; done

# Pin what is installed now. Local build tags (+cpu, +cu…) are left out, so that any build of torch satisfies the pin.
# What an image for GPUs has in its place is kept beside ONNX Runtime: it cannot be installed here too.
lock:
	@{ echo "# Every package that 'make install' and the container images install, pinned. Made by 'make lock'."; \
	   $(BIN)/python -m pip freeze --all --exclude-editable | sed '/^pip==/d; s/+[a-z0-9.]*$$//; /^onnxruntime==/a $(ONNX_GPU)'; } > constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info monotonic_align/*.so monotonic_align/_kernel.c
