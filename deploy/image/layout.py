#!/usr/bin/env python3
"""Packs root file systems as an image in an OCI layout, in a tar file:

    layout.py --output IMAGE.tar --name NAME:TAG --version V --revision R ARCH=DIRECTORY…

One layer per architecture. Nothing depends on when, where and by whom it is
run: names are sorted, owners are root, and times are SOURCE_DATE_EPOCH.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import tarfile
from datetime import datetime, timezone
from pathlib import Path

OCI = "application/vnd.oci.image"
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def entry(name, mode, data=None):
    made = tarfile.TarInfo(name)
    made.mode, made.mtime = mode, EPOCH
    if data is None:
        made.type = tarfile.DIRTYPE
    else:
        made.size = len(data)
    return made, None if data is None else io.BytesIO(data)


def archive(entries):
    """A tar file of (name, mode, content), where None is a directory."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in entries:
            tar.addfile(*entry(*one))
    return packed.getvalue()


def tree(directory):
    """The entries of a directory, parents before what is in them."""
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise SystemExit(f"image: {path} is neither a file nor a directory")
        if path.is_dir():
            yield name, 0o755, None
        else:
            yield name, 0o755 if path.stat().st_mode & 0o100 else 0o644, path.read_bytes()


class Layout:
    """The blobs, by digest."""

    def __init__(self):
        self.blobs = {}

    def add(self, kind, data, **more):
        if not isinstance(data, bytes):
            data = json.dumps(data, indent=1).encode() + b"\n"
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data), **more}

    def image(self, arch, directory, labels):
        layer = archive(tree(directory))
        config = {
            "created": labels["org.opencontainers.image.created"],
            "architecture": arch,
            "os": "linux",
            "config": {
                # `kubectl exec … oci-model-csi cache ls` finds it by its name.
                "Env": ["PATH=/usr/bin"],
                "Entrypoint": ["/usr/bin/oci-model-csi"],
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        packed = gzip.compress(layer, compresslevel=9, mtime=0)
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.add("config.v1+json", config),
            "layers": [self.add("layer.v1.tar+gzip", packed)],
            "annotations": labels,
        }
        return self.add("manifest.v1+json", manifest, platform={"architecture": arch, "os": "linux"})


def main():
    parser = argparse.ArgumentParser()
    for option in ("--output", "--name", "--version", "--revision"):
        parser.add_argument(option, required=True)
    parser.add_argument("systems", nargs="+")
    args = parser.parse_args()
    created = datetime.fromtimestamp(EPOCH, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {
        "org.opencontainers.image.title": "oci-model-csi",
        "org.opencontainers.image.description": "AI models from OCI Object Storage as shared, verified, read-only volumes",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": args.version,
        "org.opencontainers.image.revision": args.revision,
        "org.opencontainers.image.created": created,
    }
    layout = Layout()
    images = []
    for system in args.systems:
        arch, _, directory = system.partition("=")
        images.append(layout.image(arch, Path(directory), labels))
    # One architecture is named by itself; several by an index of them.
    top = images[0]
    if len(images) > 1:
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": images}
        top = layout.add("index.v1+json", index)
    tag = args.name.rpartition(":")[2]
    named = {"io.containerd.image.name": args.name, "org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [{**top, "annotations": named}]}
    entries = [
        ("oci-layout", 0o644, b'{"imageLayoutVersion": "1.0.0"}\n'),
        ("index.json", 0o644, json.dumps(index, indent=1).encode() + b"\n"),
        ("blobs", 0o755, None),
        ("blobs/sha256", 0o755, None),
        *((f"blobs/sha256/{digest}", 0o644, data) for digest, data in sorted(layout.blobs.items())),
    ]
    Path(args.output).write_bytes(archive(entries))
    layers = sum(blob["size"] for digest in images for blob in json.loads(layout.blobs[digest["digest"][7:]])["layers"])
    print(f"{args.output}: {args.name} {top['digest']}, {layers / 2**20:.1f} MiB of layers")


if __name__ == "__main__":
    main()
