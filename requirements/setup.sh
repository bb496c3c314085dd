#!/usr/bin/env bash
# setup.sh: makes .venv from the hash-locked requirements, or leaves it alone when it already holds them.
# PYTHON names the interpreter to use; it must be a Python 3.11.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
is_311() { [[ $("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == 3.11 ]]; }
instead='Or run everything in a container, with Docker alone: docker compose run --rm cpu'

wanted=$(cat requirements/{build,torch-cpu,cpu,dev}.txt | sha256sum | cut -d' ' -f1)
[[ -x .venv/bin/python && $(cat .venv/requirements.sha256 2>/dev/null) == "$wanted" ]] && is_311 .venv/bin/python &&
  { cmp -s requirements/dvc .venv/bin/dvc || install -m 755 requirements/dvc .venv/bin/dvc; } && exit 0

if [[ $(uname -sm) != 'Linux x86_64' ]]; then
  say "the locked requirements are for Linux on x86_64; this is $(uname -sm). $instead"
  exit 1
fi
if [[ -n ${PYTHON:-} ]]; then
  is_311 "$PYTHON" || { say "PYTHON=$PYTHON is not a Python 3.11. Name one that is. $instead"; exit 1; }
else
  for candidate in python3.11 python3 python; do
    is_311 "$candidate" && { PYTHON=$candidate; break; }
  done
fi
if [[ -z ${PYTHON:-} ]]; then
  # Another Python is no reason to turn anybody away: uv, itself from PyPI with a hash, brings a 3.11 into .venv-uv.
  say "no Python 3.11 found (looked for python3.11, python3 and python): uv gets one"
  export UV_PYTHON_INSTALL_DIR=$PWD/.venv-uv/python UV_NO_CONFIG=1
  PYTHON=$(uv=$(requirements/uv.sh) && "$uv" python install -q --no-bin 3.11 && "$uv" python find --no-project --managed-python 3.11) || PYTHON=
fi
if [[ -z ${PYTHON:-} ]]; then
  say "that failed, as is said above. Install Python 3.11, or name it: make setup PYTHON=/path/to/python3.11. $instead"
  exit 1
fi

say "installing the locked requirements into .venv (3.5 GB, about 75 s)"
rm -rf .venv
"$PYTHON" -m venv .venv
requirements/install.sh .venv torch-cpu cpu dev
printf '%s\n' "$wanted" >.venv/requirements.sha256
