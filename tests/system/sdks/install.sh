#!/usr/bin/env bash
# Installs the SDKs that the tests drive, at exact versions, into .sdks: each Python client in an environment of its
# own, the Node ones together, go-openai as one program. What is there already in its right version costs nothing.
# Caches lie in .sdks too, so that nothing is asked of HOME.
set -euo pipefail
exec </dev/null
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../../..")
into=${CLINVK_TEST_SDKS:-$root/.sdks}
uv=$root/.venv/bin/uv
export UV_CACHE_DIR=$into/cache/uv UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1 npm_config_cache=$into/cache/npm npm_config_update_notifier=false
export GOPATH=$into/cache/gopath GOCACHE=$into/cache/go GOFLAGS="-mod=mod -modcacherw -buildvcs=false" GOTOOLCHAIN=local
if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX=$PIP_INDEX_URL; fi
mkdir -p "$into"
echo '*' >"$into/.gitignore"

missing() {
  if [ -n "${CLINVK_REQUIRE:-}" ]; then
    echo "$1 is missing, and CLINVK_REQUIRE is set" >&2
    exit 1
  fi
  echo "$1 is missing: $2 will be skipped"
}

# Whether the folder was made of these files: it keeps a copy of each.
fresh() {
  local folder=$1 file
  shift
  for file in "$@"; do cmp -s "$file" "$folder/.made-of/$(basename "$file")" || return 1; done
}

keep() {
  local folder=$1
  shift
  mkdir -p "$folder/.made-of"
  cp "$@" "$folder/.made-of/"
}

for lock in "$here"/python/*.txt; do
  name=$(basename "$lock" .txt)
  env=$into/python/$name
  fresh "$env" "$lock" && continue
  echo "installing the Python SDK $name into .sdks"
  "$uv" venv --quiet --clear --python "$root/.venv/bin/python" "$env"
  "$uv" pip sync --quiet --python "$env/bin/python" "$lock"
  keep "$env" "$lock"
done

if ! command -v npm >/dev/null; then
  missing npm "the Node SDKs"
elif ! fresh "$into/node" "$here/package.json" "$here/package-lock.json"; then
  echo "installing the Node SDKs into .sdks"
  mkdir -p "$into/node"
  cp "$here/package.json" "$here/package-lock.json" "$into/node/"
  (cd "$into/node" && npm ci --no-audit --no-fund --loglevel=error)
  keep "$into/node" "$here/package.json" "$here/package-lock.json"
fi

if ! command -v go >/dev/null; then
  missing go "go-openai"
elif ! fresh "$into/go" "$here"/go/*; then
  echo "building the go-openai program into .sdks"
  mkdir -p "$into/go"
  cp "$here"/go/* "$into/go/"
  (cd "$into/go" && go build -o client .)
  keep "$into/go" "$here"/go/*
fi
