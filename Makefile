# The commands of the README and of CI. ARGS is passed to the command: make repro ARGS="train@numpy_arrays"
.PHONY: help setup repro test test-pipeline test-docker test-faults test-environments test-benchmark check check-gpu sweep seeds explain reproduce export verify-export track ui bench bench-gpu cpu gpu test-gpu-image audit check-platforms lock docs release
.DEFAULT_GOAL := help

# The value of a variable as one quoted argument; no argument if it is empty.
quoted = $(if $($(1)),'$(subst ','\'',$($(1)))')
# A remote's address may contain a password, which an image's label must not show.
labels = SOURCE=$$(git config remote.origin.url | sed 's|//[^/@]*@|//|') REVISION=$$(git rev-parse HEAD)
ifeq ($(wildcard /opt/image.digest),)  # an image has its own packages; .venv belongs to the host
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif
export MLFLOW_DISABLE_TELEMETRY := true
# The same as in pipeline/running/processes.py: Python, shells and git work in this checkout, whatever variables the user has set.
harmless := PYTHON PYTHONDONTWRITEBYTECODE PYTHONFAULTHANDLER PYTHONPYCACHEPREFIX PYTHONUNBUFFERED
unexport $(filter-out $(harmless),$(filter PYTHON% BASH_FUNC_%,$(.VARIABLES))) BASHOPTS BASH_ENV CDPATH ENV SHELLOPTS
unexport GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR GIT_DIR GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE GIT_INDEX_FILE
unexport GIT_INTERNAL_SUPER_PREFIX GIT_NAMESPACE GIT_NO_REPLACE_OBJECTS GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_REPLACE_REF_BASE
unexport GIT_SHALLOW_FILE GIT_WORK_TREE

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

setup:  ## install the hash-locked requirements into .venv, if it is missing or out of date
	@PATH="$(subst $(CURDIR)/.venv/bin:,,$(PATH))" requirements/setup.sh

repro: setup  ## run the stages that are not up to date: dvc repro $(ARGS)
	@python -m commands params
	dvc repro $(ARGS)

test: setup  ## run the quick tests: pytest $(ARGS)
	pytest -n 2 --dist loadfile $(ARGS)

test-pipeline: setup  ## test whole pipelines in fresh clones, and the pages in a browser
	pytest -n 2 --dist loadfile -m "pipeline or browser" $(ARGS)

test-docker: setup  ## test the images and the containers, with a Docker engine
	pytest -m docker $(ARGS)

test-faults: setup  ## test kills at random moments, full disks and damaged files: FAULTS=20 SEED=…
	pytest -n 3 --dist loadfile -m "faults and not docker" -s $(ARGS)

test-environments: setup  ## test under users' settings of git, shells, servers and folders
	pytest -n 2 --dist loadfile -m "environments and not docker" $(ARGS)

test-benchmark: setup  ## test the benchmark with known slowdowns of 0, 2, 5 and 10 %, and on a busy machine
	pytest -m calibration -s $(ARGS)

check-gpu:  ## test the lessons on an NVIDIA GPU, here or in the image: docker compose run --rm gpu make check-gpu
	@[ -n "$$TORCH_PYTHON" ] || $(MAKE) --no-print-directory setup
	@for python in $${TORCH_PYTHON:-python} $$TENSORFLOW_PYTHON; do \
	  echo "$$python -m pytest -m gpu tests/test_gpu.py $(ARGS)"; \
	  REQUIRE_GPU=1 $$python -m pytest -m gpu tests/test_gpu.py $(ARGS) || exit 1; done

check: setup  ## run ruff, pyright, hadolint and the prose linter
	ruff check
	ruff format --check
	pyright
	hadolint docker/Dockerfile
	python -m tests.prose

explain: setup  ## name the first wrong line of a lesson: make explain NAME=torch_autograd [DEVICE=cuda] [PROBLEM=…]
	@python -m commands explain $(call quoted,NAME) $(if $(PROBLEM),--problem $(call quoted,PROBLEM)) $(if $(DEVICE),--device $(call quoted,DEVICE))

reproduce: setup  ## run an MLflow run again and print a verdict: make reproduce RUN=…
	@python -m commands reproduce $(call quoted,RUN)

sweep: setup  ## run the queued experiments in parallel, here or on the cluster RAY_ADDRESS; SHARE=N: N CPUs each; ARGS: stages
	@python -m commands sweep $(if $(SHARE),--share $(call quoted,SHARE)) $(ARGS)

seeds: setup  ## run the experiment with the seeds 0 … N-1 in parallel, SHARE=1 CPU each: make seeds N=24
	@python -m commands seeds $(call quoted,N) $(if $(SHARE),--share $(call quoted,SHARE))

docs:  ## render the documents as pages in site/; fails on dead links
	@requirements/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict
	@echo "site/index.html is the index of the documents"

release: setup  ## commit and tag a version if its tests have passed: make release VERSION=1.2.0
	@python -m commands release $(call quoted,VERSION)

export: setup  ## write a run with its code and data as an RO-Crate to exported/: make export RUN=…
	@requirements/setup.sh export
	@python -m commands export $(call quoted,RUN)

verify-export: setup  ## verify the checksums of the exported run EXPORT=FOLDER, or of all runs in exported/
	@python -m commands verify $(call quoted,EXPORT)

track: setup  ## send current results that the MLflow store lacks, for example after runs were deleted there
	@python -m commands track

ui: setup  ## start the MLflow UI on 127.0.0.1, port 5000 or PORT=…
	@python -m commands ui $(call quoted,PORT)

bench: setup  ## compare each lesson's step with matrix products alone, hand-tuned variants and other programs; PEERS=1: with JAX
	@[ -z "$(PEERS)" ] || requirements/setup.sh peers
	$(if $(PEERS),.venv-peers/bin/)python -m benchmarks.bench $(ARGS)

bench-gpu:  ## measure step time, speedup over NumPy and share of cuBLAS's speed on an NVIDIA GPU
	@docker/preflight gpu
	docker compose run --rm gpu python -m benchmarks.gpu $(ARGS)

cpu:  ## run the experiment in a container: docker compose run --rm cpu $(ARGS)
	@docker/preflight cpu
	$(labels) docker compose run --rm --build cpu $(ARGS)

gpu:  ## check the requirements, then run the experiment in a container on an NVIDIA GPU
	@docker/preflight gpu
	$(labels) docker compose run --rm --build gpu $(ARGS)

test-gpu-image:  ## build the gpu image and test it without a GPU (12 GB)
	docker/test-gpu-image

audit:  ## list known vulnerabilities of the locked packages, and write SBOMs to sbom/ (asks PyPI)
	@requirements/audit.sh

check-platforms:  ## check that the locked packages exist for Linux and macOS on 64-bit ARM
	@requirements/platforms.sh

lock:  ## write requirements/*.txt from *.in, versions kept: make lock ARGS=--upgrade, or ARGS="--upgrade-package NAME"
	@requirements/lock.sh $(ARGS)
