"""A cache that is full, a disk that others fill, and a node that kubelet clears."""

import json
from pathlib import Path

from kube import driver_pod, driver_says, get, inline, pod
from node import NODE, run, until

MIB = 1 << 20


def test_a_pod_whose_model_does_not_fit_says_who_holds_the_space_and_starts_when_it_is_free(team, store, helm):
    for name in ("held", "wanted"):
        store.synthetic("models", f"{name}/weights.bin", 40 * MIB)
    try:
        helm.install({"config": {"cache": {"maxSize": "64MiB"}}})
        team.start("holder", {"model": inline("held/")})
        team.apply(pod("waiting", {"model": inline("wanted/")}))
        said = team.answered("waiting", "code = ResourceExhausted", f"held by {team.name}/holder", seconds=200)
        print(f"figure: what kubectl describe says when the cache is full: {said}")
        team.delete("holder")
        team.wait("waiting", seconds=180)
        assert int(team.exec("waiting", "wc -c < /model/weights.bin")) == 40 * MIB
    finally:
        helm.install()


def test_a_disk_that_others_fill_costs_idle_models_first_and_then_lets_pods_wait(team, store, helm):
    def cached():
        return [model["uri"] for model in json.loads(driver_says("cache", "ls", "--output", "json"))["models"]]

    disk = Path("/var/lib/small-disk")
    disk.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=128m,mode=755", "small-disk", disk)
    store.synthetic("models", "idle/weights.bin", 30 * MIB)
    store.synthetic("models", "wanted/weights.bin", 40 * MIB)
    try:
        helm.install({"config": {"cache": {"dir": str(disk), "minFree": "16MiB"}}})
        team.start("former", {"model": inline("idle/")})
        team.delete("former")
        assert [uri.endswith("/idle/") for uri in cached()] == [True]
        (disk / "neighbour").write_bytes(b"n" * 95 * MIB)
        until("the idle model's end", lambda: cached() == [])
        team.apply(pod("waiting", {"model": inline("wanted/")}))
        said = team.answered("waiting", "code = ResourceExhausted", "needs 40 MiB", " available in ", str(disk))
        print(f"figure: what kubectl describe says when others have filled the disk: {said}")
        (disk / "neighbour").unlink()
        team.wait("waiting", seconds=180)
        assert int(team.exec("waiting", "wc -c < /model/weights.bin")) == 40 * MIB
        team.delete("waiting")
    finally:
        helm.install()
        run("umount", "--lazy", disk)


def test_a_node_under_disk_pressure_loses_its_pods_but_not_the_driver_nor_its_cache(team, store, node, helm):
    def pressure():
        conditions = get("node", NODE)["status"]["conditions"]
        return next(one["status"] for one in conditions if one["type"] == "DiskPressure") == "True"

    store.synthetic(team.name, "it/weights.bin", 5 * MIB)
    volume = {"model": inline("it/", bucket=team.name)}
    team.start("evicted", volume)
    driver, held = driver_pod(), team.mounts("evicted")
    assert len(held) == 1
    try:
        # As if the disk were full: kubelet requires more free space than there is. (It treats 100% as "never".)
        node.restart_kubelet(evictionHard={"nodefs.available": "99%"}, evictionPressureTransitionPeriod="1s")
        until("the pressure", pressure, seconds=120)
        until("the eviction", lambda: get("pod", "evicted", team.name)["status"].get("reason") == "Evicted", seconds=120)
        until("the unmount", lambda: not team.mounts("evicted"), seconds=120)
        assert driver_pod() == driver and get("pod", driver, "oci-model-csi")["status"]["phase"] == "Running"
    finally:
        node.restart_kubelet()
        until("the pressure's end", lambda: not pressure(), seconds=120)
    helm.install()
    team.start("next", volume)
    assert store.sent(team.name, "it/weights.bin") == 5 * MIB, "a hit"
