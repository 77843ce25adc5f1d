#!/usr/bin/env bash
# Runs the Rust integration tests: first those that may run in parallel, then
# those that measure time or memory and need the machine for themselves.
# Arguments go to the test programs.
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
