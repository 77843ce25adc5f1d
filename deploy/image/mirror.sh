#!/usr/bin/env bash
# Copies the images of the sidecars, and on demand the driver's, to a registry that nodes reach, and
# prints the chart's values that name them there by their digests:
#
#   deploy/image/mirror.sh REGISTRY/PATH [--driver SOURCE] >mirror-values.yaml
#
#   deploy/image/mirror.sh fra.ocir.io/mytenancy --driver oci-archive:oci-model-csi.tar >mirror-values.yaml
#   helm upgrade --install ... --values mirror-values.yaml
#
# SOURCE is an image as skopeo names it. Needs skopeo, logged in to the registry, on a machine that
# also reaches the registry of the sidecars. If it is interrupted, run it again.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] && [[ "$1" != -* ]] || usage
registry="${1%/}" driver=""
shift
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] && [ "$1" = --driver ] || usage
    driver="$2"
    shift 2
done
case "$registry" in
    *://*) echo "mirror: write $registry without ${registry%%://*}://, as in fra.ocir.io/mytenancy" >&2; exit 2 ;;
    */*) ;;
    *) echo "mirror: $registry has no path: in OCIR it is your tenancy's namespace, as in fra.ocir.io/mytenancy" >&2; exit 2 ;;
esac
command -v skopeo >/dev/null || { echo "mirror: skopeo is missing: install Debian's skopeo" >&2; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# copy SOURCE PATH:TAG: copies all architectures, and leaves the digest in $digest.
copy() {
    echo "mirror: $1 to $registry/$2" >&2
    skopeo copy --all --digestfile "$work/digest" "$1" "docker://$registry/$2" >&2
    digest="$(cat "$work/digest")"
}

values="imageRegistry: $registry"
if [ -n "$driver" ]; then
    version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)"
    copy "$driver" "oci-model-csi:$version"
    # The chart of a release names its image, which the registry would not replace.
    values+=$'\n'"image: {repository: \"\", digest: \"$digest\"}"
fi
values+=$'\nsidecars:'
# The images of the chart's defaults, of which the kustomization is a copy.
while read -r image; do
    case "$image" in
        */csi-node-driver-registrar:*) key=nodeDriverRegistrar ;;
        */livenessprobe:*) key=livenessProbe ;;
        */csi-provisioner:*) key=provisioner ;;
        *) echo "mirror: $image is an image without a value in the chart" >&2; exit 1 ;;
    esac
    copy "docker://$image" "${image#*/}"
    values+=$'\n'"  $key: {image: {digest: \"$digest\"}}"
done < <(sed -n 's/^ *image: \(.*\/sig-storage\/.*\)$/\1/p' "$root"/deploy/kustomize/base/*.yaml | sort -u)
echo "$values"
