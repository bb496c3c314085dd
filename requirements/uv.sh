#!/usr/bin/env bash
# uv.sh: prints where uv is: in .venv-uv, where it is installed from its hash-locked requirement by any Python 3.8 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv-uv/bin/uv ]] || ! cmp -s requirements/uv.txt .venv-uv/uv.txt; then
  rm -rf .venv-uv
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))'
  python3 -m venv .venv-uv
  .venv-uv/bin/python -m pip --disable-pip-version-check install -qq --no-deps --only-binary :all: --require-hashes -r requirements/uv.txt
  cp requirements/uv.txt .venv-uv
fi
printf '%s\n' "$PWD/.venv-uv/bin/uv"
