#!/usr/bin/env bash
# lock.sh [OPTION…]: makes each requirements/SET.txt from its SET.in. Versions in the locks stay where SET.in allows them; --upgrade
# takes the newest of all packages, and --upgrade-package NAME of one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=requirements/uv.sh
source ./uv.sh
unset UV_FIND_LINKS UV_INDEX  # a lock is made from one index, whatever else pip is told to look at
for set in uv build cpu dev peers audit export docs mlflow torch-cuda tensorflow-cuda; do
  platform=(--universal)
  [[ $set != *-cuda ]] || platform=(--python-platform x86_64-manylinux_2_28)
  # triton is for torch.compile alone; playwright and what it needs are not used (dev.in).
  "$uv" pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --python-version 3.11 \
    --allow-unsafe --no-emit-package triton --no-emit-package playwright --no-emit-package pyee --no-emit-package greenlet \
    "${platform[@]}" "$@" "$set.in" -o "$set.txt"
done
