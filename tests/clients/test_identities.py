"""Every kind of identity, with the local counterpart of its service: this program beside the oci
CLI, the Python SDK and rclone. Prints the table of what read as which identity, and what tokens
that are replaced during a download cost:

    SECONDS_OF_DOWNLOAD=180 SECONDS_OF_TOKENS=20 pytest tests/clients/test_identities.py -k replaced
"""

import json
import os
import subprocess
import sys
import threading

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from conftest import COMPARTMENT, REPOSITORY, TOOLS, profile, read_tree, say
from driver import may_mount

KIB, MIB = 1024, 1024 * 1024
OURS = os.environ.get("OCI_MODEL_CSI_BIN", REPOSITORY / "target/debug/oci-model-csi")
ACCOUNT = "system:serviceaccount:team-a:loader"

# Operations of the services that give tokens.
SERVICES = ["imds", "federation", "workload_identity"]


class Principal:
    """A key with tokens that the store issues, in the files of a session or a resource."""

    def __init__(self, store, directory):
        directory.mkdir()
        self.store, self.token, self.key = store, directory / "token", directory / "key.pem"
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key.write_bytes(self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()))

    def renew(self, seconds):
        public = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
        wanted = {"subject": "principal", "public_key": public, "seconds": seconds}
        # A reader must never find half a token.
        new = self.token.with_suffix(".new")
        new.write_text(self.store.admin("tokens/session", wanted)["token"])
        new.rename(self.token)

    def session_file(self):
        file = self.token.with_name("config")
        tenancy = profile(self.store.config)["tenancy"]
        file.write_text(
            f"[DEFAULT]\ntenancy={tenancy}\nregion=us-ashburn-1\nfingerprint={'00:' * 15}00\n"
            f"key_file={self.key}\nsecurity_token_file={self.token}\n")
        return file

    def as_resource(self):
        return {
            "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
            "OCI_RESOURCE_PRINCIPAL_RPST": str(self.token),
            "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": str(self.key),
            "OCI_RESOURCE_PRINCIPAL_REGION": "us-ashburn-1",
        }


METHODS = ["api_key", "security_token", "instance_principal", "resource_principal",
           "oke_workload_identity", "none"]
CLIENTS = ["fetch", "oci CLI", "Python SDK", "rclone"]

# What a client has no way for.
ABSENT = {("none", "oci CLI"), ("none", "Python SDK")}

RCLONE = {"api_key": "user_principal_auth", "security_token": "user_principal_auth",
          "instance_principal": "instance_principal_auth",
          "resource_principal": "resource_principal_auth",
          "oke_workload_identity": "workload_identity_auth", "none": "no_auth"}


@pytest.fixture
def cluster(start, tmp_path):
    """A store whose identity service for pods is where a cluster has it: port 12250, with TLS."""
    # All of 127/8 is loopback, and no two tests have one address.
    address = f"127.65.{os.getpid() >> 8 & 255}.{os.getpid() & 255 | 2}"
    # The Go SDK replaces tokens of less than ten minutes with each request.
    return start("--listen", f"{address}:12250", "--tls", "--ca-file", tmp_path / "ca.pem",
                 "--token-ttl", "1h")


def token_of_account(store, directory, seconds=3600):
    """The directory that kubelet mounts into a pod: token and CA."""
    directory.mkdir(exist_ok=True)
    account = {"namespace": "team-a", "name": "loader", "seconds": seconds}
    (directory / "token.new").write_text(store.admin("tokens/service-account", account)["token"])
    (directory / "token.new").rename(directory / "token")
    (directory / "ca.crt").write_bytes(open(store.ca_file, "rb").read())
    return directory


def in_pod(account, command):
    """The command where the files of a service account are as in a pod."""
    script = ("mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io && "
              "cp -r \"$0\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"")
    return ["unshare", *may_mount(), "sh", "-c", script, account, *command]


def where(method, store, principal):
    """The environment in which all clients find the credentials of a method."""
    environment = store.environment(OCI_CLI_CONFIG_FILE=str(store.config))
    if method == "security_token":
        environment["OCI_CLI_CONFIG_FILE"] = str(principal.session_file())
    if method == "instance_principal":
        environment = store.as_instance() | {"OCI_CLI_FEDERATION_ENDPOINT": store.federation}
    if method == "resource_principal":
        environment = store.environment(**principal.as_resource())
    if method == "oke_workload_identity":
        environment = store.environment(
            KUBERNETES_SERVICE_HOST=store.endpoint.split("//")[1].split(":")[0],
            OCI_RESOURCE_PRINCIPAL_VERSION="2.2", OCI_RESOURCE_PRINCIPAL_REGION="us-ashburn-1",
            OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH=str(store.ca_file))
    return environment


def ours(store, environment, *arguments, fails=False):
    command = [OURS, *arguments, "--oci-endpoint", store.endpoint]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert (run.returncode != 0) == fails, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stderr if fails else run.stdout


def plain(store):
    """Over http, since not every client takes a CA of ours."""
    return store.imds.removesuffix("/opc/v2")


def fetch(store, method, principal, directory):
    return [OURS, "fetch", f"oci://models@{store.namespace}/m/", directory, "--auth", method,
            "--region", "us-ashburn-1", "--oci-endpoint", plain(store)]


def oci_cli(store, method, principal, directory):
    directory.mkdir()
    return [TOOLS / "oci", "--endpoint", plain(store), "--auth", method, "os", "object", "get",
            "-ns", store.namespace, "-bn", "models", "--name", "m/weights", "--file", directory / "weights"]


# A process of its own: the SDK reads some variables when it is imported.
SDK = """
import json, sys, oci
from oci.auth import signers
given = json.loads(sys.argv[1])
config = {}
if given["method"] == "api_key":
    config = oci.config.from_file(given["config"])
    signer = oci.signer.Signer.from_config(config)
elif given["method"] == "security_token":
    key = oci.signer.load_private_key_from_file(given["key"])
    signer = signers.SecurityTokenSigner(open(given["token"]).read(), key)
elif given["method"] == "instance_principal":
    signer = signers.InstancePrincipalsSecurityTokenSigner(federation_endpoint=given["federation"])
elif given["method"] == "resource_principal":
    signer = signers.get_resource_principals_signer()
else:
    signer = signers.get_oke_workload_identity_resource_principal_signer()
client = oci.object_storage.ObjectStorageClient(config, signer=signer, service_endpoint=given["endpoint"])
with open(given["file"], "wb") as file:
    for chunk in client.get_object(given["namespace"], "models", "m/weights").data.raw.stream(1 << 20):
        file.write(chunk)
"""


def python_sdk(store, method, principal, directory):
    directory.mkdir()
    given = {"method": method, "config": str(store.config), "key": str(principal.key),
             "token": str(principal.token), "federation": store.federation, "endpoint": plain(store),
             "namespace": store.namespace, "file": str(directory / "weights")}
    return [sys.executable, "-c", SDK, json.dumps(given)]


def rclone(store, method, principal, directory):
    options = {"type": "oracleobjectstorage", "provider": RCLONE[method],
               "namespace": store.namespace, "region": "us-ashburn-1", "endpoint": plain(store)}
    if RCLONE[method] == "user_principal_auth":
        file = store.config if method == "api_key" else principal.session_file()
        options |= {"config_file": file, "config_profile": "DEFAULT"}
    if method in ("api_key", "security_token", "instance_principal", "oke_workload_identity"):
        options["compartment"] = COMPARTMENT
    config = directory.with_suffix(".conf")
    config.write_text("[oos]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()))
    return [TOOLS / "rclone", "--config", config, "copy", "oos:models/m", directory]


COMMANDS = dict(zip(CLIENTS, [fetch, oci_cli, python_sdk, rclone]))


@pytest.fixture(scope="module")
def table():
    """Callers by method and client; printed at the end."""
    seen = {}
    yield seen
    say("| Identity | " + " | ".join(CLIENTS) + " |")
    for method in METHODS:
        cells = [seen.get((method, client), "no such way" if (method, client) in ABSENT else "?")
                 for client in CLIENTS]
        say(f"| `{method}` | " + " | ".join(cells) + " |")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("method", METHODS)
def test_each_client_reads_as_the_same_caller(request, table, method, client, tmp_path):
    if (method, client) in ABSENT:
        return
    oke = method == "oke_workload_identity"
    store = request.getfixturevalue("cluster" if oke else "store")
    principal = Principal(store, tmp_path / "principal")
    principal.renew(3600)
    store.synthetic("models", "m/weights", 3 * MIB)
    if method == "none":
        store.oci("os", "bucket", "update", "-ns", store.namespace, "--name", "models",
                  "--public-access-type", "ObjectRead")
    command = COMMANDS[client](store, method, principal, tmp_path / "copy")
    if oke:
        command = in_pod(token_of_account(store, tmp_path / "account"), command)
    before = len(store.requests("get"))
    run = subprocess.run(command, env=where(method, store, principal), capture_output=True,
                         text=True, timeout=180)
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    assert len(read_tree(tmp_path / "copy")["weights"]) == 3 * MIB
    callers = {request["caller"] for request in store.requests("get")[before:]}
    expected = {"api_key": None, "security_token": "principal", "resource_principal": "principal",
                "instance_principal": "ocid1.instance.oc1.iad.localstore",
                "oke_workload_identity": ACCOUNT, "none": None}[method]
    if method == "api_key":
        entry = profile(store.config)
        expected = "/".join(entry[key] for key in ("tenancy", "user", "fingerprint"))
    assert callers == {expected}, callers
    table[method, client] = "reads"


@pytest.mark.parametrize("method", METHODS[1:5])
def test_tokens_that_are_replaced_during_a_download_cost_no_request(start, request, method, tmp_path):
    """SECONDS_OF_DOWNLOAD: how long it takes; SECONDS_OF_TOKENS: how long tokens live."""
    seconds = int(os.environ.get("SECONDS_OF_DOWNLOAD", "10"))
    life = int(os.environ.get("SECONDS_OF_TOKENS", "6"))
    if method == "oke_workload_identity":
        store = start("--tls", "--ca-file", tmp_path / "ca.pem", "--token-ttl", f"{life}s")
    else:
        store = start("--token-ttl", f"{life}s")
    principal, account = Principal(store, tmp_path / "principal"), tmp_path / "account"
    objects, size = 8 * seconds, 64 * KIB
    for number in range(objects):
        store.synthetic("models", f"m/{number:05}", size, seed=number)
    store.fault({"bandwidth": {"bytes_per_sec": objects * size // seconds}}, match={"operation": "get"})
    renewals, ended = 0, threading.Event()

    def renew():
        """What the oci CLI, the platform and kubelet do."""
        nonlocal renewals
        while True:
            principal.renew(life)
            if method == "oke_workload_identity":
                token_of_account(store, account, life)
            renewals += 1
            if ended.wait(life / 3):
                return

    renewing = threading.Thread(target=renew)
    renewing.start()
    while renewals == 0:
        ended.wait(0.01)
    command = [*fetch(store, method, principal, tmp_path / "m"), "--concurrency", "2"]
    if method == "oke_workload_identity":
        command += ["--oke-endpoint", store.endpoint, "--oke-token-file", account / "token",
                    "--oke-ca-file", account / "ca.crt"]
    try:
        run = subprocess.run(command, env=where(method, store, principal), capture_output=True,
                             text=True, timeout=seconds * 3 + 60)
    finally:
        ended.set()
        renewing.join()
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    assert len(read_tree(tmp_path / "m")) == objects
    requests = [one for one in store.admin("requests") if one["caller"] or one["operation"] in SERVICES]
    failed = [one for one in store.admin("requests") if one["status"] >= 400]
    refreshes = {"instance_principal": store.answered("federation"),
                 "oke_workload_identity": store.answered("workload_identity")}.get(method, renewals)
    assert len(requests) >= objects and not failed, failed
    assert refreshes >= seconds // life, refreshes
    say(f"{method}: {seconds} s with tokens of {life} s: {refreshes} refreshes, {len(requests)} "
        f"requests, {len(failed)} failed")


@pytest.fixture
def principal(store, tmp_path):
    made = Principal(store, tmp_path / "principal")
    made.renew(3600)
    return made


def test_an_expired_session_ends_with_the_command_that_renews_it(store, principal, tmp_path):
    principal.renew(0)
    environment = store.environment(OCI_CLI_CONFIG_FILE=str(principal.session_file()))
    said = ours(store, environment, "fetch", f"oci://models@{store.namespace}/m/", tmp_path / "m",
                "--auth", "security_token", "--region", "us-ashburn-1", fails=True)
    assert "has expired" in said and "oci session refresh --profile DEFAULT" in said, said
