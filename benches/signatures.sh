#!/usr/bin/env bash
# Prints how many requests a core can sign in a second, and which part of the CPU time of a download
# at full speed goes into signatures: the time of one, as criterion measures it, times the requests.
#
#   benches/signatures.sh                 (or: make signatures)
#
# You can set ROUNDS (default 5) and BENCH_DIR (default: a new directory below $TMPDIR, with 4 GB
# free). Needs root. Not part of .ci/run, because the results are only valid on an idle machine.
set -euo pipefail
# shellcheck source=benches/prepare.sh
. "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"

(cd "$root" && cargo bench --locked --package pure-benches -- "signature of a request" >&2)
estimates="$(find "$programs/../criterion" -path '*signature of a request*/new/estimates.json' -print -quit)"
measure compare.signatures --estimates "$estimates"
