#!/usr/bin/env bash
# Builds the image's files, for the Dockerfile and for build.sh:
#
#   deploy/image/rootfs.sh amd64|arm64 DIRECTORY [BINARY]
#
# Compiles the driver unless BINARY is given. The binary is linked statically
# with glibc, which resolves names with only /etc/resolv.conf and /etc/hosts, and
# whose allocator suits many threads. IMAGE_PROFILE is the Cargo profile, by default
# `dist`.
# arm64 on another machine needs gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$(dirname "$here")")"
arch="$1" into="$2" binary="${3:-}"
certificates="${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}"

case "$arch" in
    amd64) target=x86_64-unknown-linux-gnu gcc=x86_64-linux-gnu-gcc ;;
    arm64) target=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu-gcc ;;
    *) echo "image: $arch is neither amd64 nor arm64" >&2; exit 2 ;;
esac
[ -s "$certificates" ] || { echo "image: $certificates is missing: install ca-certificates" >&2; exit 1; }

if [ -z "$binary" ]; then
    command -v "$gcc" >/dev/null || { echo "image: $gcc is missing: install gcc for $arch" >&2; exit 1; }
    upper="$(tr a-z- A-Z_ <<<"$target")"
    # The binary contains no path of this machine, so that all machines build the same one.
    cargo_home="${CARGO_HOME:-$HOME/.cargo}" output="${CARGO_TARGET_DIR:-$root/target}"
    export "CARGO_TARGET_${upper}_LINKER=$gcc"
    export "CARGO_TARGET_${upper}_RUSTFLAGS=-C target-feature=+crt-static --remap-path-prefix=$root=/src --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$output=/target"
    export "CC_${target//-/_}=$gcc"
    export "CFLAGS_${target//-/_}=-ffile-prefix-map=$cargo_home=/cargo"
    profile="${IMAGE_PROFILE:-dist}"
    (cd "$root" && CARGO_TARGET_DIR="$output" cargo build --locked --profile "$profile" --bin oci-model-csi --target "$target")
    # Cargo's directory for `dev` has another name.
    binary="$output/$target/${profile/#dev/debug}/oci-model-csi"
fi

rm -rf "$into"
mkdir -p "$into"/{etc/ssl/certs,licenses,usr/bin}
install -m 0755 "$binary" "$into/usr/bin/oci-model-csi"
install -m 0644 "$certificates" "$into/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$into/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$into/etc/group"
install -m 0644 "$root/LICENSE" "$into/licenses/LICENSE"
install -m 0644 "$(cd "$root" && rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html" "$into/licenses/rust-std.html"
"$here/licenses.py" --target "$target" --sbom "$into/licenses/sbom.cdx.json" --notices "$into/licenses/THIRD-PARTY.txt"
