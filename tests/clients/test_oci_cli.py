"""The oci CLI and the Python SDK against the local Object Storage."""

import base64
import hashlib
import json
from pathlib import Path

import crc32c
import oci
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from oci.object_storage.transfer.internal.download.DownloadConfiguration import (
    DownloadConfiguration)
from oci.object_storage.transfer.internal.download.DownloadManager import DownloadManager

from conftest import profile, read_tree

MIB = 1024 * 1024


def crc32c_base64(content):
    return base64.b64encode(crc32c.crc32c(content).to_bytes(4, "big")).decode()


def test_bulk_upload_and_download_give_the_same_tree(store, tree, tmp_path):
    store.create_bucket("models")
    store.object("bulk-upload", "models", "--src-dir", tree, "--object-prefix", "llama/",
                 "--overwrite", "--part-size", "1", "--verify-checksum")
    assert store.answered("upload_part") == 4, "3 MiB and a byte in parts of 1 MiB"
    listed = store.object("list", "models", "--prefix", "llama/", "--all")["data"]
    assert {entry["name"].removeprefix("llama/"): entry["size"] for entry in listed} == {
        name: len(content) for name, content in read_tree(tree).items()}
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["llama/big.bin"]["md5"].endswith("==-4")
    store.object("bulk-download", "models", "--prefix", "llama/", "--dest-dir", tmp_path / "dl",
                 "--overwrite")
    assert read_tree(tmp_path / "dl/llama") == read_tree(tree)


def test_an_object_put_with_crc32c_keeps_it(store, tmp_path):
    store.create_bucket("b")
    content = b"123456789"
    (tmp_path / "x").write_bytes(content)
    store.object("put", "b", "--name", "d/x", "--file", tmp_path / "x", "--content-type", "text/x",
                 "--metadata", '{"k": "v"}', "--opc-checksum-algorithm", "CRC32C")
    head = store.object("head", "b", "--name", "d/x")
    assert head["opc-content-crc32c"] == "4waSgw=="
    assert head["content-md5"] == base64.b64encode(hashlib.md5(content).digest()).decode()
    assert (head["content-type"], head["opc-meta-k"]) == ("text/x", "v")
    store.object("get", "b", "--name", "d/x", "--file", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == content
    # Without --force the CLI creates only: it asks with HEAD, then says if-none-match.
    (tmp_path / "x").write_bytes(b"other")
    store.object("put", "b", "--name", "d/x", "--file", tmp_path / "x", "--no-overwrite")
    assert store.object("head", "b", "--name", "d/x")["etag"] == head["etag"]


def test_crc32c_of_a_multipart_upload_is_that_of_the_whole(store, tree):
    store.create_bucket("b")
    store.object("put", "b", "--name", "x", "--file", tree / "big.bin", "--part-size", "1",
                 "--opc-checksum-algorithm", "CRC32C")
    head = store.object("head", "b", "--name", "x")
    assert head["opc-content-crc32c"] == crc32c_base64((tree / "big.bin").read_bytes())
    assert head["opc-multipart-md5"].endswith("==-4")
    assert "content-md5" not in head


def test_listings_of_small_pages_are_whole(store):
    for name in ["a", "a/1", "a/2", "a0", "b/1", "b/2/3"]:
        store.synthetic("b", name, 1)
    names = lambda *more: [  # noqa: E731
        entry["name"] for entry in store.object("list", "b", *more)["data"]]
    assert names("--all", "--page-size", "2") == ["a", "a/1", "a/2", "a0", "b/1", "b/2/3"]
    assert store.answered("list") == 3
    assert names("--start", "a/2", "--end", "b/2") == ["a/2", "a0", "b/1"]
    folded = store.object("list", "b", "--delimiter", "/")
    assert [entry["name"] for entry in folded["data"]] == ["a", "a0"]
    assert folded["prefixes"] == ["a/", "b/"]


def test_a_large_object_is_downloaded_in_ranges(store, tmp_path):
    # Not k parts and one byte: this CLI loses that byte.
    store.synthetic("b", "x", 128 * MIB + 5, seed=1, crc32c=True)
    store.object("get", "b", "--name", "x", "--file", tmp_path / "x")
    assert sorted(request["range"] for request in store.requests("get")) == [
        "bytes=0-134217727", "bytes=134217728-134217732"]
    head = store.object("head", "b", "--name", "x")
    assert head["opc-content-crc32c"] == crc32c_base64((tmp_path / "x").read_bytes())


def test_buckets_and_objects_come_and_go(store, tmp_path):
    assert store.oci("os", "ns", "get")["data"] == store.namespace
    assert store.create_bucket("b")["name"] == "b"
    listed = store.oci("os", "bucket", "list", "-ns", store.namespace, "--compartment-id", "c")
    assert [bucket["name"] for bucket in listed["data"]] == ["b"]
    (tmp_path / "x").write_bytes(b"x")
    store.object("put", "b", "--name", "x", "--file", tmp_path / "x")
    bucket = ("-ns", store.namespace, "--name", "b")
    full = store.oci("os", "bucket", "delete", *bucket, "--force", fails=True)
    assert "BucketNotEmpty" in full
    store.object("delete", "b", "--name", "x", "--force")
    assert "404" in store.object("head", "b", "--name", "x", fails=True)
    store.oci("os", "bucket", "delete", *bucket, "--force")
    assert "BucketNotFound" in store.object("list", "b", fails=True)


def test_an_interrupted_upload_is_resumed(store, tree):
    store.create_bucket("b")
    # The second of four parts is always refused.
    store.fault({"status": {"code": 400, "oci_code": "InvalidParameter"}},
                match={"operation": "upload_part"}, skip=1, times=1)
    store.object("put", "b", "--name", "x", "--file", tree / "big.bin", "--part-size", "1",
                 "--disable-parallel-uploads", fails=True)
    uploads = store.oci("os", "multipart", "list", "-ns", store.namespace, "-bn", "b")["data"]
    before = store.answered("upload_part")
    store.object("resume-put", "b", "--name", "x", "--file", tree / "big.bin",
                 "--upload-id", uploads[0]["upload-id"], "--part-size", "1")
    assert store.answered("upload_part") - before < 4, "what was there is not sent again"
    head = store.object("head", "b", "--name", "x")
    assert int(head["content-length"]) == 3 * MIB + 1


def test_throttling_is_retried(store, tmp_path):
    store.synthetic("b", "x", 10)
    store.fault({"status": {"code": 429, "retry_after": 1}}, match={"operation": "get"}, times=1)
    store.object("get", "b", "--name", "x", "--file", tmp_path / "x")
    assert (store.answered("get", 429), store.answered("get", 200)) == (1, 1)


def write_profile(path, values):
    path.write_text("[DEFAULT]\n" + "".join(f"{key}={value}\n" for key, value in values.items()))
    return str(path)


def test_an_encrypted_key_works(store, tmp_path):
    values = profile(store.config)
    key = serialization.load_pem_private_key(Path(values["key_file"]).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hunter2")))
    values |= {"key_file": encrypted, "pass_phrase": "hunter2"}
    env = store.environment(OCI_CLI_CONFIG_FILE=write_profile(tmp_path / "config", values))
    assert store.oci("os", "ns", "get", env=env)["data"] == store.namespace


def test_another_key_is_401(store, tmp_path):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    other = tmp_path / "other.pem"
    other.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()))
    values = profile(store.config) | {"key_file": other}
    env = store.environment(OCI_CLI_CONFIG_FILE=write_profile(tmp_path / "config", values))
    refused = store.oci("os", "ns", "get", env=env, fails=True)
    assert "401" in refused and "NotAuthenticated" in refused
    assert store.stats()["refusals"] == {"wrong_signature": 1}


def test_a_wrong_clock_is_401(store):
    store.fault({"date_offset": {"secs": 600}})
    assert "NotAuthenticated" in store.oci("os", "ns", "get", fails=True)
    assert store.stats()["refusals"] == {"clock_skew": 1}


def test_a_session_token_works(store):
    session = ("--profile", "SESSION", "--auth", "security_token")
    assert store.oci(*session, "os", "ns", "get")["data"] == store.namespace


def test_https_works_with_the_ca_file(start):
    store = start("--tls")
    assert store.endpoint.startswith("https://")
    ca = ("--cert-bundle", store.ca_file)
    assert store.oci(*ca, "os", "ns", "get")["data"] == store.namespace


def test_an_instance_principal_works_without_a_config_file(store):
    store.synthetic("b", "x", 10)
    instance = ("--auth", "instance_principal", "--federation-endpoint", store.federation)
    listed = store.oci(*instance, "os", "object", "list", "-ns", store.namespace, "-bn", "b",
                       env=store.as_instance())
    assert [entry["name"] for entry in listed["data"]] == ["x"]
    assert store.answered("federation") == 1
    assert store.requests("list")[0]["caller"].startswith("ocid1.instance.")


def instance_client(store, monkeypatch):
    for name, value in store.as_instance().items():
        monkeypatch.setenv(name, value)
    signer = oci.auth.signers.InstancePrincipalsSecurityTokenSigner(
        federation_endpoint=store.federation)
    return oci.object_storage.ObjectStorageClient(
        {}, signer=signer, service_endpoint=store.endpoint)


def test_a_refused_token_is_renewed_once(start, monkeypatch):
    store = start("--rotate-leaf-every", "1")
    client = instance_client(store, monkeypatch)
    assert client.get_namespace().data == store.namespace
    store.admin("tokens/expire", {})
    assert client.get_namespace().data == store.namespace
    stats = store.stats()
    assert (stats["expired_token_refusals"], stats["requests"]["federation"]) == (1, {"200": 2})


def test_the_sdk_verifies_crc32c_across_ranges(store, monkeypatch, tmp_path):
    store.synthetic("b", "x", 11 * MIB + 3, seed=9, part_size=4 * MIB, crc32c=True)
    client = instance_client(store, monkeypatch)
    configuration = DownloadConfiguration(is_enforce_data_integrity_for_download=True)
    manager = DownloadManager(configuration, client)
    manager.get_object_to_path(store.namespace, "b", "x", str(tmp_path / "x"))
    content = (tmp_path / "x").read_bytes()
    head = client.head_object(store.namespace, "b", "x").headers
    assert head["opc-content-crc32c"] == crc32c_base64(content)
    ranged = [request for request in store.requests("get") if request["range"]]
    assert ranged and all(request["if_match"] for request in ranged)
    store.fault({"flip_byte": {"offset": 6 * MIB}}, match={"operation": "get"})
    with pytest.raises(oci.exceptions.ChecksumVerificationError):
        manager.get_object_to_path(store.namespace, "b", "x", str(tmp_path / "y"))


def test_objects_survive_a_restart_of_the_store(start, tree, tmp_path):
    store = start()
    store.create_bucket("b")
    store.object("bulk-upload", "b", "--src-dir", tree, "--part-size", "1")
    listing = store.object("list", "b", "--all")
    restarted = start(root=store.directory / "root")
    assert restarted.object("list", "b", "--all") == listing
    restarted.object("bulk-download", "b", "--dest-dir", tmp_path / "dl")
    assert read_tree(tmp_path / "dl") == read_tree(tree)


def test_files_in_a_bucket_directory_are_downloaded(store, tree, tmp_path):
    (store.directory / "root").mkdir(exist_ok=True)
    tree.rename(store.directory / "root/dropped")
    store.object("bulk-download", "dropped", "--dest-dir", tmp_path / "dl")
    assert read_tree(tmp_path / "dl") == read_tree(store.directory / "root/dropped")
    assert json.dumps(store.object("list", "dropped", "--all")["data"]).count("md5") == 7
