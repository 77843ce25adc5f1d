"""Every kind of identity, with the local counterpart of its service: this program beside the oci
CLI and rclone."""

import os
import subprocess
import threading

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from conftest import COMPARTMENT, REPOSITORY, TOOLS, profile, read_tree

MIB = 1024 * 1024
OURS = os.environ.get("OCI_MODEL_CSI_BIN", REPOSITORY / "target/debug/oci-model-csi")


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


@pytest.fixture
def principal(store, tmp_path):
    made = Principal(store, tmp_path / "principal")
    made.renew(3600)
    return made


SIGNED = ["api_key", "security_token", "instance_principal", "resource_principal"]


def where(method, store, principal):
    """The environment in which all clients find the credentials of a method."""
    environment = store.environment(OCI_CLI_CONFIG_FILE=str(store.config))
    if method == "security_token":
        environment["OCI_CLI_CONFIG_FILE"] = str(principal.session_file())
    if method == "instance_principal":
        environment = store.as_instance() | {"OCI_CLI_FEDERATION_ENDPOINT": store.federation}
    if method == "resource_principal":
        environment = store.environment(**principal.as_resource())
    return environment


def ours(store, environment, *arguments, fails=False):
    command = [OURS, *arguments, "--oci-endpoint", store.endpoint]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert (run.returncode != 0) == fails, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stderr if fails else run.stdout


def upload(store, public=False):
    store.synthetic("models", "m/weights", 3 * MIB)
    if public:
        store.oci("os", "bucket", "update", "-ns", store.namespace, "--name", "models",
                  "--public-access-type", "ObjectRead")


@pytest.mark.parametrize("method", [*SIGNED, "none"])
def test_fetch_reads_with_every_identity(store, principal, method, tmp_path):
    upload(store, public=method == "none")
    environment = where(method, store, principal)
    before = len(store.requests("get"))
    ours(store, environment, "fetch", f"oci://models@{store.namespace}/m/", tmp_path / "m",
         "--auth", method, "--region", "us-ashburn-1")
    assert len((tmp_path / "m/weights").read_bytes()) == 3 * MIB
    callers = {request["caller"] for request in store.requests("get")[before:]}
    assert len(callers) == 1 and (callers == {None}) == (method == "none"), callers


@pytest.mark.parametrize("method", SIGNED)
def test_the_oci_cli_reads_with_every_identity_that_it_knows(store, principal, method):
    upload(store)
    environment = where(method, store, principal)
    listed = store.object("list", "models", "--auth", method, env=environment)
    assert [entry["name"] for entry in listed["data"]] == ["m/weights"]


@pytest.mark.parametrize("kind", [
    "user_principal_auth", "instance_principal_auth", "resource_principal_auth", "no_auth"])
def test_rclone_reads_with_every_identity_that_it_knows(store, principal, kind, tmp_path):
    upload(store, public=kind == "no_auth")
    environment = {
        "user_principal_auth": store.environment(),
        "instance_principal_auth": store.as_instance(),
        "resource_principal_auth": store.environment(**principal.as_resource()),
        "no_auth": store.environment(),
    }[kind]
    options = {"type": "oracleobjectstorage", "provider": kind, "namespace": store.namespace,
               "region": "us-ashburn-1", "endpoint": store.endpoint}
    if kind == "user_principal_auth":
        options |= {"config_file": store.config, "config_profile": "DEFAULT"}
    if kind in ("user_principal_auth", "instance_principal_auth"):
        options["compartment"] = COMPARTMENT
    config = tmp_path / "rclone.conf"
    config.write_text("[oos]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()))
    command = [TOOLS / "rclone", "--config", config, "copy", "oos:models/m", tmp_path / "copy"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert len(read_tree(tmp_path / "copy")["weights"]) == 3 * MIB


@pytest.mark.parametrize("method", ["security_token", "resource_principal"])
def test_tokens_that_are_renewed_during_a_download_cost_no_request(
        store, principal, method, tmp_path):
    """SECONDS: how long the download takes; tokens live for 6 s and are renewed each 2 s."""
    seconds = int(os.environ.get("SECONDS_OF_DOWNLOAD", "10"))
    store.synthetic("models", "m/weights", 64 * MIB)
    store.fault({"bandwidth": {"bytes_per_sec": 64 * MIB // seconds}}, match={"operation": "get"})
    environment = store.environment(
        **({"OCI_CLI_CONFIG_FILE": str(principal.session_file())} if method == "security_token"
           else principal.as_resource()))
    principal.renew(6)
    ended = threading.Event()

    def renew():
        while not ended.wait(2):
            principal.renew(6)

    renewing = threading.Thread(target=renew)
    renewing.start()
    before = len(store.requests("get"))
    try:
        ours(store, environment, "fetch", f"oci://models@{store.namespace}/m/", tmp_path / "m",
             "--auth", method, "--region", "us-ashburn-1", "--concurrency", "2")
    finally:
        ended.set()
        renewing.join()
    assert len((tmp_path / "m/weights").read_bytes()) == 64 * MIB
    requests = store.requests("get")[before:]
    refused = [request for request in requests if request["status"] == 401]
    assert len(requests) >= 4 and not refused, refused


def test_an_expired_session_ends_with_the_command_that_renews_it(store, principal, tmp_path):
    principal.renew(0)
    environment = store.environment(OCI_CLI_CONFIG_FILE=str(principal.session_file()))
    said = ours(store, environment, "fetch", f"oci://models@{store.namespace}/m/", tmp_path / "m",
                "--auth", "security_token", "--region", "us-ashburn-1", fails=True)
    assert "has expired" in said and "oci session refresh --profile DEFAULT" in said, said
