"""The driver, kubelet and the node come and go; pods read on."""

import json
from pathlib import Path

import pytest
from kube import DRIVER, RELEASE, driver_pod, driver_says, get, inline, kubectl, mountinfo, pod
from node import ADDRESS, LOGS, NODE, ctr, run, until

# Reads the whole model repeatedly, and counts successes and failures.
READER = """
while :; do
    if cat /model/config.json /model/weights.bin >/dev/null; then echo ok; else echo failed; fi >>/tmp/reads
    sleep 0.05
done
"""


class Reader:
    def __init__(self, team, store):
        self.team = team
        store.put("models", "busy/config.json", "{}")
        store.put("models", "busy/weights.bin", b"w" * (1 << 20))
        team.start("reader", {"model": inline("busy/")}, command=READER)

    def reads(self):
        said = self.team.exec("reader", "cat /tmp/reads").split()
        return said.count("ok"), said.count("failed")

    def reads_on(self):
        """Waits for more reads, and returns how many failed so far."""
        before, _ = self.reads()
        until("more reads", lambda: self.reads()[0] > before + 5)
        return self.reads()[1]


def node_log():
    """What kubelet has logged."""
    return (LOGS / "kubelet.log").read_text(errors="replace")


def rolled_out(kind="daemonset/oci-model-csi-node", seconds=120):
    kubectl("--namespace", RELEASE, "rollout", "status", kind, f"--timeout={seconds}s", seconds=seconds + 10)


@pytest.mark.core
def test_a_pod_reads_on_while_the_driver_is_deleted_and_upgraded(team, store, helm):
    reader = Reader(team, store)
    size = 200 << 20
    store.synthetic(team.name, "half/weights.bin", size)
    rule = store.slow("half/", 8 << 20)
    team.apply(pod("waiting", {"model": inline("half/", bucket=team.name)}))
    until("the download", lambda: store.sent(team.name, "half/weights.bin") > 20 << 20)
    old = driver_pod()
    kubectl("--namespace", RELEASE, "delete", "pod", old, "--timeout=60s", seconds=70)
    rolled_out()
    assert driver_pod() != old
    during_restart = reader.reads_on()

    ctr("images", "tag", "--force", "localhost/oci-model-csi:e2e", "localhost/oci-model-csi:next")
    old = driver_pod()
    helm.install({"image": {"tag": "next"}, "config": {"download": {"concurrency": 8}}})
    assert driver_pod() != old
    during_upgrade = reader.reads_on()
    team.start("after", {"model": inline("busy/")})
    store.heal(rule)
    team.wait("waiting", seconds=180)
    sent = store.sent(team.name, "half/weights.bin") / size
    print(f"figure: bytes of a download sent across a restart and an upgrade, by its size: {sent:.3f}")
    assert sent < 1.5, "the download is resumed"
    helm.install()
    print(f"figure: reads that failed while the driver was restarted: {during_restart}; "
          f"and upgraded twice: {reader.reads_on()}, of {sum(reader.reads())}")
    assert (during_restart, during_upgrade, reader.reads()[1]) == (0, 0, 0)
    assert get("pod", "reader", team.name)["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.core
def test_a_kubelet_that_is_killed_finds_the_volumes_of_its_pods_again(team, store, node):
    reader = Reader(team, store)
    before = team.mounts("reader")
    assert len(before) == 1
    node.kubelet.kill()
    node.kubelet.start()
    until("kubelet", lambda: "reader" in team.exec("reader", "hostname"), seconds=60)
    team.start("after", {"model": inline("busy/")})
    assert reader.reads_on() == 0
    assert team.mounts("reader") == before, "no second mount"
    assert get("pod", "reader", team.name)["status"]["containerStatuses"][0]["restartCount"] == 0
    team.delete("reader")
    assert not set(before) & set(mountinfo())


@pytest.mark.core
def test_a_pod_that_starts_before_the_driver_is_registered_waits_for_it(team, store):
    store.put("models", "tiny/config.json", "{}")
    daemon_set = ["--namespace", RELEASE, "patch", "daemonset", "oci-model-csi-node", "--type=merge", "--patch"]
    place = {"spec": {"template": {"spec": {"nodeSelector": {"e2e": "nowhere"}}}}}
    kubectl(*daemon_set, json.dumps(place))
    until("the driver's end", lambda: kubectl("--namespace", RELEASE, "get", "pods", "--output", "name", "--selector",
                                              "app.kubernetes.io/component=node") == "")
    team.apply(pod("early", {"model": inline("tiny/")}))
    team.says("early", f"driver name {DRIVER} not found in the list of registered CSI drivers")
    place["spec"]["template"]["spec"]["nodeSelector"]["e2e"] = None
    kubectl(*daemon_set, json.dumps(place))
    rolled_out()
    team.wait("early", seconds=180)


def test_a_drained_node_releases_its_volumes_before_the_driver_ends(team, store):
    store.put("models", "tiny/config.json", "{}")
    team.start("one", {"model": inline("tiny/")})
    team.start("two", {"model": inline("tiny/")})
    driver, held = driver_pod(), team.mounts("one") + team.mounts("two")
    assert len(held) == 2
    try:
        kubectl("drain", NODE, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=90s", seconds=100)
        assert team.kubectl("get", "pods", "--output", "name") == ""
        until("the unmounts", lambda: not set(held) & set(mountinfo()))
        assert driver_pod() == driver
        assert json.loads(driver_says("cache", "ls", "--output", "json"))
    finally:
        kubectl("uncordon", NODE)
    rolled_out("deployment/oci-model-csi-controller")
    team.start("again", {"model": inline("tiny/")})


def test_events_that_the_api_server_refuses_delay_no_pod(team, store, helm):
    def log():
        return kubectl("--namespace", RELEASE, "logs", driver_pod(), "--container", "driver")

    store.put("models", "tiny/config.json", "{}")
    for name, change, said in (
            ("unreachable", {"node": {"env": [{"name": "OCI_MODEL_CSI_KUBERNETES_API", "value": f"https://{ADDRESS}:1"}]}},
             "posting an event failed"),
            # The annotation restarts the driver, which would otherwise be silent for minutes once it may write again.
            ("forbidden", {"rbac": {"create": False}, "controller": {"enabled": False},
                           "node": {"podAnnotations": {"e2e.example/test": "forbidden"}}},
             "the API server does not let the driver write events")):
        try:
            helm.install(change)
            team.start(name, {"model": inline("tiny/")})
            until("the complaint", lambda said=said: said in log())
            assert not [event for event in team.events(name) if event.startswith("Model")]
        finally:
            helm.install()


def test_uninstalling_in_the_wrong_order_is_repaired_by_installing_again(team, store, helm):
    def waits():
        assert get("pod", "reader", team.name)["metadata"]["deletionTimestamp"]
        return team.mounts("reader")

    store.synthetic(team.name, "it/weights.bin", 5 << 20)
    volume = {"model": inline("it/", bucket=team.name)}
    team.start("reader", volume)
    run("helm", "uninstall", RELEASE, "--namespace", RELEASE, "--wait", "--timeout=90s", seconds=100)
    assert team.exec("reader", "wc -c < /model/weights.bin").strip() == str(5 << 20), "it reads on without a driver"
    team.kubectl("delete", "pod", "reader", "--wait=false")
    until("kubelet's complaint", lambda: "not found in the list of registered CSI drivers" in node_log(), seconds=90)
    assert waits(), "no process unmounts it"
    helm.install()
    team.delete("reader", seconds=180)
    team.start("next", volume)
    assert store.sent(team.name, "it/weights.bin") == 5 << 20, "the cache that was left is taken over"

    # The order of docs/lifecycle.md: pods, cache, release.
    purge = ["exec", driver_pod(), "--container", "driver", "--", "oci-model-csi", "cache", "purge", "--yes"]
    said = kubectl("--namespace", RELEASE, *purge, fails=True)
    assert f"{team.name}/next" in said, said
    team.delete("next")
    kubectl("--namespace", RELEASE, *purge)
    run("helm", "uninstall", RELEASE, "--namespace", RELEASE, "--wait", "--timeout=90s", seconds=100)
    try:
        assert kubectl("get", "csidriver", DRIVER, "--ignore-not-found") == ""
        assert not [line for line in mountinfo() if "kubernetes.io~csi" in line or "/lib/oci-model-csi/" in line]
        left = {path.parent.name for path in Path("/var/lib/oci-model-csi").rglob("*") if path.is_file()}
        assert not left & {"models", "blobs", "staging", "trash", "leases"}, "an empty cache"
    finally:
        helm.install()
