# Sourced by the scripts of this directory: builds a release, and sets $root, $programs (where the
# release is), $venv (with the Python tools) and $work (a directory that is removed at the end).
# shellcheck shell=bash
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
programs="${CARGO_TARGET_DIR:-$root/target}/release"

(cd "$root" && cargo build --locked --quiet --release --bins)
venv="$("$root/tests/tools.sh")"
if [ -n "${BENCH_DIR:-}" ]; then mkdir -p "$BENCH_DIR"; fi
work="$(mktemp -d -p "${BENCH_DIR:-${TMPDIR:-/tmp}}")"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# Runs a module of this directory where it may mount, with the arguments that all of them take.
measure() {
    local module="$1"
    shift
    PYTHONPATH="$root/benches:$root/tests/clients" OCI_MODEL_CSI_BIN="$programs/oci-model-csi" \
        unshare --mount --propagation private "$venv/bin/python" -m "$module" \
        --programs "$programs" --tools "$venv/bin" --directory "$work" --rounds "${ROUNDS:-5}" "$@"
}
