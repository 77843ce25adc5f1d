#!/usr/bin/env bash
# The Rust integration tests: first those that may run beside each other, then
# those that measure time or memory and want the machine for themselves.
# Arguments are for the test programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

alone=(listeners:: memory:: neighbours:: outage::)

tests=(cargo test --locked --no-fail-fast)
skips=()
for group in "${alone[@]}"; do skips+=(--skip "$group"); done

failed=0
"${tests[@]}" --package localstore --test it -- "$@" || failed=$?
"${tests[@]}" --package oci-model-csi --test it -- "${skips[@]}" "$@" || failed=$?
"${tests[@]}" --package oci-model-csi --test it -- "${alone[@]}" "$@" || failed=$?
exit "$failed"
