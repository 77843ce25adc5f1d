"""The programs that transfer models, and the measuring of them in turn."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from .store import MIB

RANGES = 4
ENVIRONMENT = {"SUPPRESS_LABEL_WARNING": "True", "OCI_CLI_SUPPRESS_FILE_PERMISSIONS_WARNING": "True"}
OURS, CURL, RCLONE, OCI = "oci-model-csi fetch", "curl, 4 ranges", "rclone", "oci bulk-download"
FLOOR = "floor"
PUSH, RCLONE_UP, OCI_UP = "oci-model-csi push", "rclone", "oci bulk-upload"


def same_memory(program):
    """Gives every program the same memory: free, in large pieces, with the program's own files in the page cache.
    In the pieces that curl leaves behind, the next program takes 1.3 times as long, whichever it is."""
    os.sync()
    for knob, value in (("drop_caches", "1"), ("compact_memory", "1")):
        file = Path("/proc/sys/vm") / knob
        if file.exists():
            file.write_text(value)
    question = ["os", "object", "bulk-download", "--help"] if program.name == "oci" else ["--version"]
    # The floor has no such question, and fails.
    subprocess.run([program, *question], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=os.environ | ENVIRONMENT)


def bulk_download(tools, store, bucket, prefix, directory, *flags):
    """The command of the oci CLI that downloads a prefix."""
    return [tools / "oci", "--config-file", store.config, "--endpoint", store.endpoint,
            *(["--cert-bundle", store.ca_file] if store.ca_file else []),
            "os", "object", "bulk-download", "-ns", store.namespace, "-bn", bucket, "--prefix", prefix,
            "--dest-dir", directory, *flags]


def measured(batches):
    """Runs batches of commands, and returns wall, CPU, memory and output; see measure.py."""
    request = {"environment": ENVIRONMENT,
               "batches": [[[str(word) for word in command] for command in batch] for batch in batches]}
    measure = Path(__file__).with_name("measure.py")
    answer = subprocess.run([sys.executable, "-S", "-E", measure], input=json.dumps(request), text=True,
                            stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout)


class Programs:
    def __init__(self, given):
        self.given, self.out = given, given.directory / "out"

    def fetch(self, store, bucket, _files, *arguments):
        ca = ["--ca-file", store.ca_file] if store.ca_file else []
        return [[[self.given.programs / "oci-model-csi", "fetch", f"oci://{bucket}@{store.namespace}/m/",
                  self.out / "m", "--config-file", store.config, "--oci-endpoint", store.endpoint, *ca, *arguments]]]

    def curl(self, store, bucket, files):
        """Large objects one after the other, in four ranges at once, which stay separate files:
        joining them would cost curl extra time. All small ones in one call."""
        ca = ["--cacert", store.ca_file] if store.ca_file else []
        small = ["curl", "-fsS", "--parallel", *ca]
        batches = []
        for name, size in files:
            url = store.url(bucket, name)
            if size < 16 * MIB:
                small += ["-o", self.out / name, url]
                continue
            step = size // RANGES
            ends = [*(step * n for n in range(1, RANGES)), size]
            batches.append([["curl", "-fsS", *ca, "-r", f"{step * n}-{end - 1}", "-o", self.out / f"{name}.{n}", url]
                            for n, end in enumerate(ends)])
        return batches + ([[small]] if "-o" in small else [])

    def rclone_config(self, store):
        config = self.given.directory / "rclone.conf"
        config.write_text("[oos]\n" + "".join(f"{key} = {value}\n" for key, value in {
            "type": "oracleobjectstorage", "provider": "user_principal_auth", "namespace": store.namespace,
            "region": "us-ashburn-1", "endpoint": store.endpoint, "compartment": "ocid1.compartment.oc1..x",
            "config_file": store.config, "config_profile": "DEFAULT"}.items()))
        return config

    def rclone(self, store, bucket, files):
        config = self.rclone_config(store)
        ca = ["--ca-cert", store.ca_file] if store.ca_file else []
        many = ["--transfers", "16"] if len(files) > 100 else []
        return [[[self.given.tools / "rclone", "--config", config, "copy", f"oos:{bucket}/m", self.out / "m",
                  *ca, *many]]]

    def oci_cli(self, store, bucket, _files):
        return [[bulk_download(self.given.tools, store, bucket, "m/", self.out, "--overwrite")]]

    def floor(self, store, bucket, files):
        """The least that a verified download can do: crates/model-cache/examples/floor.rs."""
        paths = (word for name, size in files
                 for word in (store.url(bucket, name).removeprefix(store.endpoint), str(size)))
        return [[[self.given.programs / "examples" / "floor", store.endpoint.removeprefix("http://"), self.out, *paths]]]

    def push(self, store, bucket, source, prefix, *arguments):
        return [[[self.given.programs / "oci-model-csi", "push", source, f"oci://{bucket}@{store.namespace}/{prefix}/",
                  "--config-file", store.config, "--oci-endpoint", store.endpoint, *arguments]]]

    def rclone_up(self, store, bucket, source, prefix):
        return [[[self.given.tools / "rclone", "--config", self.rclone_config(store), "copy", source,
                  f"oos:{bucket}/{prefix}"]]]

    def bulk_upload(self, store, bucket, source, prefix):
        """Without --overwrite it asks for each object first whether it is there."""
        return [[[self.given.tools / "oci", "--config-file", store.config, "--endpoint", store.endpoint,
                  "os", "object", "bulk-upload", "-ns", store.namespace, "-bn", bucket, "--src-dir", source,
                  "--object-prefix", f"{prefix}/", "--overwrite"]]]

    def uploads(self):
        return {PUSH: self.push, RCLONE_UP: self.rclone_up, OCI_UP: self.bulk_upload}

    def everyone(self):
        return {OURS: self.fetch, CURL: self.curl, RCLONE: self.rclone, OCI: self.oci_cli}

    def run(self, batches, complete=()):
        """Runs batches of commands in an empty directory, and checks that all bytes arrive."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        same_memory(Path(batches[0][0][0]))
        found = measured(batches)
        arrived = sum(file.stat().st_size for file in self.out.rglob("*") if file.is_file())
        if arrived < sum(size for _, size in complete):
            raise SystemExit(f"{batches[0][0][0]}: only {arrived} bytes arrived")
        return found

    def compare(self, store, bucket, files, programs, rounds):
        """Medians of wall, CPU and memory by program, which take turns."""
        return in_turn(programs, rounds, lambda _, commands: self.run(commands(store, bucket, files), files))


def in_turn(programs, rounds, run):
    """Medians of wall, CPU and memory by program; `run` takes its name and what `programs` has."""
    runs = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found = run(name, program)
            runs[name].append([found[key] for key in ("wall", "cpu", "memory")])
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in runs.items()}
