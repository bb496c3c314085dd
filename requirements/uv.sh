# uv.sh, which the scripts beside it source: sets `uv` to the path of a locked uv, and gives uv the settings of the user's pip.
# uv goes into .venv-uv, from its hash-locked requirement, by any Python 3.8 or newer.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv=$root/.venv-uv/bin/uv
# Without the variables by which `pip config` would list one file alone, or ask another Python's pip.
pip_config() { env -u PIP_USER -u PIP_GLOBAL -u PIP_SITE -u PIP_PYTHON "$root/.venv-uv/bin/python" -m pip --disable-pip-version-check config list; }
pip_setting() {  # pip_setting OPTION…: pip's value, from its variables, or from the section [install] or [global] of its files
  local section option value
  for section in :env: install global; do
    for option in "$@"; do
      value=$(sed -n "s/^$section\.$option=.\(.*\).$/\1/p" <<<"$pip_settings")  # in quotes; several values are several lines
      [[ -z $value ]] || { value=${value//'\n'/ } && printf '%s\n' "${value# }" && return; }
    done
  done
}
if [[ ! -x $uv ]] || ! cmp -s "$root/requirements/uv.txt" "$root/.venv-uv/uv.txt"; then
  rm -rf "$root/.venv-uv"
  for python in "${PYTHON:-python3.11}" python3.11 python3 python; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && break
  done || { echo "ERROR: no Python was found (looked for python3.11, python3 and python), and uv needs one of 3.8 or newer." >&2 && return 1; }
  # Downloaded and unpacked, not installed: where the user's pip would install it is a matter of the user's settings.
  "$python" -m venv "$root/.venv-uv" && pip_settings=$(pip_config) && (
    # pip's settings that say where packages come from stay. Others, such as a constraint, could change what is downloaded.
    places=()
    for option in index-url extra-index-url find-links no-index trusted-host keyring-provider timeout default-timeout retries cert client-cert proxy; do
      value=$(pip_setting "$option") variable=PIP_${option^^}
      [[ -z $value ]] || places+=("${variable//-/_}=$value")
    done
    for variable in "${!PIP_@}"; do unset "$variable"; done
    env PIP_CONFIG_FILE=/dev/null "${places[@]}" "$root/.venv-uv/bin/python" -m pip --disable-pip-version-check download -qq --no-deps \
      --only-binary :all: --require-hashes -r "$root/requirements/uv.txt" -d "$root/.venv-uv/wheel"
  ) &&
    "$root/.venv-uv/bin/python" -m zipfile -e "$root"/.venv-uv/wheel/uv-*.whl "$root/.venv-uv/wheel" &&
    install -m 755 "$root"/.venv-uv/wheel/uv-*.data/scripts/uv "$uv" && rm -r "$root/.venv-uv/wheel" &&
    cp "$root/requirements/uv.txt" "$root/.venv-uv" || return 1
fi

# Settings of uv that say where packages come from and how they are fetched stay. Others could change what is installed, or where.
for variable in ${!UV_@}; do
  case $variable in
    UV_*CACHE* | UV_*CERT* | UV_*INDEX* | UV_*MIRROR | UV_CONCURRENT_* | UV_HTTP_* | UV_FIND_LINKS | UV_INSECURE_HOST | \
      UV_KEYRING_PROVIDER | UV_LINK_MODE | UV_NATIVE_TLS | UV_OFFLINE) ;;
    *) unset "$variable" ;;
  esac
done
# All indexes are asked, as pip does: the hashes decide what is installed, so no index can slip in another file.
export UV_NO_CONFIG=1 UV_INDEX_STRATEGY=unsafe-best-match UV_PYTHON_INSTALL_DIR=$root/.venv-uv/python

pip_settings=$(pip_config) || return 1
setting() { [[ -n ${!1:-} || -z $2 ]] || export "$1=$2"; }  # setting VARIABLE VALUE: unless the user has set VARIABLE
setting UV_DEFAULT_INDEX "${UV_INDEX_URL:-$(pip_setting index-url)}"
setting UV_INDEX "${UV_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}"
setting UV_FIND_LINKS "$(pip_setting find-links | tr ' ' ,)"
setting UV_NO_INDEX "$(pip_setting no-index)"
setting UV_INSECURE_HOST "$(pip_setting trusted-host)"
setting UV_KEYRING_PROVIDER "$(pip_setting keyring-provider | grep -x subprocess)"
setting UV_HTTP_TIMEOUT "$(pip_setting timeout default-timeout | cut -d. -f1)"
setting UV_HTTP_RETRIES "$(pip_setting retries)"
setting UV_SYSTEM_CERTS "${UV_NATIVE_TLS:-1}"  # as pip
setting SSL_CERT_FILE "$(pip_setting cert)"
setting SSL_CLIENT_CERT "$(pip_setting client-cert)"
setting ALL_PROXY "$(pip_setting proxy)"
