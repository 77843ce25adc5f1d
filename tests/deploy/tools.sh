#!/usr/bin/env bash
# Builds helm, kustomize, kubeconform, actionlint, promtool and the evaluator of Terraform
# modules with the Go toolchain, makes the Kubernetes schemas, and prints the directory that
# has them all:
#
#   DEPLOY_TOOLS="$(tests/deploy/tools.sh)" pytest tests/deploy
#
# Everything is kept in ~/.cache/oci-model-csi. Concurrent calls wait for
# the first. Needs Go and Python 3 with PyYAML ($PYTHON).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${OCI_MODEL_CSI_CACHE:-$HOME/.cache/oci-model-csi}"

# name, version, package, build tags
tools=(
    helm v4.3.1 helm.sh/helm/v4/cmd/helm ''
    kustomize v5.8.2 sigs.k8s.io/kustomize/kustomize/v5 ''
    kubeconform v0.8.0 github.com/yannh/kubeconform/cmd/kubeconform ''
    actionlint v1.7.12 github.com/rhysd/actionlint/cmd/actionlint ''
    # Without service discovery, which is most of promtool and which no check needs.
    promtool v0.316.0 github.com/prometheus/prometheus/cmd/promtool remove_all_sd
)

mkdir -p "$cache/bin"
exec 9>"$cache/deploy-tools.lock"
flock 9

digest="$(cat "$here/tools.sh" "$here/schemas.py" "$here"/terraform/{main.go,go.mod,go.sum} | sha256sum | cut -c1-16)"
all="$cache/deploy-$digest"
if [ ! -e "$all/complete" ]; then
    rm -rf "$all"
    mkdir -p "$all"
    for ((i = 0; i < ${#tools[@]}; i += 4)); do
        name="${tools[i]}" version="${tools[i + 1]}" package="${tools[i + 2]}" tags="${tools[i + 3]}"
        if [ ! -x "$cache/bin/$name-$version" ]; then
            echo "deploy-test: building $name $version" >&2
            build="$(mktemp -d)"
            CGO_ENABLED=0 GOBIN="$build" GOFLAGS=-p=2 nice go install -trimpath -tags "$tags" \
                -ldflags '-s -w' "$package@$version" >&2
            mv "$build/$name" "$cache/bin/$name-$version"
            rmdir "$build"
        fi
        ln -s "$cache/bin/$name-$version" "$all/$name"
    done
    (cd "$here/terraform" && CGO_ENABLED=0 GOFLAGS=-p=2 nice go build -trimpath -o "$all/terraform-evaluate" .) >&2
    "${PYTHON:-python3}" "$here/schemas.py" "$all/schemas" >&2
    touch "$all/complete"
fi
echo "$all"
