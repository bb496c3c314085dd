#!/usr/bin/env bash
# audit.sh: what is known against the locked packages (pip-audit), and an SBOM of each set in CycloneDX's form.
# Exit status 1 on a finding, and where a package could not be looked up: nothing counts as sound that was not asked about.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv-audit/bin/cyclonedx-py ]]; then
  rm -rf .venv-audit
  .venv/bin/python -m venv .venv-audit && requirements/install.sh .venv-audit audit || exit 1
fi
mkdir -p sbom
status=0
for set in build torch-cpu cpu dev peers mlflow torch-cuda tensorflow-cuda audit export; do
  .venv-audit/bin/cyclonedx-py requirements "requirements/$set.txt" --output-reproducible --short-PURLs -o "sbom/$set.json" || status=1
  echo "$set: $(grep -c '==' "requirements/$set.txt") packages, sbom/$set.json"
  # Each line of a set has its hash, so nothing is downloaded or built to find out what it is. PyPI knows torch without +cpu.
  .venv-audit/bin/pip-audit --progress-spinner off --strict --disable-pip --require-hashes \
    -r <(sed 's/+cpu / /' "requirements/$set.txt") || status=1
done
exit $status
