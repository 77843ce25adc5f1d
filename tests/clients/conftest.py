"""A running local Object Storage, and the official clients pointed at it."""

import configparser
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("LOCALSTORE_BIN", REPOSITORY / "target/debug/localstore")
TOOLS = Path(sys.executable).parent
COMPARTMENT = "ocid1.compartment.oc1..x"


class Store:
    """The server process and its admin interface."""

    def __init__(self, directory, *arguments, root=None):
        directory.mkdir()
        self.directory = directory
        self.process = subprocess.Popen(
            [BINARY, "serve", "--root", root or directory / "root",
             "--write-config", directory / "config", *arguments],
            stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, f"{BINARY} did not start: is it built? cargo build -p localstore"
        ready = json.loads(line)
        self.endpoint = ready["endpoint"]
        self.namespace = ready["namespace"]
        self.imds = ready["imds"]
        self.federation = ready["federation"]
        self.config = ready["config"]
        self.ca_file = ready["ca_file"]

    def admin(self, path, body=None):
        """GET, or POST with a body."""
        data = None if body is None else json.dumps(body).encode()
        base = self.imds.removesuffix("/opc/v2")  # http, also where the endpoint is https
        with urllib.request.urlopen(f"{base}/_localstore/{path}", data, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def synthetic(self, bucket, name, size, **options):
        self.admin("objects", {"bucket": bucket, "name": name, "size": size, **options})

    def fault(self, action, **rule):
        self.admin("faults", {"action": action, **rule})

    def stats(self):
        return self.admin("stats")

    def requests(self, operation):
        return [request for request in self.admin("requests") if request["operation"] == operation]

    def answered(self, operation, status=200):
        return self.stats()["requests"].get(operation, {}).get(str(status), 0)

    def environment(self, **more):
        """The environment without the caller's own OCI settings and proxies."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "OCI_CLI_SUPPRESS_FILE_PERMISSIONS_WARNING": "True",
            "SUPPRESS_LABEL_WARNING": "True",
            **more,
        }

    def as_instance(self):
        """The environment of an instance: no config file, a metadata service."""
        return self.environment(
            OCI_CLI_CONFIG_FILE=str(self.directory / "none"),
            OCI_METADATA_BASE_URL=self.imds,
            OCI_SDK_AUTH_CLIENT_REGION_URL=self.endpoint,
        )

    def oci(self, *arguments, env=None, fails=False):
        """Runs the oci CLI and returns its JSON, or its error text where it must fail."""
        env = env or self.environment(OCI_CLI_CONFIG_FILE=self.config)
        command = [TOOLS / "oci", "--endpoint", self.endpoint, *arguments]
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert (run.returncode != 0) == fails, f"{command}\n{run.stdout}\n{run.stderr}"
        if fails:
            return run.stdout + run.stderr
        # The CLI prints its progress before its result.
        start = run.stdout.find("{")
        return json.loads(run.stdout[start:]) if start >= 0 else None

    def object(self, verb, bucket, *arguments, **options):
        """`oci os object VERB` in a bucket."""
        return self.oci(
            "os", "object", verb, "-ns", self.namespace, "-bn", bucket, *arguments, **options)

    def create_bucket(self, name):
        return self.oci("os", "bucket", "create", "-ns", self.namespace, "--name", name,
                        "--compartment-id", COMPARTMENT)["data"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=10) == 0


@pytest.fixture
def start(tmp_path):
    """Starts a store with more arguments than `store` has."""
    stores = []

    def begin(*arguments, root=None):
        stores.append(Store(tmp_path / f"store{len(stores)}", *arguments, root=root))
        return stores[-1]

    yield begin
    for store in stores:
        store.stop()


@pytest.fixture
def store(start):
    return start()


@pytest.fixture
def tree(tmp_path):
    """A directory of files that are difficult to upload, by relative name."""
    files = {
        "config.json": b"{}",
        "empty.bin": b"",
        "sub dir/ünï/we ird+name%20#?&=~(x)'!*:;@,$[].bin": b"odd",
        "a/..dots": b"dots",
        "100% sure.txt": b"percent",
        "deep/er/and/deeper/x": b"x",
        "big.bin": os.urandom(3 * 1024 * 1024 + 1),
    }
    root = tmp_path / "tree"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def read_tree(root):
    """The files below a directory, by relative name."""
    root = Path(root)
    return {str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*") if path.is_file()}


def profile(config, name="DEFAULT"):
    """A profile of a config file."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(config)
    return dict(parser[name])


SAID = []


def say(line):
    """Prints a line after the results of all tests."""
    SAID.append(line)


def pytest_terminal_summary(terminalreporter):
    for line in SAID:
        terminalreporter.write_line(line)
