#!/usr/bin/env bash
# Builds the image of the Dockerfile without Docker, as an OCI layout in a tar
# file that containerd, podman, skopeo and crane take:
#
#   deploy/image/build.sh IMAGE.tar [--name NAME:TAG] [--arch amd64,arm64] [--binary FILE]
#
#   ctr --namespace k8s.io images import IMAGE.tar
#
# The same sources and tools produce the same image. All times are
# SOURCE_DATE_EPOCH, by default the time of the last commit.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$(dirname "$here")")"
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] && [[ "$1" != -* ]] || usage
output="$1"
shift
version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)"
name="localhost/oci-model-csi:$version" archs="" binary=""
case "$(uname -m)" in x86_64) archs=amd64 ;; aarch64) archs=arm64 ;; esac
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case "$1" in
        --name) name="$2" ;;
        --arch) archs="$2" ;;
        --binary) binary="$2" ;;
        *) usage ;;
    esac
    shift 2
done
if [ -n "$binary" ] && [[ "$archs" = *,* ]]; then
    echo "image: --binary is of one architecture; name it with --arch" >&2
    exit 2
fi

revision="$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

systems=()
for arch in ${archs//,/ }; do
    "$here/rootfs.sh" "$arch" "$work/$arch" "$binary"
    systems+=("$arch=$work/$arch")
done
"$here/layout.py" --output "$output" --name "$name" --version "$version" --revision "$revision" "${systems[@]}"
