#!/usr/bin/env bash
# audit.sh: looks up known vulnerabilities of the locked packages (pip-audit), and writes an SBOM of each set in CycloneDX's format.
# The exit status is 1 on a finding, and where a package could not be looked up.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
requirements/setup.sh audit || exit 1
mkdir -p sbom
status=0
for set in build torch-cpu cpu dev peers mlflow torch-cuda tensorflow-cuda audit export; do
  .venv-audit/bin/cyclonedx-py requirements "requirements/$set.txt" --output-reproducible --short-PURLs -o "sbom/$set.json" || status=1
  echo "$set: $(grep -c '==' "requirements/$set.txt") packages, sbom/$set.json"
  # Each line of a set has its hash, so pip-audit downloads and builds nothing. PyPI knows torch without +cpu.
  .venv-audit/bin/pip-audit --progress-spinner off --strict --disable-pip --require-hashes \
    -r <(sed 's/+cpu / /' "requirements/$set.txt") || status=1
done
exit $status
