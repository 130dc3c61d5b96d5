#!/usr/bin/env bash
# Installs into .tools what the tests of deploy/ need from PyPI, at exact versions: the linters, and an environment with
# nothing but the images' packages. nginx, caddy and promtool come from Debian (.ci/run); without them tests are skipped.
set -euo pipefail
exec </dev/null
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
into=${CLINVK_TEST_TOOLS:-$root/.tools}
uv=$root/.venv/bin/uv
export UV_CACHE_DIR=$into/cache UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1
if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX=$PIP_INDEX_URL; fi
mkdir -p "$into"
echo '*' >"$into/.gitignore"

environment() {
  local env=$into/$1 lock=$2
  cmp -s "$lock" "$env/.made-of" && return
  echo "installing the $1 of deploy/ into .tools"
  "$uv" venv --quiet --clear --python "$root/.venv/bin/python" "$env"
  "$uv" pip sync --quiet --require-hashes --python "$env/bin/python" "$lock"
  cp "$lock" "$env/.made-of"
}

environment linters "$here/tools.txt"
environment packages "$root/deploy/requirements.lock"
