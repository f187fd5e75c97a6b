#!/bin/sh
# Builds the components in this folder from plugins/, without line tables and for size, and without a path of the
# machine in them. Run it in the workspace's root after a new version of the interface or of one of the plugins.
set -eu
root=$(pwd)
out=target/company
flags="--remap-path-prefix=$root=."
flags="$flags --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
flags="$flags --remap-path-prefix=${RUSTUP_HOME:-$HOME/.rustup}=/rustup"
export RUSTFLAGS="$flags"
export CARGO_PROFILE_RELEASE_STRIP=true CARGO_PROFILE_RELEASE_OPT_LEVEL=s
export CARGO_PROFILE_RELEASE_LTO=true CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
for plugin in backprop policy-gradient modular-arithmetic cartpole reinforce-baseline; do
  cargo rustc --release --lib --crate-type cdylib --target wasm32-wasip2 --target-dir "$out" \
    --manifest-path "plugins/$plugin/Cargo.toml"
  file=espalier_plugin_$(echo "$plugin" | tr - _).wasm
  cp "$out/wasm32-wasip2/release/$file" "host/runtime/company/$plugin.wasm"
done
