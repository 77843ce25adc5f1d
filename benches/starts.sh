#!/usr/bin/env bash
# Compares the start of a pod with `oci os object bulk-download` in an init container and with
# oci-model-csi on the local Object Storage, also under faults, and writes docs/bulk-download.md.
#
#   benches/starts.sh [--seed N] [--starts N] [--containers N] [--print] [table|faults]   (or: make starts)
#
# Both parts run unless you name one, and write their figures into docs/bulk-download.md, or only
# print them with --print. The exit status is 1 if a start failed. You can set ROUNDS (default 5) and
# BENCH_DIR (default: a new directory below $TMPDIR, with 4 GB free). Needs root, for the mounts of the
# driver. Not part of .ci/run, because the results are only valid on an idle machine; sixty starts are
# part of `make clients`.
set -euo pipefail
# shellcheck source=benches/prepare.sh
. "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"

measure starts --report "$root/docs/bulk-download.md" "$@"
