#!/usr/bin/env bash
# The Rust integration tests: first those that may run beside each other, then,
# file by file, those that measure time or memory and need the machine for themselves.
# Arguments are for the test programs.
#
# cargo-nextest takes 11 minutes to compile on two cores, and runs the unit tests in 35 s where
# cargo test takes 30 s, so it does not pay for itself on a fresh machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

alone=(cache_life::a_hundred_thousand_leftovers doctor_speed:: listeners:: memory:: neighbours:: outage:: priorities::)

# Both packages at once: alone, each would be built with other features of its dependencies.
tests=(cargo test --locked --no-fail-fast --test it)
skips=()
for group in "${alone[@]}"; do skips+=(--skip "$group"); done

failed=0
"${tests[@]}" -- "${skips[@]}" "$@" || failed=$?
for group in "${alone[@]}"; do "${tests[@]}" -- "$group" "$@" || failed=$?; done
exit "$failed"
