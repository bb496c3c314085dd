#!/usr/bin/env bash
# install.sh VENV SET…: installs the hash-locked sets with uv into the virtual environment VENV, and makes VENV where it is missing.
# setup.sh and the Dockerfile both call it, so that host and image hold the same files. PYTHON names VENV's interpreter.
set -euo pipefail
venv=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TMPDIR=$(mktemp -d)
trap 'rm -rf "$TMPDIR"' EXIT
touch "$TMPDIR/started"
# Python starts in VENV while it is filled, and would write bytecode with dates there (see PRUNE).
export TMPDIR PYTHONDONTWRITEBYTECODE=1
if [[ $(uname -m) != x86_64 ]]; then
  echo "ERROR: the locked requirements are for x86-64; this is $(uname -m)." >&2
  exit 1
fi
# shellcheck source=requirements/uv.sh
source "$here/uv.sh"
# Relocatable: in a copy of the checkout, the scripts run the copy's environment.
[[ -x $venv/bin/python ]] || "$uv" venv -q --no-project --relocatable --python "${PYTHON:-cpython@3.11}" "$venv"
uv_install() { "$uv" pip install -q --python "$venv/bin/python" --no-deps --require-hashes "$@"; }

uv_install -r "$here/build.txt"
files=()
for set in "$@"; do
  if [[ $set == torch-cpu ]]; then
    # PyTorch's own index is asked for torch alone, and only where the user's indexes and folders have no build for the CPU.
    uv_install -r "$here/torch-cpu.txt" 2>/dev/null ||
      uv_install --default-index https://download.pytorch.org/whl/cpu -r "$here/torch-cpu.txt"
  else
    files+=(-r "$here/$set.txt")
  fi
done
# antlr4-python3-runtime 4.9 exists as source only; without isolation it is built with the locked tools.
((${#files[@]} == 0)) || uv_install --no-build-isolation --no-binary antlr4-python3-runtime "${files[@]}"

# DVC starts by way of the checkout's pipeline/running/checkout.py, so that one run at a time uses a checkout.
[[ ! -e $venv/bin/dvc ]] || install -m 755 "$here/dvc" "$venv/bin/dvc"

# PRUNE=1, for images: without the packages' own tests, headers and compilers for building against the frameworks, and uv's notes
# of a local wheel's date; with all bytecode, which a job could not write there. Under SOURCE_DATE_EPOCH bytecode carries no date.
if [[ -n ${PRUNE:-} ]]; then
  packages=$venv/lib/python3.11/site-packages
  find "$packages" -type d \( -name tests -o -path "$packages/torch/test" \) -prune -exec rm -rf {} +
  rm -rf "$packages"/{tensorflow/include,torch/include,clang/native}
  sed -i '/uv_cache.json,/d' "$packages"/*.dist-info/RECORD && rm -f "$packages"/*.dist-info/uv_cache.json
  find "$packages" -name '*.py' -cnewer "$TMPDIR/started" | "$venv/bin/python" -m compileall -qq -j 0 -i - || true
fi
