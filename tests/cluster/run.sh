#!/usr/bin/env bash
# Starts a Kubernetes cluster of one node in namespaces of its own, installs
# this driver into it and runs the scenarios:
#
#   tests/cluster/run.sh [pytest arguments]          (make e2e, make e2e-core)
#   tests/cluster/run.sh --check                     whether this machine can have one
#
# Needs root, Debian's apt-get and dpkg, Go, Rust, gcc, Python, openssl, ip and
# nsenter. Nothing is installed and nothing of the cluster is left, however
# this ends. State is kept in a scratch directory below $TMPDIR.
#
#   E2E_CLUSTER=DIRECTORY   keeps the cluster there and uses it again; end it with
#                           E2E_CLUSTER=DIRECTORY tests/cluster/run.sh --down
#   E2E_IMAGE=FILE          an image of deploy/image/build.sh in place of a new one,
#                           named localhost/oci-model-csi:e2e
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$(dirname "$here")")"
target="${CARGO_TARGET_DIR:-$root/target}"
cache="${OCI_MODEL_CSI_CACHE:-$HOME/.cache/oci-model-csi}"

[ "$(id -u)" = 0 ] || { echo "cluster: needs root: kubelet and runc do" >&2; exit 1; }
for tool in apt-get dpkg cargo gcc go ip nsenter openssl setpriv unshare; do
    command -v "$tool" >/dev/null || { echo "cluster: $tool is missing" >&2; exit 1; }
done

# kubelet needs to create cgroups, and the cluster needs namespaces.
possible() {
    local at=/sys/fs/cgroup probe
    [ -e "$at/cgroup.controllers" ] || at="$at/memory"
    probe="$at/oci-model-csi-probe-$$"
    mkdir "$probe" && rmdir "$probe" && unshare --mount --net --pid --uts --ipc --fork --kill-child mount -t tmpfs tmpfs /mnt
}
if ! why="$(possible 2>&1)"; then
    echo "cluster: no cgroups or namespaces can be made here: $why" >&2
    exit 1
fi
[ "${1:-}" != --check ] || exit 0

scratch="${E2E_CLUSTER:-}"
if [ -z "$scratch" ]; then
    scratch="$(mktemp -d -t oci-model-csi-cluster.XXXXXX)"
else
    mkdir -p "$scratch"
    scratch="$(cd "$scratch" && pwd)"
fi
# This cluster has its own cgroups: kubelet removes those of pods that it does not know.
group="oci-model-csi-$(printf %s "$scratch" | sha256sum | cut -c1-12)"

holder() { cat "$scratch/holder.pid" 2>/dev/null; }
alive() {
    local pid
    pid="$(holder)" && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$here/init.sh $scratch"
}

# Ends the cluster's first process, which ends all its processes, mounts and its
# network. Then removes its empty cgroups and its files.
down() {
    local pid tries
    if alive; then
        pid="$(holder)"
        kill -KILL "$pid"
        for ((tries = 0; tries < 100; tries++)); do [ -e "/proc/$pid" ] || break; sleep 0.1; done
    fi
    for ((tries = 0; tries < 20; tries++)); do
        find /sys/fs/cgroup -depth -type d -path "*/$group*" -exec rmdir {} + 2>/dev/null || true
        [ -n "$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$group")" ] || break
        sleep 0.2
    done
    rm -rf --one-file-system "$scratch"
}

if [ "${1:-}" = --down ]; then
    down
    exit
fi
[ -n "${E2E_CLUSTER:-}" ] || trap down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

started=$SECONDS
venv="$("$root/tests/tools.sh" "$here/requirements.txt")"
tools="$(PYTHON="$venv/bin/python" "$here/build.sh")"

# The program in the image is linked statically. The development build shares its
# crates with the tests', except those that the workspace builds with other
# features. The release build (profile dist) takes minutes more.
image="${E2E_IMAGE:-$scratch/oci-model-csi.tar}"
build="${E2E_IMAGE:+the one that was given}"
if [ ! -e "$image" ]; then
    (cd "$root" && cargo rustc --quiet --locked --bin oci-model-csi -- \
        -C target-feature=+crt-static -C strip=symbols)
    cp "$target/debug/oci-model-csi" "$scratch/oci-model-csi"
    "$root/deploy/image/build.sh" "$image" --name localhost/oci-model-csi:e2e --binary "$scratch/oci-model-csi"
fi
(cd "$root" && cargo build --quiet --locked --bins)

packages="$cache/cluster-images-$({ cat "$here/images.py" "$here/requirements.txt"; echo "$tools"; } | sha256sum | cut -c1-16)"
"$venv/bin/python" "$here/images.py" --tools "$tools" --output "$packages"
echo "figure: built everything that a cluster needs in $((SECONDS - started)) s"

if ! alive; then
    rm -f "$scratch/holder.pid"
    # A cluster that is not kept ends with this shell, even with SIGKILL.
    tied=()
    [ -n "${E2E_CLUSTER:-}" ] || tied=(setpriv --pdeathsig KILL)
    "${tied[@]}" unshare --mount --net --pid --uts --ipc --fork --kill-child \
        bash "$here/init.sh" "$scratch" </dev/null >"$scratch/init.log" 2>&1 &
    unshared=$!
    for _ in $(seq 100); do [ -e "$scratch/ready" ] && break; sleep 0.1; done
    [ -e "$scratch/ready" ] || { cat "$scratch/init.log" >&2; exit 1; }
    tr -d ' ' <"/proc/$unshared/task/$unshared/children" >"$scratch/holder.pid"
    # Not a job of this shell, so that the shell prints nothing when it is killed.
    disown
fi

in_cluster=(nsenter --target "$(holder)" --mount --net --pid --uts --ipc env -C "$here")
status=0
env -u http_proxy -u https_proxy -u HTTP_PROXY -u HTTPS_PROXY \
    E2E_SCRATCH="$scratch" E2E_TOOLS="$tools" E2E_IMAGE="$image" E2E_IMAGES="$packages" E2E_CGROUP="$group" \
    E2E_BUILD="${build:-a development build}" \
    LOCALSTORE_BIN="$target/debug/localstore" \
    "${in_cluster[@]}" "$venv/bin/python" -m pytest "$@" &
wait $! || status=$?
exit "$status"
