"""The ways to name a model, and what a pod sees of it."""

import json

import pytest
from kube import DRIVER, apply, claim, claimed, get, inline, kubectl, pod, storage_class
from node import until

pytestmark = pytest.mark.core


def test_an_inline_volume_shows_a_model_to_a_pod(team, store):
    store.put("models", "tiny/config.json", '{"model_type": "tiny"}')
    store.put("models", "tiny/sub/weights.bin", b"w" * 100_000)
    team.start("reader", {"model": inline("tiny/")})
    assert team.exec("reader", "cat /model/config.json") == '{"model_type": "tiny"}'
    assert team.exec("reader", "wc -c < /model/sub/weights.bin").strip() == "100000"
    team.says("reader", "ModelPulled")
    team.start("another", {"model": inline("tiny/")})
    team.says("another", "ModelCacheHit")


def test_one_pod_has_several_models_and_a_part_of_one(team, store):
    for name in ("embedder", "reranker"):
        store.put("models", f"pair/{name}/config.json", name)
        store.put("models", f"pair/{name}/weights.bin", name * 1000)
    team.start("rag", {"embedder": inline("pair/embedder/"), "reranker": inline("pair/reranker/"),
                       "part": inline("pair/reranker/", include="*.json")})
    assert team.exec("rag", "cat /embedder/config.json /reranker/config.json") == "embedderreranker"
    assert team.exec("rag", "ls /part").split() == ["config.json"]


def test_no_user_of_a_pod_can_change_a_model_and_any_can_read_it(team, store):
    store.put("models", "locked/config.json", "{}")
    store.put("models", "locked/shards/one.bin", "one")
    volume = {"model": inline("locked/")}
    team.start("root", volume)
    team.start("unprivileged", volume, spec={"securityContext": {
        "runAsNonRoot": True, "runAsUser": 65534, "runAsGroup": 65534, "fsGroup": 2000,
        "seccompProfile": {"type": "RuntimeDefault"}}})
    for name in ("root", "unprivileged"):
        assert team.exec(name, "cat /model/shards/one.bin") == "one"
        for attempt in ("touch /model/new", "rm /model/config.json", "echo x >> /model/config.json",
                        "chmod 777 /model/config.json", "mkdir /model/shards/new", "mv /model/config.json /model/other"):
            said = team.exec(name, attempt, fails=True)
            assert "Read-only file system" in said or "Permission denied" in said, f"{attempt}: {said}"
        assert "ro" in team.exec(name, "grep ' /model ' /proc/mounts").split()[3].split(",")
        # The container has the runtime's own mount, which may keep fewer flags.
        [mount] = team.mounts(name)
        assert {"ro", "nosuid", "nodev"} <= set(mount.split()[5].split(","))
    assert team.exec("unprivileged", "id -u").strip() == "65534"
    assert team.exec("root", "stat -c '%a %u' /model /model/config.json").split() == ["555", "0", "444", "0"]


def test_a_pod_can_mount_a_directory_of_a_model_by_sub_path(team, store):
    store.put("models", "nested/original/params.json", "params")
    store.put("models", "nested/config.json", "{}")
    team.start("part", {"model": inline("nested/")}, mount={"subPath": "original", "readOnly": True})
    assert team.exec("part", "ls /model").split() == ["params.json"]
    assert "Read-only" in team.exec("part", "touch /model/new", fails=True)


def test_a_claim_of_a_class_per_bucket_is_the_model_of_its_name(team, store):
    store.put("class-bucket", "models/llama/config.json", '{"model_type": "llama"}')
    store.synthetic("class-bucket", "models/llama/weights.bin", 3 << 20)
    apply(storage_class(team.name, bucket="class-bucket", prefix="models/${pvc.name}/"))
    team.apply(claim("llama", team.name, size="1Mi"))
    team.start("first", {"model": claimed("llama")})
    team.start("second", {"model": claimed("llama")})
    for name in ("first", "second"):
        assert team.exec(name, "cat /model/config.json") == '{"model_type": "llama"}'
    bound = get("persistentvolumeclaim", "llama", team.name)
    volume = get("persistentvolume", bound["spec"]["volumeName"])
    assert volume["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert int(bound["status"]["capacity"]["storage"]) == (3 << 20) + len('{"model_type": "llama"}'), "the model's size"

    # The claim is deleted with its volume; the objects stay.
    team.delete("first", "second")
    team.kubectl("delete", "persistentvolumeclaim", "llama", "--timeout=60s", seconds=70)
    until("the volume's end", lambda: kubectl("get", "persistentvolume", volume["metadata"]["name"],
                                              "--ignore-not-found") == "")
    assert (store.root / "class-bucket/models/llama/config.json").exists()
    kubectl("delete", "storageclass", team.name)


def test_a_generic_ephemeral_volume_is_a_claim_that_is_deleted_with_its_pod(team, store):
    store.put("models", "generic/config.json", "generic")
    apply(storage_class(team.name, bucket="models", prefix="generic/"))
    template = {"spec": {"storageClassName": team.name, "accessModes": ["ReadOnlyMany"],
                         "resources": {"requests": {"storage": "1Gi"}}}}
    team.start("one", {"model": {"ephemeral": {"volumeClaimTemplate": template}}})
    assert team.exec("one", "cat /model/config.json") == "generic"
    assert "Read-only" in team.exec("one", "touch /model/new", fails=True)
    team.delete("one")
    until("the claim's end", lambda: team.kubectl("get", "persistentvolumeclaims", "--output", "name") == "")
    kubectl("delete", "storageclass", team.name)


def test_a_static_volume_is_bound_and_read_only_for_a_claim_that_may_write(team, store):
    store.put("models", "static/config.json", "static")
    apply({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": team.name},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
                 "claimRef": {"name": "it", "namespace": team.name}, "mountOptions": ["noexec"],
                 "persistentVolumeReclaimPolicy": "Retain",
                 "csi": {"driver": DRIVER, "volumeHandle": team.name,
                         "volumeAttributes": {"bucket": "models", "prefix": "static/"}}},
    })
    team.apply(claim("it", ""))
    volume = {"persistentVolumeClaim": {"claimName": "it"}}  # without readOnly
    team.start("reader", {"model": volume})
    assert team.exec("reader", "cat /model/config.json") == "static"
    assert "Read-only" in team.exec("reader", "touch /model/new", fails=True)
    assert "noexec" in team.exec("reader", "grep ' /model ' /proc/mounts")
    team.delete("reader")
    kubectl("delete", "persistentvolume", team.name, "--wait=false")


def test_thirty_pods_at_once_on_a_cold_model_cost_one_download(team, store):
    size = 40 << 20
    store.synthetic(team.name, "crowd/weights.bin", size)
    names = [f"pod-{number}" for number in range(30)]
    team.apply(*(pod(name, {"model": inline("crowd/", bucket=team.name)}) for name in names))
    team.wait(*names, seconds=180)
    assert store.sent(team.name, "crowd/weights.bin") == size
    counted = team.exec(names[7], "wc -c < /model/weights.bin")
    assert int(counted) == size
    reasons = [event["reason"] for event in json.loads(
        team.kubectl("get", "events", "--output", "json"))["items"]]
    assert "FailedMount" not in reasons, "no call had to be repeated"
