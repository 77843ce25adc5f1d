#!/usr/bin/env bash
# Compares the speed of `oci-model-csi fetch` and curl: 1.5 GB in four objects
# from the local Object Storage, without signatures.
#
#   benches/fetch.sh [DIRECTORY]      (or: make bench)
#
# The files go to DIRECTORY, by default a new one below $TMPDIR; the result names
# its file system. You can set ROUNDS (default 5) and OBJECT_MIB (default 366).
# Not part of .ci/run, because the results are only valid on an idle machine.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
programs="${CARGO_TARGET_DIR:-$root/target}/release"
object_mib="${OBJECT_MIB:-366}"

(cd "$root" && cargo build --quiet --release --bins)
if [ $# -gt 0 ]; then mkdir -p "$1"; fi
work="$(mktemp -d -p "${1:-${TMPDIR:-/tmp}}")"
store=
cleanup() {
    if [ -n "$store" ]; then kill "$store" 2>/dev/null || true; fi
    wait || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

"$programs/localstore" serve --auth off --root "$work/store" --ready-file "$work/ready.json" >/dev/null &
store=$!
for _ in $(seq 100); do
    [ -s "$work/ready.json" ] && break
    sleep 0.1
done
endpoint="$(sed 's/.*"endpoint":"\([^"]*\)".*/\1/' "$work/ready.json")"
namespace="$(sed 's/.*"namespace":"\([^"]*\)".*/\1/' "$work/ready.json")"

# One bucket with CRC-32C checksums, and one as bulk-upload makes it: with only
# the MD5s of parts of 128 MiB.
for number in 1 2 3 4; do
    for bucket in crc32c:true multipart-md5:false; do
        curl -fsS -o /dev/null "$endpoint/_localstore/objects" -d "{
            \"bucket\": \"${bucket%:*}\", \"name\": \"model/shard-$number\", \"seed\": $number,
            \"size\": $((object_mib << 20)), \"part_size\": $((128 << 20)), \"crc32c\": ${bucket#*:}}"
    done
done

echo "4 objects of $object_mib MiB; $(nproc) cores, shared with the server;" \
    "files on $(findmnt -no FSTYPE -T "$work"); $(curl --version | sed -n '1s/\(curl [^ ]*\).*/\1/p')"
python3 "$root/benches/fetch.py" --rounds "${ROUNDS:-5}" --program "$programs/oci-model-csi" \
    --endpoint "$endpoint" --namespace "$namespace" --size $((object_mib << 20)) --directory "$work/files"
