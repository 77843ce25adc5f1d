#!/usr/bin/env bash
# Builds all files of a release, and publishes nothing:
#
#   deploy/release.sh DIRECTORY [--tag vX.Y.Z] [--repository REGISTRY/NAME] [--arch amd64,arm64] [--binary FILE]
#
#   oci-model-csi-X.Y.Z.tar        the image, an OCI layout
#   oci-model-csi-X.Y.Z.tgz        the chart; with --repository it names the image there
#   oci-model-csi-X.Y.Z-ARCH.cdx.json, …-ARCH.licenses.txt    the image's SBOM and licences
#   SHA256SUMS                     of all of these
#
# Needs helm ($HELM) and the tools of image/build.sh. It refuses a tag or a chart
# of another version than Cargo.toml's, and a tag without a section in CHANGELOG.md.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
refuse() { echo "release: $1" >&2; exit 1; }

[ $# -ge 1 ] && [[ "$1" != -* ]] || usage
output="$1"
shift
tag="" repository="" archs=amd64,arm64 binary=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case "$1" in
        --tag) tag="$2" ;;
        --repository) repository="$2" ;;
        --arch) archs="$2" ;;
        --binary) binary=(--binary "$2") ;;
        *) usage ;;
    esac
    shift 2
done

version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)"
chart="$here/helm/oci-model-csi"
[ -z "$tag" ] || [ "$tag" = "v$version" ] ||
    refuse "the tag is $tag, and the version in Cargo.toml is $version"
for key in version appVersion; do
    found="$(sed -n "s/^$key: \"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" "$chart/Chart.yaml")"
    [ "$found" = "$version" ] || refuse "$key in Chart.yaml is $found, and the version in Cargo.toml is $version"
done
grep -q "^## \[$version\]" "$root/CHANGELOG.md" || [ -z "$tag" ] ||
    refuse "CHANGELOG.md has no section [$version]"

mkdir -p "$output"
output="$(cd "$output" && pwd)"
[ -z "$(ls -A "$output")" ] || refuse "$output is not empty"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

image="$output/oci-model-csi-$version.tar"
"$here/image/build.sh" "$image" --name "${repository:-localhost/oci-model-csi}:$version" --arch "$archs" "${binary[@]}"
for arch in ${archs//,/ }; do
    case "$arch" in amd64) target=x86_64 ;; arm64) target=aarch64 ;; *) refuse "no architecture $arch" ;; esac
    "$here/image/licenses.py" --target "$target-unknown-linux-gnu" \
        --sbom "$output/oci-model-csi-$version-$arch.cdx.json" \
        --notices "$output/oci-model-csi-$version-$arch.licenses.txt"
done

# The chart names no image until one is published.
cp -r "$chart" "$work/oci-model-csi"
if [ -n "$repository" ]; then
    sed -i "0,/^  repository: \"\"\$/s||  repository: \"$repository\"|" "$work/oci-model-csi/values.yaml"
    grep -qxF "  repository: \"$repository\"" "$work/oci-model-csi/values.yaml" || refuse "values.yaml has no image.repository"
fi
"${HELM:-helm}" package "$work/oci-model-csi" --destination "$output" >/dev/null

cd "$output"
sha256sum -- oci-model-csi-* >SHA256SUMS
cat SHA256SUMS
