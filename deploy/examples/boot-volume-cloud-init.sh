#!/usr/bin/env bash
# Custom cloud-init script of an OKE node pool whose shape has no local drives: grows
# the boot volume's file system to the size that the pool asks for, and joins the
# cluster. docs/nodes.md describes both kinds of nodes.
set -euo pipefail

[ ! -x /usr/libexec/oci-growfs ] || /usr/libexec/oci-growfs -y

curl --fail --silent --show-error -H "Authorization: Bearer Oracle" -L0 \
    http://169.254.169.254/opc/v2/instance/metadata/oke_init_script | base64 --decode >/var/run/oke-init.sh
bash /var/run/oke-init.sh
