#!/usr/bin/env bash
# Builds the programs that a cluster runs, and prints their directory:
# bin/ (Kubernetes, etcd, csi-provisioner, the sidecars' replacement, helm,
# kustomize), runtime/ (containerd, runc and CNI plugins, unpacked from Debian's
# packages, not installed) and packages/.
#
#   CLUSTER_TOOLS="$(tests/cluster/build.sh)"
#
# Each part is kept in ~/.cache/oci-model-csi by the digest of its sources.
# Concurrent calls wait for the first. Needs Go, apt-get and dpkg.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${OCI_MODEL_CSI_CACHE:-$HOME/.cache/oci-model-csi}"

KUBERNETES=v1.35.4
debian=(
    containerd=1.6.20~ds1-1+deb12u3
    runc=1.1.5+ds1-1+deb12u1
    containernetworking-plugins=1.1.1+ds1-3+b5
    busybox-static=1:1.35.0-4+deb12u1+b1
)

mkdir -p "$cache"
exec 9>"$cache/cluster-tools.lock"
flock 9

export CGO_ENABLED=0 GOTOOLCHAIN=local

# part NAME DIGEST COMMAND...: prints the directory of a part. If it is missing, the
# command makes it in a directory of its own.
part() {
    local name="$1" digest="$2" directory
    shift 2
    directory="$cache/cluster-$name-$digest"
    if [ ! -e "$directory/complete" ]; then
        rm -rf "$directory" "$directory.new"
        mkdir -p "$directory.new"
        echo "cluster: making $name" >&2
        local started=$SECONDS
        "$@" "$directory.new" >&2
        touch "$directory.new/complete"
        mv "$directory.new" "$directory"
        echo "cluster: made $name in $((SECONDS - started)) s" >&2
    fi
    echo "$directory"
}

digest_of() { cat "$@" | sha256sum | cut -c1-16; }

# go_build MODULE DIRECTORY LDFLAGS PACKAGE...: named as the last part of the path.
go_build() {
    local module="$1" into="$2" flags="$3" package name
    shift 3
    for package in "$@"; do
        name="${package##*/}"
        [ "$package" != go.etcd.io/etcd/server/v3 ] || name=etcd
        (cd "$here/$module" && nice go build -p 2 -buildvcs=false -mod=readonly -trimpath \
            -ldflags "-s -w $flags" -o "$into/$name" "$package")
    done
}

kubernetes() {
    local version=k8s.io/component-base/version commands=k8s.io/kubernetes/cmd minor="${KUBERNETES#v1.}"
    local flags="-X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=${minor%.*} -X $version.gitTreeState=clean"
    go_build build-kubernetes "$1" "$flags" go.etcd.io/etcd/server/v3 "$commands"/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl,kubelet}
}

provisioner() {
    go_build build-provisioner "$1" "" github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
}

sidecars() { go_build build-sidecars "$1" "" oci-model-csi.dev/tests/cluster/sidecars; }

runtime() {
    local into="$1" package
    # The lists may be older than the archive; and the archive drops a version once
    # it has the next.
    if ! (cd "$into" && apt-get download "${debian[@]}"); then
        apt-get update -qq
        if ! (cd "$into" && apt-get download "${debian[@]}"); then
            echo "cluster: WARNING: not all of ${debian[*]} are in the archive any more; taking what it has" >&2
            (cd "$into" && apt-get download "${debian[@]%%=*}")
        fi
    fi
    for package in "$into"/*.deb; do
        dpkg -x "$package" "$into"
        rm "$package"
    done
}

script="$(digest_of "${BASH_SOURCE[0]}")"
parts=(
    "$(part runtime "$(printf '%s\n' "${debian[@]}" | digest_of -)" runtime)"
    "$(part kubernetes "$({ echo "$KUBERNETES"; cat "$here"/build-kubernetes/go.*; } | digest_of -)" kubernetes)"
    "$(part provisioner "$(digest_of "$here"/build-provisioner/go.*)" provisioner)"
    "$(part sidecars "$(digest_of "$here"/build-sidecars/*)" sidecars)"
)
deploy="$("$here/../deploy/tools.sh")"

all="$cache/cluster-$({ echo "$script" "${parts[@]}" "$deploy"; } | digest_of -)"
if [ ! -e "$all/complete" ]; then
    rm -rf "$all"
    mkdir -p "$all/bin"
    ln -s "${parts[0]}" "$all/runtime"
    for directory in "${parts[@]:1}"; do
        for program in "$directory"/*; do
            [ "${program##*/}" = complete ] || ln -sf "$program" "$all/bin/"
        done
    done
    ln -sf "$deploy"/{helm,kustomize} "$all/bin/"
    touch "$all/complete"
fi
echo "$all"
