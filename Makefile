# What the README says and CI calls. ARGS goes to the command: make repro ARGS="train@numpy_arrays"
.PHONY: help setup repro test test-pipeline test-docker test-faults test-environments test-benchmark check check-gpu sweep seeds explain reproduce export verify-export track ui bench bench-gpu cpu gpu test-gpu-image audit check-platforms lock docs release
.DEFAULT_GOAL := help

# The value of a variable as one argument, whatever is in it; none if it is empty.
quoted = $(if $($(1)),'$(subst ','\'',$($(1)))')
# A remote's address may carry a password, which is nothing for an image's label.
labels = SOURCE=$$(git config remote.origin.url | sed 's|//[^/@]*@|//|') REVISION=$$(git rev-parse HEAD)
ifeq ($(wildcard /opt/image.digest),)  # an image has its own packages; the checkout's are the host's
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif
export MLFLOW_DISABLE_TELEMETRY := true
# As pipeline/running/processes.py: Python, shells and git work in this checkout, whatever the user's shell has set.
harmless := PYTHON PYTHONDONTWRITEBYTECODE PYTHONFAULTHANDLER PYTHONPYCACHEPREFIX PYTHONUNBUFFERED
unexport $(filter-out $(harmless),$(filter PYTHON% BASH_FUNC_%,$(.VARIABLES))) BASHOPTS BASH_ENV CDPATH ENV SHELLOPTS
unexport GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR GIT_DIR GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE GIT_INDEX_FILE
unexport GIT_INTERNAL_SUPER_PREFIX GIT_NAMESPACE GIT_NO_REPLACE_OBJECTS GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_REPLACE_REF_BASE
unexport GIT_SHALLOW_FILE GIT_WORK_TREE

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

setup:  ## .venv from the hash-locked requirements, if it is missing or out of date
	@PATH="$(subst $(CURDIR)/.venv/bin:,,$(PATH))" requirements/setup.sh

repro: setup  ## run what is not up to date: dvc repro $(ARGS)
	@python -m commands params
	dvc repro $(ARGS)

test: setup  ## the tests that need minutes together: pytest $(ARGS)
	pytest -n 2 --dist loadfile $(ARGS)

test-pipeline: setup  ## whole pipelines in fresh clones, and the pages in a browser
	pytest -n 2 --dist loadfile -m "pipeline or browser" $(ARGS)

test-docker: setup  ## the images and the containers, with a Docker engine
	pytest -m docker $(ARGS)

test-faults: setup  ## kills at random moments, full disks, damaged files: is one more dvc repro enough? FAULTS=20 SEED=…
	pytest -n 3 --dist loadfile -m "faults and not docker" -s $(ARGS)

test-environments: setup  ## other people's git, shells, servers and folders
	pytest -n 2 --dist loadfile -m "environments and not docker" $(ARGS)

test-benchmark: setup  ## is what the benchmark says true? same against same, 2, 5 and 10 % slower, a busy machine
	pytest -m calibration -s $(ARGS)

check-gpu:  ## the lessons on an NVIDIA GPU, here or in the image: docker compose run --rm gpu make check-gpu
	@[ -n "$$TORCH_PYTHON" ] || $(MAKE) --no-print-directory setup
	@for python in $${TORCH_PYTHON:-python} $$TENSORFLOW_PYTHON; do \
	  echo "$$python -m pytest -m gpu tests/test_gpu.py $(ARGS)"; \
	  REQUIRE_GPU=1 $$python -m pytest -m gpu tests/test_gpu.py $(ARGS) || exit 1; done

check: setup  ## ruff, pyright, hadolint and the English
	ruff check
	ruff format --check
	pyright
	hadolint docker/Dockerfile
	python -m tests.prose

explain: setup  ## the first wrong line of a lesson, or the next one: make explain NAME=torch_autograd [DEVICE=cuda] [PROBLEM=…]
	@python -m commands explain $(call quoted,NAME) $(if $(PROBLEM),--problem $(call quoted,PROBLEM)) $(if $(DEVICE),--device $(call quoted,DEVICE))

reproduce: setup  ## a run again, from its id in MLflow, with a verdict: make reproduce RUN=…
	@python -m commands reproduce $(call quoted,RUN)

sweep: setup  ## the queued experiments side by side, here or on the cluster RAY_ADDRESS names; SHARE=N: N CPUs each; ARGS: stages
	@python -m commands sweep $(if $(SHARE),--share $(call quoted,SHARE)) $(ARGS)

seeds: setup  ## the experiment on seeds 0 … N-1, side by side, SHARE=1 CPU each: make seeds N=24
	@python -m commands seeds $(call quoted,N) $(if $(SHARE),--share $(call quoted,SHARE))

docs:  ## the documents as pages in site/; dead links fail it
	@requirements/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict
	@echo "site/index.html is the index of the documents"

release: setup  ## commit and tag a version whose tests have passed: make release VERSION=1.2.0
	@python -m commands release $(call quoted,VERSION)

export: setup  ## a run with all that belongs to it, as an RO-Crate in exported/: make export RUN=…
	@requirements/setup.sh export
	@python -m commands export $(call quoted,RUN)

verify-export: setup  ## verify the checksums of an exported run: EXPORT=FOLDER, or of all runs in exported/
	@python -m commands verify $(call quoted,EXPORT)

track: setup  ## send the MLflow store what it lacks of the current results, after runs were deleted there
	@python -m commands track

ui: setup  ## the MLflow UI on 127.0.0.1, port 5000 or PORT=…
	@python -m commands ui $(call quoted,PORT)

bench: setup  ## every lesson's step beside the matrix products alone, hand-tuned variants and what a user might write instead; PEERS=1: and JAX
	@[ -z "$(PEERS)" ] || requirements/setup.sh peers
	$(if $(PEERS),.venv-peers/bin/)python -m benchmarks.bench $(ARGS)

bench-gpu:  ## step time, speed-up over NumPy and share of cuBLAS's speed on an NVIDIA GPU
	@docker/preflight gpu
	docker compose run --rm gpu python -m benchmarks.gpu $(ARGS)

cpu:  ## the same in a container: docker compose run --rm cpu $(ARGS)
	@docker/preflight cpu
	$(labels) docker compose run --rm --build cpu $(ARGS)

gpu:  ## the same on an NVIDIA GPU, what it needs checked beforehand
	@docker/preflight gpu
	$(labels) docker compose run --rm --build gpu $(ARGS)

test-gpu-image:  ## build the gpu image and try it where there is no GPU (12 GB)
	docker/test-gpu-image

audit:  ## what is known against the locked packages, and an SBOM of each set in sbom/ (asks PyPI)
	@requirements/audit.sh

check-platforms:  ## whether the locked packages are there for Linux and macOS on 64-bit ARM
	@requirements/platforms.sh

lock:  ## requirements/*.txt from *.in, versions kept: make lock ARGS=--upgrade, or ARGS="--upgrade-package NAME"
	@requirements/lock.sh $(ARGS)
