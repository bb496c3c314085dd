#!/usr/bin/env bash
# setup.sh [SET]: makes .venv from the hash-locked requirements, or .venv-SET for the set peers, export, docs or audit. It does nothing
# where the environment already holds them. PYTHON names the interpreter to use; it must be a Python 3.11.
set -euo pipefail
if [[ -e /opt/image.digest ]]; then  # in an image, which has all packages but those of the sets
  [[ -n ${1:-} ]] || exit 0
  echo "ERROR: This needs the packages of requirements/$1.txt, which no image has. Run it on the host, outside the container." >&2
  exit 1
fi
unset CDPATH
for variable in "${!PYTHON@}"; do [[ $variable =~ ^PYTHON(|DONTWRITEBYTECODE|PYCACHEPREFIX)$ ]] || unset "$variable"; done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv${1:+-$1}
read -ra sets <<<"${1:-torch-cpu cpu dev}"

say() { printf 'setup: %s\n' "$*" >&2; }
is_311() { [[ $("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == 3.11 ]]; }
instead='Or run everything in a container, with Docker alone: docker compose run --rm cpu'

packages=$venv/lib/python3.11/site-packages
entries() { ls "$packages" | grep -v '[.]dist-info$\|^__pycache__$'; }  # the modules, each a folder or a file

digest=$(for set in build "${sets[@]}"; do cat "requirements/$set.txt"; done | cat - requirements/install.sh | sha256sum | cut -d' ' -f1)
if [[ $(cat "$venv/requirements.sha256" 2>/dev/null) == "$digest" ]] && is_311 "$venv/bin/python"; then
  missing=$(comm -23 "$venv/modules.txt" <(entries | LC_ALL=C sort) 2>&1 | head -n 3 | tr '\n' ' ')
  [[ -z $missing ]] || say "$venv lacks ${missing}and is made again"
fi
if [[ ${missing-none} == '' ]]; then
  [[ ! -e "$venv/bin/dvc" ]] || cmp -s requirements/dvc "$venv/bin/dvc" || install -m 755 requirements/dvc "$venv/bin/dvc"
  exit 0
fi

if [[ $(uname -sm) != 'Linux x86_64' ]]; then
  say "The locked requirements are for Linux on x86_64; this is $(uname -sm). $instead"
  exit 1
fi
if [[ -n ${PYTHON:-} ]] && ! is_311 "$PYTHON"; then
  say "PYTHON=$PYTHON is not a Python 3.11. Name one that is. $instead"
  exit 1
fi
# shellcheck source=requirements/uv.sh
if ! source requirements/uv.sh; then
  say "uv, which installs the requirements, could not be set up. Install Python 3.11 with pip and venv. $instead"
  exit 1
fi
if [[ -z ${PYTHON:-} ]] && ! PYTHON=$("$uv" python find -q --no-project --system cpython@3.11); then
  say "No Python 3.11 found: uv downloads one into .venv-uv"
  if ! "$uv" python install -q --no-bin cpython@3.11 || ! PYTHON=$("$uv" python find -q --no-project --managed-python cpython@3.11); then
    say "uv could not install Python 3.11. Install Python 3.11, or name it: make setup PYTHON=/path/to/python3.11. $instead"
    exit 1
  fi
fi

say "installing the locked requirements into $venv"
rm -rf "$venv"  # of other requirements, or of a set-up that was interrupted before it wrote its stamp, which is last
PYTHON=$PYTHON requirements/install.sh "$venv" "${sets[@]}"
# The imports check what was installed, and compile the bytecode of what DVC and the pipeline import. To compile all 23,000 files
# takes more than twice as long; to leave it to the first run saves nothing, and a user with PYTHONDONTWRITEBYTECODE would wait for it
# in every process.
unset PYTHONDONTWRITEBYTECODE
case ${1:-} in
  peers)
    echo ../../../../.venv/lib/python3.11/site-packages >"$packages/project.pth"  # JAX beside all that .venv has
    modules=(jax) ;;
  export) modules=("mlcroissant, rocrate") ;;
  docs) modules=("mkdocs, material") ;;
  audit) modules=("pip_audit, cyclonedx_py") ;;
  *) modules=(tensorflow "mlflow, mlflow.store.tracking.sqlalchemy_store, torch, matplotlib.pyplot" "ray, pytest") ;;
esac
imports=()
for names in "${modules[@]}"; do
  "$venv/bin/python" -c "import $names" >/dev/null 2>"$venv/import-${#imports[@]}.log" &
  imports+=($!)
done
if [[ -z ${1:-} ]]; then
  "$venv/bin/python" -m compileall -q "$packages"/{dvc,dvc_data,dvc_objects,scmrepo,dulwich,ruamel,networkx,pathspec,fsspec,sqltrie,funcy} || true
fi
for at in "${!imports[@]}"; do
  if ! wait "${imports[$at]}"; then
    say "$venv is not complete, run make setup again: import ${modules[$at]}: $(tail -n 1 "$venv/import-$at.log")"
    exit 1
  fi
done
rm "$venv"/import-*.log
entries | LC_ALL=C sort >"$venv/modules.txt"
printf '%s\n' "$digest" >"$venv/requirements.sha256"
