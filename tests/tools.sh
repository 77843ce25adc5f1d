#!/usr/bin/env bash
# Makes a virtual environment with the Python tools of a file of requirements,
# tests/clients/requirements.txt if none is named, and prints its path:
#
#   venv="$(tests/tools.sh)" && "$venv/bin/pytest" tests/clients
#
# The path has the digest of the requirements, so that a change makes another
# environment and an unchanged one is found at once. Concurrent calls wait for the
# first. May also be sourced: then $OCI_MODEL_CSI_TOOLS is the path.

oci_model_csi_tools() (
    set -euo pipefail
    directory="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
    requirements="${1:-$directory/clients/requirements.txt}"
    cache="${OCI_MODEL_CSI_CACHE:-$HOME/.cache/oci-model-csi}"
    python="${PYTHON:-python3}"
    # Another Python needs other wheels.
    digest="$({ cat "$requirements"; "$python" --version; } | sha256sum | cut -c1-16)"
    venv="$cache/venv-$digest"
    mkdir -p "$cache"
    exec 9>"$venv.lock"
    flock 9
    # The marker is written last: without it the environment is incomplete.
    if [ ! -e "$venv/complete" ]; then
        rm -rf "$venv"
        echo "tools: installing $requirements into $venv" >&2
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --requirement "$requirements" >&2
        touch "$venv/complete"
    fi
    echo "$venv"
)

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    oci_model_csi_tools "$@"
else
    OCI_MODEL_CSI_TOOLS="$(oci_model_csi_tools)"
    export OCI_MODEL_CSI_TOOLS
fi
