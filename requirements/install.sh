#!/usr/bin/env bash
# install.sh VENV [SET…]: fills the existing virtual environment VENV from the hash-locked sets beside this file.
# `make setup` and the Dockerfile both call it, so that host and image hold the same files.
set -euo pipefail
if [[ $(uname -m) != x86_64 ]]; then
  echo "ERROR: the locked requirements are for x86-64; this is $(uname -m)." >&2
  exit 1
fi
venv=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pip=("$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --require-hashes)

"${pip[@]}" -r "$here/build.txt"
for set in "$@"; do
  case $set in
    # torch comes alone and first: an extra index that does not answer would cost seconds for every package.
    torch-cpu) "${pip[@]}" --retries 1 --index-url https://download.pytorch.org/whl/cpu -r "$here/$set.txt" ;;
    # antlr4-python3-runtime 4.9 exists as source only; without isolation it is built with the locked tools.
    *) "${pip[@]}" --no-binary antlr4-python3-runtime --no-build-isolation -r "$here/$set.txt" ;;
  esac
done

# DVC starts by way of the checkout's pipeline/checkout.py, so that one run at a time uses a checkout.
[[ ! -e $venv/bin/dvc ]] || install -m 755 "$here/dvc" "$venv/bin/dvc"

# PRUNE=1, for images: without the packages' own tests, and headers and compilers for building against the frameworks.
if [[ -n ${PRUNE:-} ]]; then
  packages=$venv/lib/python3.11/site-packages
  find "$packages" -type d \( -name tests -o -path "$packages/torch/test" \) -prune -exec rm -rf {} +
  rm -rf "$packages"/{tensorflow/include,torch/include,clang/native}
fi
