#!/usr/bin/env bash
# digest.sh VENV…: one sha256 for all that is installed: Debian's packages, Python, and every file of every Python package
# as its RECORD has it. An image cannot hold its own id; this says as much of what is in it, and repeats.
set -euo pipefail
{
  dpkg-query --show
  for venv in "$@"; do
    "$venv/bin/python" -VV
    find "$venv"/lib/python3.11/site-packages -path '*.dist-info/RECORD' -print0 | sort -z | xargs -0 cat
  done
} | sha256sum | sed 's/^\([0-9a-f]*\).*/sha256:\1/'
