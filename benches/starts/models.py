"""The models that the pods want, and the comparison of what a directory has with them."""

import hashlib
import urllib.request
from dataclasses import dataclass

BUCKET = "models"
SMALL = {"config.json": 700, "tokenizer.json": 2_000_003, "tokenizer_config.json": 50_000}


@dataclass(frozen=True)
class Model:
    """A prefix, and the SHA-256 of each of its files."""

    prefix: str
    size: int
    digests: dict

    def is_in(self, directory):
        """Whether a directory has these files, and no others."""
        return digests_of(directory) == self.digests


def digest(file):
    return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(directory):
    found = {}
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(directory))] = digest(file)
    return found


def upload(store, name, shards, crc32c=True):
    """Stores a model with shards of these sizes. Its objects have CRC-32Cs as those of `push`, or MD5s only as those
    of `oci os object bulk-upload`."""
    prefix = f"{name}/"
    sizes = {f"pytorch_model-{n:05}-of-{len(shards):05}.bin": size for n, size in enumerate(shards, 1)} | SMALL
    digests = {}
    for file, size in sizes.items():
        part = {"part_size": 128 << 20} if size > 128 << 20 else {}
        # Equal bytes would be one download.
        seed = int.from_bytes(hashlib.sha256((prefix + file).encode()).digest()[:6], "big")
        store.admin("objects", {"bucket": BUCKET, "name": prefix + file, "size": size, "seed": seed, "crc32c": crc32c, **part})
        with urllib.request.urlopen(store.url(BUCKET, file, prefix)) as body:
            digests[file] = stream_digest(body)
    return Model(prefix, sum(sizes.values()), digests)


def stream_digest(body):
    found = hashlib.sha256()
    while piece := body.read(1 << 20):
        found.update(piece)
    return found.hexdigest()
