#!/usr/bin/env bash
# platforms.sh: whether every package of the locks has a file with a locked hash for Linux and macOS on 64-bit ARM. Installs nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=requirements/uv.sh
source requirements/uv.sh || exit 1
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
status=0
for platform in aarch64-manylinux_2_28 aarch64-apple-darwin; do
  for set in build torch-cpu cpu dev mlflow; do
    # antlr4-python3-runtime exists as source only. torch needs macOS 14.
    if output=$(MACOSX_DEPLOYMENT_TARGET=14.0 "$uv" pip install --dry-run --target "$target" --python-platform "$platform" \
      --python-version 3.11 --only-binary :all: --no-binary antlr4-python3-runtime --no-deps --require-hashes \
      -r "requirements/$set.txt" 2>&1) && number=$(grep -c '^ + ' <<<"$output"); then
      echo "$platform, $set: all $number packages have a file"
    else
      echo "$platform, $set: some packages have none: $output"
      status=1
    fi
  done
done
exit $status
