"""What `oci-model-csi push` stores, as the official clients see it."""

import base64
import json
import os
import shlex
import signal
import subprocess
import time

import pytest

from conftest import COMPARTMENT, REPOSITORY, TOOLS, read_tree

BINARY = os.environ.get("OCI_MODEL_CSI_BIN", REPOSITORY / "target/debug/oci-model-csi")
MIB = 1024 * 1024


def command(store, directory, uri, *arguments):
    return [BINARY, "push", "--config-file", store.config, "--oci-endpoint", store.endpoint,
            "--output", "json", *arguments, directory, uri]


def push(store, directory, uri, *arguments):
    run = subprocess.run(command(store, directory, uri, *arguments), env=store.environment(),
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return json.loads(run.stdout)


@pytest.fixture
def rclone(store):
    """rclone with the remote `oos:`."""
    config = store.directory / "rclone.conf"
    config.write_text("[oos]\n" + "".join(f"{key} = {value}\n" for key, value in {
        "type": "oracleobjectstorage", "provider": "user_principal_auth", "namespace": store.namespace,
        "region": "us-ashburn-1", "endpoint": store.endpoint, "compartment": COMPARTMENT,
        "config_file": store.config, "config_profile": "DEFAULT"}.items()))

    def run(*arguments):
        subprocess.run([TOOLS / "rclone", "--config", config, *arguments], env=store.environment(),
                       check=True, capture_output=True, text=True, timeout=120)

    return run


def test_what_was_pushed_is_read_and_compared_by_the_oci_cli_and_rclone(store, rclone, tree, tmp_path):
    store.create_bucket("b")
    report = push(store, tree, "oci://b/m/", "--part-size", "1MiB")
    assert report["files"] == len(read_tree(tree))
    store.object("bulk-download", "b", "--prefix", "m/", "--dest-dir", str(tmp_path / "oci"))
    assert read_tree(tmp_path / "oci/m") == read_tree(tree)
    rclone("copy", "oos:b/m", tmp_path / "rclone")
    assert read_tree(tmp_path / "rclone") == read_tree(tree)
    # The small ones by their MD5s; rclone knows none of an object in parts that it has not stored.
    rclone("check", tree, "oos:b/m", "--exclude", "big.bin")
    head = store.object("head", "b", "--name", "m/big.bin")
    assert head["opc-multipart-md5"].endswith("-4")
    assert len(base64.b64decode(head["opc-content-crc32c"])) == 4


def test_what_the_oci_cli_and_rclone_have_stored_is_not_sent_again(store, rclone, tree):
    store.create_bucket("b")
    store.object("bulk-upload", "b", "--src-dir", str(tree), "--object-prefix", "cli/", "--part-size", "1")
    rclone("copy", tree, "oos:b/rc")
    for name in ("cli", "rc"):
        report = push(store, tree, f"oci://b/{name}/", "--part-size", "1MiB")
        assert report["alreadyStored"] == report["files"], report
        assert report["sentBytes"] == 0
        assert any("carry no CRC-32C" in warning for warning in report["warnings"]), report


def test_the_printed_command_of_the_oci_cli_aborts_an_interrupted_upload(store, tmp_path):
    store.create_bucket("b")
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "it's a model.safetensors").write_bytes(os.urandom(8 * MIB))
    store.admin("faults", {"match": {"operation": "upload_part"},
                           "action": {"bandwidth": {"bytes_per_sec": 2 * MIB}}})
    process = subprocess.Popen(command(store, directory, "oci://b/m/", "--part-size", "1MiB"),
                               env=store.environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while store.stats()["received_bytes"] < MIB:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    answer, _ = process.communicate(timeout=30)
    assert process.returncode == 6, answer
    [abort] = json.loads(answer)["abort"]
    words = shlex.split(abort)
    assert words[:4] == ["oci", "os", "multipart", "abort"]
    store.oci(*words[1:], "--force")
    uploads = store.oci("os", "multipart", "list", "-ns", store.namespace, "-bn", "b")
    assert not (uploads or {}).get("data"), uploads
