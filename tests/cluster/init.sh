#!/usr/bin/env bash
# The first process of a cluster's namespaces: init.sh SCRATCH. Makes the
# directories that Kubernetes has by convention appear here and not on the
# machine, and then waits (and reaps).
set -euo pipefail

scratch="$1"
mount --make-rprivate /
mount -t proc proc /proc

# kubelet's settings for the whole machine go to these files.
mkdir -p "$scratch/sysctl"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file="$scratch/sysctl/$(tr / . <<<"${setting%=*}")"
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done

for directory in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs "$directory"; done
for directory in kubelet containerd oci-model-csi; do
    mkdir -p "$scratch/var/$directory" "/var/lib/$directory"
    mount --bind "$scratch/var/$directory" "/var/lib/$directory"
done
# The driver's mounts reach kubelet and the pods.
mount --make-rshared /

hostname node1
ip link set lo up
# The node's address, and that of the Service `kubernetes`: the API server listens
# there itself, so nothing has to be translated.
ip link add node0 type bridge
ip address add 10.97.0.1/24 dev node0
ip address add 10.96.0.1/32 dev node0
ip link set node0 up
ip route add default via 10.97.0.1 dev node0
touch "$scratch/ready"

trap : TERM INT
while :; do
    sleep 1000000 &
    wait $! || true
done
