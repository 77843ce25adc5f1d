"""The local Object Storage, on an address that pods reach."""

import base64
import configparser
import hashlib
import json
import os
import shutil
import subprocess
import urllib.request

from node import ADDRESS, LOGS, PKI, SCRATCH, run, until

ENDPOINT = f"http://{ADDRESS}:8080"
# Service accounts and users of the one name may read this bucket and no other, those of the other name all but it.
PRIVATE, READER, STRANGER = "private", "reader", "stranger"
TENANCY = "ocid1.tenancy.oc1..e2e"


class User:
    """A user of Object Storage with an API key."""

    def __init__(self, name, directory):
        self.name, self.ocid = name, f"ocid1.user.oc1..{name}"
        self.key, self.public = directory / f"{name}.key", directory / f"{name}.pub"

    def make(self):
        run("openssl", "genrsa", "-out", self.key, 2048)
        run("openssl", "rsa", "-in", self.key, "-pubout", "-out", self.public)

    @property
    def fingerprint(self):
        text = "".join(line for line in self.public.read_text().splitlines() if not line.startswith("-----"))
        return hashlib.md5(base64.b64decode(text)).digest().hex(":")

    @property
    def caller(self):
        return f"{TENANCY}/{self.ocid}/{self.fingerprint}"

    def secret(self):
        """The Secret of docs/identities.md."""
        content = {"user": self.ocid, "tenancy": TENANCY, "fingerprint": self.fingerprint, "key": self.key.read_text()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self.name}, "stringData": content}


class Store:
    def __init__(self):
        self.root, self.config = SCRATCH / "buckets", SCRATCH / "oci"
        self.ready = SCRATCH / "store.json"
        self.users = {name: User(name, SCRATCH) for name in (READER, STRANGER)}
        self.rules = []

    def up(self):
        if self.ready.exists():  # of a cluster that was kept
            return
        self.root.mkdir()
        run("openssl", "rsa", "-in", PKI / "tokens.key", "-pubout", "-out", PKI / "tokens.pub")
        reader, stranger = self.users[READER], self.users[STRANGER]
        reader.make()
        stranger.make()
        with (LOGS / "localstore.log").open("w") as log:
            subprocess.Popen(
                [os.environ["LOCALSTORE_BIN"], "serve", "--root", self.root, "--listen", f"{ADDRESS}:8080",
                 "--allow-non-loopback", "--cluster-keys", PKI / "tokens.pub",
                 "--api-key", f"{reader.caller}={reader.public}", "--api-key", f"{stranger.caller}={stranger.public}",
                 "--allow", f"{reader.caller}={PRIVATE}", "--hide", f"{stranger.caller}={PRIVATE}",
                 "--allow", f"system:serviceaccount:*:{READER}={PRIVATE}",
                 "--hide", f"system:serviceaccount:*:{STRANGER}={PRIVATE}", "--write-config", self.config, "--ready-file", self.ready],
                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        until("the local Object Storage", self.ready.exists)

    def secret(self):
        """The oci CLI's file and its key, in the form of the chart."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.config / "config")
        profile = dict(parser["DEFAULT"])
        key = open(profile["key_file"]).read()
        profile["key_file"] = "/etc/oci/key.pem"
        text = "[DEFAULT]\n" + "".join(f"{name}={value}\n" for name, value in profile.items())
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "oci", "namespace": "oci-model-csi"},
                "stringData": {"config": text, "key.pem": key}}

    def admin(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{ENDPOINT}/_localstore/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def put(self, bucket, name, content):
        path = self.root / bucket / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def copy(self, bucket, prefix, directory):
        shutil.copytree(directory, self.root / bucket / prefix, dirs_exist_ok=True)

    def synthetic(self, bucket, name, size):
        """Adds an object of this size whose bytes are generated when they are read."""
        self.admin("objects", {"bucket": bucket, "name": name, "size": size})

    def slow(self, prefix, bytes_per_second):
        """Limits the rate of all answers for objects under a prefix together."""
        return self.fault({"operation": "get", "object": f"{prefix}*"}, {"bandwidth": {"bytes_per_sec": bytes_per_second}})

    def fault(self, match, action):
        """Adds a fault rule until `heal`, and returns its number."""
        number = self.admin("faults", {"match": match, "action": action})["id"]
        self.rules.append(number)
        return number

    def heal(self, *rules):
        """Removes rules, by default all of the running test."""
        for number in rules or list(self.rules):
            self.rules.remove(number)
            self.admin(f"faults/{number}", method="DELETE")

    def sent(self, bucket, name):
        """Bytes of an object that were sent so far."""
        return self.admin("stats")["object_bytes"].get(f"{bucket}/{name}", 0)
