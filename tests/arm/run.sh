#!/usr/bin/env bash
# Compiles the driver for 64-bit ARM with the scripts of the image, and runs it under emulation
# against a local Object Storage:
#
#   tests/arm/run.sh        (or: make arm)
#
# A development build, since the optimized one takes minutes longer. Needs the tools of
# deploy/image/rootfs.sh, Debian's qemu-user, and cargo.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
target="${CARGO_TARGET_DIR:-$root/target}"
fail() { echo "arm: $*" >&2; exit 1; }

work="$(mktemp -d)"
store=""
cleanup() {
    [ -z "$store" ] || kill "$store" 2>/dev/null || true
    wait || true
    rm -rf "$work"
}
trap cleanup EXIT

# Without debug information: it is half of the time.
export CARGO_PROFILE_DEV_DEBUG=none
IMAGE_PROFILE=dev "$root/deploy/image/rootfs.sh" arm64 "$work/rootfs"
unset CARGO_PROFILE_DEV_DEBUG
(cd "$root" && cargo build --locked --quiet --bin localstore)

driver="$work/rootfs/usr/bin/oci-model-csi"
# Bytes 18 and 19 of an ELF file are its machine: 183 is AArch64.
[ "$(od --address-radix=n --skip-bytes=18 --read-bytes=2 --format=u2 "$driver" | tr -d ' ')" = 183 ] ||
    fail "$driver is not for AArch64"
# Nothing of this machine's libraries: it is linked statically, as in the image.
arm() { qemu-aarch64 -L /nonexistent "$driver" "$@"; }

version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)"
[ "$(arm --version)" = "oci-model-csi $version" ] || fail "--version is $(arm --version)"
arm --help | grep -q 'Usage: oci-model-csi' || fail "--help has no usage"

model="$work/store/models/tiny"
mkdir -p "$model"
head -c 3000001 /dev/urandom >"$model/model.gguf"
echo '{"model_type": "tiny"}' >"$model/config.json"
"$target/debug/localstore" serve --root "$work/store" --write-config "$work/oci" --ready-file "$work/ready.json" >/dev/null &
store=$!
for _ in $(seq 200); do [ -s "$work/ready.json" ] && break; sleep 0.1; done
endpoint="$(sed -n 's/.*"endpoint":"\([^"]*\)".*/\1/p' "$work/ready.json")"
access=(--config-file "$work/oci/config" --oci-endpoint "$endpoint")

# Signatures, TLS' crypto library, MD5 in NEON and CRC-32C are the code that differs on ARM.
arm push "$model" oci://models/pushed/ "${access[@]}" --part-size 1MiB >/dev/null
arm ls oci://models/ "${access[@]}" | tee "$work/ls"
grep -q 'pushed/' "$work/ls" || fail "ls does not list the model that was pushed"
for name in tiny pushed; do
    arm fetch "oci://models/$name/" "$work/$name" "${access[@]}"
    cmp "$model/model.gguf" "$work/$name/model.gguf"
    cmp "$model/config.json" "$work/$name/config.json"
done
echo "arm: the driver for AArch64 pushed, listed and fetched a model"
