#!/usr/bin/env bash
# Does `wkg` pull what `espalier plugin publish` pushes, byte for byte, and can espalier add what `wkg` pushes?
# Not part of CI: wkg brings some 500 crates. Needs docker-registry (Debian) and wkg (cargo install wkg) on the PATH.
#
#     cargo build --release && tests/wkg.sh target/release/espalier plugins/magnitude
set -euo pipefail
espalier=$(realpath "$1")
plugin=$(realpath "$2")
work=$(mktemp -d)
port=5891
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cat > "$work/registry.yml" <<CONFIG
version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: 127.0.0.1:$port }
CONFIG
docker-registry serve "$work/registry.yml" > "$work/registry.log" 2>&1 &
server=$!
sleep 2
export XDG_CONFIG_HOME=$work/config XDG_CACHE_HOME=$work/cache
cd "$work"
printf 'schema = 1\n' > registry.toml
key=$("$espalier" key new --no-password)
"$espalier" key trust "$key" --for '*'

published=$("$espalier" plugin publish "$plugin" --registry "oci://localhost:$port/lab" --json)
field() { printf '%s' "$published" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" | head -n 1; }
name=$(basename "$plugin")
version=$(field version)
digest=$(printf '%s' "$published" | grep -o '"sha256":"[0-9a-f]*"' | head -n 1 | cut -d '"' -f 4)

wkg oci pull --insecure "localhost:$port" "localhost:$port/lab/$name:$version" -o pulled.wasm
echo "$digest  pulled.wasm" | sha256sum --check

wkg oci push --insecure "localhost:$port" "localhost:$port/lab/by-wkg:$version" pulled.wasm
"$espalier" plugin add by-wkg --from "oci://localhost:$port/lab" --licence MIT --sha256 "$digest"
echo "wkg and espalier read each other"
