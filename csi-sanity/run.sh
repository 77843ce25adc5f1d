#!/usr/bin/env bash
# Runs csi-sanity v5.5.0 against the driver in mode `all`, over the local
# Object Storage, with real mounts:
#
#   csi-sanity/run.sh [csi-sanity flags]
#
# Installs csi-sanity with the Go toolchain. As root it runs in a mount namespace
# of its own, otherwise in a user namespace. skips.txt lists the allowed skips
# with their reasons; any other skip fails the run.
set -euo pipefail

VERSION=v5.5.0
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
bin="${OCI_MODEL_CSI_CACHE:-$HOME/.cache/oci-model-csi}/bin"
target="${CARGO_TARGET_DIR:-$root/target}/debug"

if [ "${1:-}" != --inside ]; then
    if [ ! -x "$bin/csi-sanity-$VERSION" ]; then
        echo "csi-sanity: installing $VERSION" >&2
        mkdir -p "$bin"
        build="$(mktemp -d)"
        GOBIN="$build" GOFLAGS=-p=2 \
            go install "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$VERSION"
        mv "$build/csi-sanity" "$bin/csi-sanity-$VERSION"
        rmdir "$build"
    fi
    (cd "$root" && cargo build --quiet --bins)
    if [ "$(id -u)" = 0 ]; then
        exec unshare --mount --propagation private "$here/run.sh" --inside "$@"
    fi
    exec unshare --user --map-root-user --mount --propagation private "$here/run.sh" --inside "$@"
fi
shift

work="$(mktemp -d)"
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    { findmnt -rn -o TARGET | grep -F "$work/" || true; } | while read -r mount; do umount "$mount"; done
    chmod -R u+w "$work" && rm -rf "$work"
}
trap cleanup EXIT

mkdir -p "$work/root/models/tiny" "$work/kubelet/pods/sanity"
echo '{"model_type": "tiny"}' >"$work/root/models/tiny/config.json"
head -c 3000000 /dev/urandom >"$work/root/models/tiny/model.safetensors.bin"
"$target/localstore" serve --root "$work/root" --write-config "$work/oci" \
    --ready-file "$work/ready.json" >/dev/null &
pids+=($!)
for _ in $(seq 100); do [ -s "$work/ready.json" ] && break; sleep 0.1; done
endpoint="$(sed 's/.*"endpoint":"\([^"]*\)".*/\1/' "$work/ready.json")"

# The machine that runs tests may be fuller than a node should be.
echo 'cache: {minFree: 1%, minFreeInodes: 0%}' >"$work/config.yaml"
"$target/oci-model-csi" all --csi-endpoint "unix://$work/csi.sock" --node-id sanity \
    --cache-dir "$work/cache" --kubelet-dir "$work/kubelet" --config "$work/config.yaml" \
    --auth api_key --config-file "$work/oci/config" --oci-endpoint "$endpoint" \
    2>"$work/driver.log" &
pids+=($!)
for _ in $(seq 100); do [ -S "$work/csi.sock" ] && break; sleep 0.1; done
[ -S "$work/csi.sock" ] || { cat "$work/driver.log" >&2; exit 1; }

printf 'bucket: models\nprefix: tiny/\n' >"$work/parameters.yaml"
status=0
"$bin/csi-sanity-$VERSION" --ginkgo.no-color --ginkgo.timeout=10m \
    --ginkgo.json-report="$work/report.json" \
    --csi.endpoint="unix://$work/csi.sock" \
    --csi.mountdir="$work/kubelet/pods/sanity/mount" \
    --csi.stagingdir="$work/kubelet/pods/sanity/staging" \
    --csi.testvolumeparameters="$work/parameters.yaml" \
    --csi.testvolumesize=10485760 "$@" || status=$?
if [ "$status" != 0 ]; then
    echo "csi-sanity: the driver's log:" >&2
    cat "$work/driver.log" >&2
fi
if [ $# -gt 0 ]; then
    echo "csi-sanity: run with extra flags, so its skips are not compared with skips.txt" >&2
else
    "$here/skipped.py" "$work/report.json" "$here/skips.txt" || status=1
fi
exit "$status"
