#!/usr/bin/env bash
# Compares oci-model-csi with curl, rclone and the oci CLI on the local Object Storage, and
# writes docs/performance.md with a plot.
#
#   benches/compare.sh [SCENARIO...]      (or: make bench)
#
# Without a scenario all run, and docs/performance.md is written; with some, their figures are
# printed only. `benches/compare.sh list` names them. You can set ROUNDS (default 5) and
# BENCH_DIR (default: a new directory below $TMPDIR, with 12 GB free). Needs root, for the
# mounts of the driver. Not part of .ci/run, because the results are only valid on an idle machine.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
programs="${CARGO_TARGET_DIR:-$root/target}/release"

(cd "$root" && cargo build --locked --quiet --release --bins)
(cd "$root" && cargo build --locked --quiet --release -p oci-model-csi-model-cache --example floor)
venv="$("$root/tests/tools.sh")"
if [ -n "${BENCH_DIR:-}" ]; then mkdir -p "$BENCH_DIR"; fi
work="$(mktemp -d -p "${BENCH_DIR:-${TMPDIR:-/tmp}}")"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

PYTHONPATH="$root/benches:$root/tests/clients" OCI_MODEL_CSI_BIN="$programs/oci-model-csi" \
    unshare --mount --propagation private "$venv/bin/python" -m compare \
    --programs "$programs" --tools "$venv/bin" --directory "$work" --rounds "${ROUNDS:-5}" \
    --report "$root/docs/performance.md" "$@"
