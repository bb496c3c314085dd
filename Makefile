# What the README says and CI calls. ARGS goes to the command: make repro ARGS="train@numpy_arrays"
.PHONY: help setup repro test test-benchmark test-faults check check-gpu sweep seeds reproduce export verify-export ui bench bench-scale bench-gpu cpu gpu test-gpu-image audit check-platforms lock
.DEFAULT_GOAL := help

PORT ?= 5000
# A remote's address may carry a password, which is nothing for an image's label.
labels = SOURCE=$$(git config remote.origin.url | sed 's|//[^/@]*@|//|') REVISION=$$(git rev-parse HEAD)
ifndef IMAGE_DIGEST  # an image has its own; the checkout's is the host's
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif
export MLFLOW_DISABLE_TELEMETRY := true

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

setup:  ## .venv from the hash-locked requirements, if it is missing or out of date
	@PATH="$(subst $(CURDIR)/.venv/bin:,,$(PATH))" requirements/setup.sh

repro: setup  ## run what is not up to date: dvc repro $(ARGS)
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "This folder is no git repository, which DVC works in. Make it one:" \
	  "git init && git add -A && git commit -m start" >&2; exit 1; }
	@python -m commands.params
	dvc repro $(ARGS)

test: setup  ## the whole test suite, the files of tests in two processes: pytest $(ARGS)
	pytest -n 2 --dist loadfile $(ARGS)

test-benchmark: setup  ## is what the benchmark says true? same against same, 5 % slower, a busy machine
	pytest -m honesty -s $(ARGS)

test-faults: setup  ## kills at random moments, full disks, damaged files: is one more dvc repro enough? FAULTS=20 SEED=…
	pytest -m faults -s $(ARGS)

check-gpu:  ## the lessons on an NVIDIA GPU, here or in the image: docker compose run --rm gpu make check-gpu
	@[ -n "$$TORCH_PYTHON" ] || $(MAKE) --no-print-directory setup
	@for python in $${TORCH_PYTHON:-python} $$TENSORFLOW_PYTHON; do \
	  echo "$$python -m pytest -m gpu tests/test_gpu.py $(ARGS)"; \
	  REQUIRE_GPU=1 $$python -m pytest -m gpu tests/test_gpu.py $(ARGS) || exit 1; done

check: setup  ## ruff, pyright and hadolint
	ruff check
	ruff format --check
	pyright
	hadolint docker/Dockerfile

reproduce:  ## a run again, from its id in MLflow, with a verdict: make reproduce RUN=…
	@[ -n "$$IMAGE_DIGEST" ] || $(MAKE) --no-print-directory setup
	@python -m commands.reproduce $(RUN)

sweep:  ## the queued experiments side by side, here or on the cluster RAY_ADDRESS names; SHARE=N: N CPUs each; ARGS: stages
	@[ -n "$$IMAGE_DIGEST" ] || $(MAKE) --no-print-directory setup
	@python -m commands.sweep "$(SHARE)" $(ARGS)

seeds:  ## the experiment on seeds 0 … N-1, side by side, SHARE=1 CPU each: make seeds N=24
	@[ -n "$$IMAGE_DIGEST" ] || $(MAKE) --no-print-directory setup
	@python -m commands.seeds "$(N)" $(SHARE)

export: setup  ## a run with all that belongs to it, as an RO-Crate in exported/: make export RUN=…
	@requirements/export.sh
	@python -m commands.export run $(RUN)

verify-export: setup  ## whether every file of what was exported is as it was: EXPORT=FOLDER, or all in exported/
	@python -m commands.export verify $(EXPORT)

ui: setup  ## the MLflow UI on 127.0.0.1:$(PORT)
	@python -m commands.ui $(PORT)

bench: setup  ## every lesson's step beside the lower bound, hand-tuned variants and what a user might write instead; PEERS=1: and JAX
	@[ -z "$(PEERS)" ] || requirements/peers.sh
	$(if $(PEERS),.venv-peers/bin/)python -m benchmarks.bench $(ARGS)

bench-scale: setup  ## data larger than memory: time and memory of 8 GB (needs 10 GB of disk)
	python -m benchmarks.scale $(ARGS)

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

audit: setup  ## what is known against the locked packages, and an SBOM of each set in sbom/ (asks PyPI)
	@requirements/audit.sh

check-platforms:  ## whether the locked packages are there for Linux and macOS on 64-bit ARM
	@requirements/platforms.sh

lock:  ## resolve requirements/*.in anew
	uv=$$(requirements/uv.sh) && cd requirements && compile() { \
	  "$$uv" pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	    --python-version 3.11 --allow-unsafe --no-emit-package triton \
	    --no-emit-package playwright --no-emit-package pyee --no-emit-package greenlet "$$1.in" -o "$$1.txt" $$2; } && \
	for set in uv build cpu dev peers audit export mlflow; do compile $$set --universal || exit 1; done && \
	for set in torch-cuda tensorflow-cuda; do compile $$set "--python-platform x86_64-manylinux_2_28" || exit 1; done
