#!/usr/bin/env bash
# peers.sh: makes .venv-peers, an environment with what .venv has, and above it what only a comparison needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cat requirements/{build,peers}.txt .venv/requirements.sha256 | sha256sum | cut -d' ' -f1)
[[ $(cat .venv-peers/requirements.sha256 2>/dev/null) == "$wanted" ]] && exit 0
rm -rf .venv-peers
.venv/bin/python -m venv .venv-peers
requirements/install.sh .venv-peers peers
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >.venv-peers/lib/python3.11/site-packages/project.pth
printf '%s\n' "$wanted" >.venv-peers/requirements.sha256
