"""Measurements. Nothing here depends on how long something takes."""

import os
from pathlib import Path

import pytest
from kube import RELEASE, driver_pod, get, inline, pod, uptime
from node import IMAGE, until

MIB = 1 << 20


def started(team, name, volumes):
    """Seconds from `kubectl apply` to the first instruction in the container."""
    before = uptime()
    team.start(name, volumes, command="cat /proc/uptime; sleep 1000000", seconds=200)
    return float(team.logs(name).split()[0]) - before


class Driver:
    """The driver's process and its container's memory, as the kernel counts them."""

    def __init__(self):
        uid = get("pod", driver_pod(), RELEASE)["metadata"]["uid"]
        [self.process] = [path for path in Path("/proc").glob("[0-9]*") if is_driver(path, uid)]

    def memory(self):
        status = dict(line.split(":", 1) for line in (self.process / "status").read_text().splitlines())
        paths = dict(line.split(":", 2)[1:] for line in (self.process / "cgroup").read_text().splitlines())
        group = next(Path(f"/sys/fs/cgroup/memory{path}" if name else f"/sys/fs/cgroup{path}")
                     for name, path in paths.items() if name in ("memory", ""))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        anonymous = int(stat.get("total_rss", stat.get("anon", 0)))
        resident, peak = (int(status[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM"))
        return f"resident {resident} MiB (peak {peak}), of the container's cgroup {anonymous // MIB} MiB without page cache"


def is_driver(path, uid):
    try:
        return (path / "cmdline").read_bytes().startswith(b"/usr/bin/oci-model-csi\0node\0") \
            and uid in (path / "cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_how_long_a_pod_takes_to_start_without_a_volume_with_a_hit_and_cold(team, store):
    started(team, "warm-up", {})
    nothing = started(team, "nothing", {})
    store.synthetic(team.name, "cold/weights.bin", 500 * MIB)
    cold = started(team, "cold", {"model": inline("cold/", bucket=team.name)})
    hit = started(team, "hit", {"model": inline("cold/", bucket=team.name)})
    print(f"figure: from kubectl apply to the container's start: {nothing:.2f} s without a volume, "
          f"{hit:.2f} s with a hit, {cold:.2f} s with a cold model of 500 MiB")


def test_how_much_memory_the_driver_takes_idle_while_it_downloads_and_with_200_volumes(team, store):
    driver = Driver()
    print(f"figure: the image is {os.environ['E2E_BUILD']}, and has {IMAGE.stat().st_size / MIB:.1f} MiB (compressed layers)")
    print(f"figure: memory of the node plugin idle: {driver.memory()}")
    store.synthetic(team.name, "memory/weights.bin", 1500 * MIB)
    rule = store.slow("memory/", 150 * MIB)
    team.apply(pod("downloader", {"model": inline("memory/", bucket=team.name)}))
    team.says("downloader", "ModelPulling")
    until("most of the download", lambda: store.sent(team.name, "memory/weights.bin") > 900 * MIB, seconds=120)
    print(f"figure: memory of the node plugin during a download: {driver.memory()}")
    store.heal(rule)
    team.wait("downloader", seconds=120)
    store.put("models", "tiny/config.json", "{}")
    names = [f"pod-{number}" for number in range(10)]
    team.apply(*(pod(name, {f"model-{number}": inline("tiny/") for number in range(20)}) for name in names))
    team.wait(*names, seconds=240)
    assert sum(len(team.mounts(name)) for name in names) == 200
    print(f"figure: memory of the node plugin with 200 volumes more: {driver.memory()}")
