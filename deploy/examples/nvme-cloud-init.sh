#!/usr/bin/env bash
# Custom cloud-init script of an OKE node pool whose shape has local NVMe drives:
# formats them as one file system, mounts it at /mnt/models, and joins the cluster.
# docs/nodes.md describes how to use it, and what was tried.
#
#   MODEL_DRIVES="/dev/nvme0n1 /dev/nvme1n1"    in place of all NVMe drives
#   MODEL_MOUNT=/mnt/models                     where to mount
#   MODEL_JOIN=no                               do not join a cluster
set -euo pipefail

mount_point="${MODEL_MOUNT:-/mnt/models}"
label=models

# The boot volume of an OCI instance is no NVMe device.
drives=()
if [ -n "${MODEL_DRIVES:-}" ]; then
    read -r -a drives <<<"$MODEL_DRIVES"
else
    while read -r name kind; do
        [ "$kind" = disk ] && [[ "$name" == /dev/nvme* ]] && drives+=("$name")
    done < <(lsblk --nodeps --noheadings --paths --output NAME,TYPE)
fi
if [ ${#drives[@]} -eq 0 ]; then
    echo "no NVMe drive: does this shape have local ones?" >&2
    exit 1
fi

# A drive with anything on it keeps it: the file system of an earlier run is found by its label.
if ! blkid --label "$label" >/dev/null; then
    for drive in "${drives[@]}"; do
        if [ -n "$(wipefs --noheadings "$drive")" ]; then
            echo "$drive is not empty: wipefs --all $drive, if it may be erased" >&2
            exit 1
        fi
    done
    target="${drives[0]}"
    if [ ${#drives[@]} -gt 1 ]; then
        # RAID 0: the fastest level, and a lost cache can be downloaded again.
        target=/dev/md/models
        mdadm --create "$target" --run --level=0 --raid-devices=${#drives[@]} "${drives[@]}"
    fi
    mkfs.xfs -q -L "$label" "$target"
fi

# nofail: a node with a failed drive still boots. The driver then does not start on it
# (requireMount), so that it never fills the boot volume.
mkdir -p "$mount_point"
grep -q "^LABEL=$label " /etc/fstab || echo "LABEL=$label $mount_point xfs defaults,noatime,nofail 0 2" >>/etc/fstab
mountpoint -q "$mount_point" || mount "$mount_point"

[ "${MODEL_JOIN:-yes}" = yes ] || exit 0

# Oracle Linux does not grow the boot volume's file system to the size that the node pool asks for.
[ ! -x /usr/libexec/oci-growfs ] || /usr/libexec/oci-growfs -y

# OKE's own script. Add --kubelet-extra-args for a startup taint (docs/nodes.md).
curl --fail --silent --show-error -H "Authorization: Bearer Oracle" -L0 \
    http://169.254.169.254/opc/v2/instance/metadata/oke_init_script | base64 --decode >/var/run/oke-init.sh
bash /var/run/oke-init.sh
