"""The local Object Storage, and the objects of the scenarios."""

import json
import subprocess
import urllib.parse
import urllib.request

MIB = 1 << 20
SHARDS = [(f"model-{n:05}-of-00004.safetensors", 366 * MIB) for n in range(1, 5)]
SMALL = [("config.json", 700), ("generation_config.json", 180), ("tokenizer.json", 9 * MIB),
         ("tokenizer_config.json", 50_000), ("model.safetensors.index.json", 24_000)]


class Store:
    """A local Object Storage. Signatures are accepted and not checked."""

    def __init__(self, programs, directory, *arguments):
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        self.process = subprocess.Popen(
            [programs / "localstore", "serve", "--auth", "off", "--root", self.root,
             "--write-config", directory / "config", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        ready = json.loads(self.process.stdout.readline())
        self.endpoint, self.namespace = ready["endpoint"], ready["namespace"]
        self.config, self.ca_file = ready["config"], ready["ca_file"]
        self.plain = ready["imds"].removesuffix("/opc/v2")

    def admin(self, path, body=None, method=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.plain}/_localstore/{path}", data, method=method)
        return urllib.request.urlopen(request).read()

    def put(self, bucket, files, crc32c=True):
        """Makes synthetic objects; those over 128 MiB have parts of this size, as from bulk-upload."""
        for name, size in files:
            body = {"bucket": bucket, "name": f"m/{name}", "size": size, "seed": len(name), "crc32c": crc32c}
            if size > 128 * MIB:
                body["part_size"] = 128 * MIB
            self.admin("objects", body)

    def put_small(self, bucket, count):
        """Makes different files of 1 KiB."""
        directory = self.root / bucket / "m"
        directory.mkdir(parents=True)
        for n in range(count):
            (directory / f"{n:06}.json").write_bytes(f"{n:06}".encode() * 170 + b"1234")

    def fault(self, action, operation="get", **rule):
        self.admin("faults", {"match": {"operation": operation}, "action": action, **rule})

    def clear_faults(self):
        self.admin("faults", method="DELETE")

    def clear(self):
        self.clear_faults()
        self.clear_stats()

    def clear_stats(self):
        self.admin("stats/reset", {})

    def stats(self):
        return json.loads(self.admin("stats"))

    def url(self, bucket, name, prefix="m/"):
        return f"{self.endpoint}/n/{self.namespace}/b/{bucket}/o/{urllib.parse.quote(prefix + name, safe='')}"

    def take(self, bucket, prefix, files):
        """Deletes objects, and checks that they were there with these sizes."""
        for name, size in files:
            url = self.url(bucket, name, f"{prefix}/")
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
                if int(answer.headers["content-length"]) != size:
                    raise SystemExit(f"{url} has {answer.headers['content-length']} bytes and not {size}")
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE"))

    def stop(self):
        self.process.terminate()
        self.process.wait()
