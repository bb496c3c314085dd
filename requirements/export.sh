#!/usr/bin/env bash
# export.sh: makes .venv-export, an environment with what writes and checks RO-Crates, beside .venv, whose packages it would change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cat requirements/{build,export}.txt | sha256sum | cut -d' ' -f1)
[[ $(cat .venv-export/requirements.sha256 2>/dev/null) == "$wanted" ]] && exit 0
rm -rf .venv-export
.venv/bin/python -m venv .venv-export
requirements/install.sh .venv-export export
printf '%s\n' "$wanted" >.venv-export/requirements.sha256
