#!/usr/bin/env bash
# The Rust integration tests. Those that mostly wait, for a download of three
# minutes or for tokens that end, run beside the others, and what they print
# comes at the end. Arguments are for `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

waiting=(deadline faults)

tests=(cargo test --locked --no-fail-fast --workspace)
"${tests[@]}" --test '*' --no-run "$@"

beside=() others=()
for target in tests/*.rs tests/localstore/tests/*; do
    name="$(basename "$target" .rs)"
    if [[ " ${waiting[*]} " == *" $name "* ]]; then beside+=(--test "$name"); else others+=(--test "$name"); fi
done

log="$(mktemp)"
"${tests[@]}" "${beside[@]}" "$@" >"$log" 2>&1 &
running=$!
# Jobs of a script do not see the terminal's interrupt.
trap 'kill "$running" 2>/dev/null || true; rm -f "$log"' EXIT
waited=0 rest=0
"${tests[@]}" "${others[@]}" "$@" || rest=$?
wait "$running" || waited=$?
cat "$log"
exit $((waited ? waited : rest))
