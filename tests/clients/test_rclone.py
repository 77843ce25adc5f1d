"""rclone, which is the Go SDK, against the local Object Storage."""

import subprocess

import pytest

from conftest import COMPARTMENT, TOOLS, read_tree

MIB = 1024 * 1024


class Rclone:
    """rclone with a remote `oos:` of one kind of credentials."""

    def __init__(self, store, provider):
        self.store = store
        instance = provider == "instance_principal_auth"
        self.env = store.as_instance() if instance else store.environment()
        options = {
            "type": "oracleobjectstorage",
            "provider": provider,
            "namespace": store.namespace,
            "region": "us-ashburn-1",
            "endpoint": store.endpoint,
        }
        if provider != "no_auth":
            options["compartment"] = COMPARTMENT
        if provider == "user_principal_auth":
            options |= {"config_file": store.config, "config_profile": "DEFAULT"}
        self.config = store.directory / f"{provider}.conf"
        self.config.write_text(
            "[oos]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()))

    def __call__(self, *arguments, fails=False):
        command = [TOOLS / "rclone", "--config", self.config, "--retries", "1",
                   "--low-level-retries", "2", *arguments]
        run = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        assert (run.returncode != 0) == fails, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout + run.stderr


@pytest.fixture(params=["user_principal_auth", "instance_principal_auth"])
def rclone(store, request):
    return Rclone(store, request.param)


def test_a_tree_is_copied_both_ways_and_checked(store, rclone, tree, tmp_path):
    rclone("mkdir", "oos:models")
    rclone("copy", tree, "oos:models/rc")
    # check compares the MD5s of the listing with the files'.
    rclone("check", tree, "oos:models/rc")
    rclone("copy", "oos:models/rc", tmp_path / "down")
    assert read_tree(tmp_path / "down") == read_tree(tree)
    (tree / "config.json").write_bytes(b"[]")
    assert "differ" in rclone("check", tree, "oos:models/rc", fails=True)
    rclone("delete", "oos:models/rc/config.json")
    assert "config.json" not in rclone("lsf", "-R", "oos:models")
    assert "models" in rclone("lsd", "oos:")


def test_a_large_file_goes_up_in_parts_and_down_in_ranges(store, rclone, tmp_path):
    store.synthetic("b", "seed", 33 * MIB + 1, seed=2)
    rclone("copy", "oos:b/seed", tmp_path / "up", "--multi-thread-cutoff", "16M",
           "--multi-thread-streams", "4", "--multi-thread-chunk-size", "8M")
    ranges = [request["range"] for request in store.requests("get")]
    assert len(ranges) == 5 and all(ranges), ranges
    rclone("copyto", tmp_path / "up/seed", "oos:b/mp", "--oos-upload-cutoff", "16M",
           "--oos-chunk-size", "8M")
    assert store.answered("upload_part") == 5
    assert store.answered("commit_upload") == 1
    # rclone keeps the whole file's MD5 as metadata of multipart uploads.
    rclone("check", "--download", tmp_path / "up", "oos:b", "--include", "/seed")
    rclone("copyto", "oos:b/mp", tmp_path / "down/seed")
    assert read_tree(tmp_path / "down") == read_tree(tmp_path / "up")


def test_a_wrong_key_is_refused(start):
    store, other = start(), start()
    store.synthetic("b", "x", 1)
    rclone = Rclone(store, "user_principal_auth")
    config = rclone.config.read_text().replace(store.config, other.config)
    rclone.config.write_text(config)
    assert "401" in rclone("lsf", "oos:b", fails=True)


def test_a_refused_token_is_renewed(store, tmp_path):
    # Not by a short-lived token: within five minutes of its end this SDK fetches
    # the token and its key by two exchanges, which do not belong together.
    store.synthetic("b", "x", 10)
    store.fault({"status": {"code": 401}}, match={"operation": "list"}, times=1)
    rclone = Rclone(store, "instance_principal_auth")
    rclone("copy", "oos:b", tmp_path / "down")
    assert len(read_tree(tmp_path / "down")["x"]) == 10
    assert store.stats()["requests"]["list"] == {"200": 1, "401": 1}
    assert store.stats()["tokens_issued"] >= 2


def test_a_public_bucket_needs_no_credentials(store, tmp_path):
    store.synthetic("pub", "x", 10)
    store.oci("os", "bucket", "update", "-ns", store.namespace, "--name", "pub",
              "--public-access-type", "ObjectRead")
    rclone = Rclone(store, "no_auth")
    rclone("copy", "oos:pub", tmp_path / "down")
    assert len(read_tree(tmp_path / "down")["x"]) == 10
