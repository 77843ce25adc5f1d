#!/usr/bin/env bash
# Shows the driver on this machine, without Kubernetes and without an account: a
# local Object Storage serves a model, the driver runs as on a node, and
# `examples/kubelet.rs` plays kubelet for three pods.
#
#   demo/run.sh        (or: make demo)
#
# Needs cargo, curl, coreutils and util-linux, and root or user namespaces. All
# mounts are in the demo's own mount namespace and end with it. With CI=true the
# model is small. The demo uses the development build: an optimized one takes
# minutes longer, and the throttled store is the limit here anyway.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ "${CI:-}" = true ]; then
    shard_mib=8 rate_mib=16
else
    shard_mib=75 rate_mib=30
fi
programs="${CARGO_TARGET_DIR:-$root/target}/debug"

if [ "${1:-}" != --inside ]; then
    for tool in cargo curl findmnt unshare; do
        command -v "$tool" >/dev/null || { echo "demo: $tool is missing" >&2; exit 1; }
    done
    echo "Building the driver and the local Object Storage ..."
    (cd "$root" && cargo build --quiet --bins --example kubelet)
    namespaces=(--mount --propagation private)
    if [ "$(id -u)" != 0 ]; then
        namespaces+=(--user --map-root-user)
        unshare "${namespaces[@]}" true 2>/dev/null || {
            echo "demo: this machine allows no user namespaces; run it as root" >&2
            exit 1
        }
    fi
    exec timeout --kill-after=10 180 unshare "${namespaces[@]}" "$root/demo/run.sh" --inside
fi

# From here on, the script runs in the namespace.
exec 3>&1
work="$(mktemp -d)"
pids=()
cleanup() {
    status=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
    if [ "$status" != 0 ]; then
        echo "demo: failed; the driver's log:" >&2
        tail -20 "$work/driver.log" >&2 || true
    fi
    # The mounts of pods, if a step failed between publish and unpublish.
    { findmnt -rn -o TARGET | grep -F "$work/" || true; } | while read -r path; do
        umount "$path" || true
    done
    chmod -R u+w "$work" && rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

heading() { printf '\n== %s\n' "$*"; }
show() { printf '   $ %s\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }
indent() { sed 's/^/   /'; }
now_ms() { date +%s%3N; }
duration() {
    if [ "$1" -lt 1000 ]; then echo "$1 ms"; else printf '%d.%02d s\n' $(($1 / 1000)) $(($1 % 1000 / 10)); fi
}
# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local tries=$(($1 * 10)) what="$2"
    shift 2
    until "$@" 2>/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "timed out waiting for $what"
        sleep 0.1
    done
}
kubelet() {
    "$programs/examples/kubelet" "$@" --socket "$work/csi.sock" --kubelet-dir "$work/kubelet"
}
# field NAME: a string field of the line of JSON on stdin.
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
# GETs of objects that Object Storage has answered so far.
gets() {
    { curl -fsS "$endpoint/_localstore/stats" | grep -o '"get":{[^}]*}' || true; } |
        { grep -o ':[0-9]*' || true; } | tr -d : | paste -sd+ | sed 's/^$/0/' | { read -r sum; echo $((sum)); }
}
shard_file() { printf '%s/model-%05d-of-00004.safetensors' "$model" "$1"; }
# write_shard NUMBER FILE: a safetensors header (its length, then JSON), then the tensor's bytes.
write_shard() {
    local bytes=$((shard_mib << 20)) header length
    header="$(printf '{"layer.%d":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' "$1" $bytes $bytes)"
    length="$(printf '\\x%02x' "${#header}")\\0\\0\\0\\0\\0\\0\\0"
    { printf '%b%s' "$length" "$header"; head -c $bytes /dev/urandom; } >"$2"
}
# Bytes of objects that Object Storage has sent so far.
sent() { curl -fsS "$endpoint/_localstore/stats" | sed 's/.*"body_bytes":\([0-9]*\).*/\1/'; }

heading "A model in a bucket of a local Object Storage"
model="$work/store/ai-models/models/demo-7b"
mkdir -p "$model" "$work/kubelet/pods"
for shard in 1 2 3 4; do write_shard "$shard" "$(shard_file "$shard")"; done
echo '{"model_type": "demo", "num_hidden_layers": 4}' >"$model/config.json"
echo '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}' >"$model/tokenizer.json"
(cd "$model" && ls -lh | awk 'NR > 1 {print $5 "\t" $9}') | indent
"$programs/localstore" serve --root "$work/store" --write-config "$work/oci" \
    --ready-file "$work/ready.json" >/dev/null &
pids+=($!)
wait_for 20 "the local Object Storage" test -s "$work/ready.json"
endpoint="$(field endpoint <"$work/ready.json")"
echo "   oci://ai-models/models/demo-7b/ at $endpoint, throttled to $rate_mib MiB/s; requests are signed"
curl -fsS -o /dev/null "$endpoint/_localstore/faults" -d \
    "{\"match\": {\"operation\": \"get\"}, \"action\": {\"bandwidth\": {\"bytes_per_sec\": $((rate_mib << 20))}}}"

heading "The driver, as on a node"
# A small reserve for the demo; a node keeps more of its disk free.
echo 'cache: {minFree: 64MiB, minFreeInodes: 0%}' >"$work/config.yaml"
show "oci-model-csi all --csi-endpoint unix:///csi/csi.sock --auth api_key --config config.yaml ..."
"$programs/oci-model-csi" all --node-id demo --config "$work/config.yaml" \
    --csi-endpoint "unix://$work/csi.sock" --admin-endpoint "unix://$work/admin.sock" \
    --cache-dir "$work/cache" --kubelet-dir "$work/kubelet" \
    --auth api_key --config-file "$work/oci/config" --oci-endpoint "$endpoint" 2>"$work/driver.log" &
pids+=($!)
ready() { curl -fsS --unix-socket "$work/admin.sock" http://localhost/readyz >/dev/null; }
wait_for 20 "the driver" ready
echo "   ready"

heading "The first pod: a download"
show "kubelet publish --pod vllm-0 --bucket ai-models --prefix models/demo-7b/"
echo "   (each call has a deadline of 4 s instead of kubelet's two minutes: the download continues"
echo "    when a call ends, and the next call joins it)"
started="$(now_ms)"
first="$(kubelet publish --pod vllm-0 --bucket ai-models --prefix models/demo-7b/ --deadline 4 2>&3)"
first_ms=$(($(now_ms) - started))
downloads="$(gets)"
[ "$downloads" -gt 0 ] || fail "the first pod downloaded nothing"
echo "   published after $(duration "$first_ms"), with $downloads GETs"

heading "The second pod: the same bytes, no download"
show "kubelet publish --pod vllm-1 --bucket ai-models --prefix models/demo-7b/"
started="$(now_ms)"
second="$(kubelet publish --pod vllm-1 --bucket ai-models --prefix models/demo-7b/)"
second_ms=$(($(now_ms) - started))
echo "   published after $(duration "$second_ms"), with $(($(gets) - downloads)) GETs"
[ "$(gets)" = "$downloads" ] || fail "the second pod downloaded something"
[ "$second_ms" -lt "$first_ms" ] || fail "a hit took as long as a download"

heading "What the pods see"
show "findmnt; ls; touch; stats"
for target in "$first" "$second"; do
    findmnt -rn -o TARGET,OPTIONS "$target" | sed "s|$work||" | indent
    findmnt -rn -o OPTIONS "$target" | tr , '\n' | grep -qx ro || fail "$target is not read-only"
    diff -r "$model" "$target" >/dev/null || fail "$target differs from the bucket"
done
(cd "$first" && ls -l | awk 'NR > 1 {print $1 "  " $3 "  " $5 "\t" $9}') | indent
if written="$(touch "$second/new" 2>&1)"; then fail "$second is writable"; fi
sed "s|$work||" <<<"$written" | indent
kubelet stats --pod vllm-0 | indent

heading "The node's cache: one copy, and who holds it"
show "find cache; curl --unix-socket admin.sock http://localhost/status"
(cd "$work/cache" && find blobs models -links +1 -type f -printf '%n links  inode %-9i %11s bytes  %p\n') |
    sed -E 's/[0-9a-f]{48,}/<digest>/g' | sort -k4n -k7 | indent
du -sh "$work/cache" | sed "s|$work||" | indent
curl -fsS --unix-socket "$work/admin.sock" http://localhost/status |
    grep -o '"pod":"[^"]*"' | sort | indent

heading "One shard changes in the bucket: only that one is downloaded"
shard="$(basename "$(shard_file 1)")"
old="$(sha256sum <"$first/$shard")"
write_shard 1 "$work/new" && mv "$work/new" "$(shard_file 1)"
before="$(sent)"
show "kubelet publish --pod vllm-2 --bucket ai-models --prefix models/demo-7b/"
third="$(kubelet publish --pod vllm-2 --bucket ai-models --prefix models/demo-7b/)"
received=$(($(sent) - before))
echo "   published with $((received >> 20)) MiB received, of $(du -sm --apparent-size "$model" | cut -f1) MiB"
[ "$received" -lt $(((shard_mib + 1) << 20)) ] || fail "more than the shard was downloaded"
diff -r "$model" "$third" >/dev/null || fail "the third pod does not see the new model"
[ "$(sha256sum <"$first/$shard")" = "$old" ] ||
    fail "the model changed under a running pod"
echo "   vllm-0 and vllm-1 keep the revision that they started with"

heading "The pods end; the model stays for the next one"
for pod in vllm-0 vllm-1 vllm-2; do
    show "kubelet unpublish --pod $pod"
    kubelet unpublish --pod "$pod"
done
if findmnt -rn -o TARGET | grep -qF "$work/"; then fail "a mount is left"; fi
[ -z "$(ls -A "$work/kubelet/pods")" ] || fail "a pod's directory is left"
[ -z "$(ls -A "$work/cache/leases")" ] || fail "a lease is left"
echo "   no mount, no lease; $(du -sh "$work/cache" | cut -f1) in the cache"

heading "Done: $(duration "$first_ms") for the first pod, $(duration "$second_ms") for the second"
