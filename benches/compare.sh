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
# shellcheck source=benches/prepare.sh
. "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"

(cd "$root" && cargo build --locked --quiet --release -p oci-model-csi-model-cache --example floor)
measure compare --report "$root/docs/performance.md" "$@"
