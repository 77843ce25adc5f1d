"""NodePublishVolume of a cached model: how long it takes, where that time goes, and what is in memory."""

import os
import re
import subprocess
import time

import driver

from .store import MIB

SIZE, ROUNDS = 64 * MIB, 400
POLICIES = ("IfNotPresent", "Always")
STEPS = re.compile(r"milliseconds of the publish by step steps=([^\n]*)")
MEANINGS = {
    "target": "lease of the target, if there is one", "permit": "rules of `policy`, before and after",
    "route": "identity and namespace", "revision": "the newest revision: recorded, or listed",
    "lookup": "the model of a listed revision, in the cache", "weights": "result of the safetensors check",
    "record": "which revision the request got", "mountpoint": "the target's directory",
    "lease": "lease, written without waiting for the disk: it ends with the boot", "bind": "bind mount, and proof that it is the model",
    "answer": "events, log",
}


def publish(node, pod, **attributes):
    """Publishes and unpublishes a volume, and returns the milliseconds of the publish."""
    started = time.perf_counter()
    node.publish(pod, prefix="m/", **attributes)
    took = time.perf_counter() - started
    node.unpublish(pod)
    return took * 1000


def many(node, name, policy):
    return sorted(publish(node, f"{name}-{policy.lower()}-{n}", bucket="hit", pullPolicy=policy) for n in range(ROUNDS))


def share_in_memory(path):
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / SIZE


def latencies(directory, store):
    node, rows = driver.Driver(directory, store), []
    try:
        publish(node, "cached", bucket="cached")
        publish(node, "first", bucket="hit")
        # The cache writes the files to the disk after the publish.
        os.sync()
        for policy in POLICIES:
            times = many(node, "hit", policy)
            rows.append([policy, times[ROUNDS // 2], times[ROUNDS * 99 // 100]])
        target = node.publish("resident", bucket="hit", prefix="m/") / "weights.bin"
        rows.append(["share of the file in memory after the download", share_in_memory(target), "–"])
        node.unpublish("resident")
    finally:
        node.stop()
    return rows


def share_after_a_warmed_hit(directory, store):
    """The same cache, and a driver that reads ahead; the file is not in memory before."""
    node = driver.Driver(directory, store, "cache: {minFree: 1MiB, minFreeInodes: 0%, warmPageCache: onHit}\n")
    try:
        target = node.publish("asleep", bucket="hit", prefix="m/") / "weights.bin"
        node.until_logged("read ahead into the page cache", 1)
        with target.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = share_in_memory(target)
        node.publish("woken", bucket="hit", prefix="m/")
        node.until_logged("read ahead into the page cache", 2)
        after = share_in_memory(target)
        for pod in ("asleep", "woken"):
            node.unpublish(pod)
    finally:
        node.stop()
    return [["share of the file in memory before a hit that reads ahead", before, "–"],
            ["share of the file in memory after it", after, "–"]]


def steps(directory, store):
    """The median and the 99th percentile of each step, from the debug log."""
    node, found = driver.Driver(directory, store, arguments=["--log-level", "debug"]), []
    try:
        for policy in POLICIES:
            many(node, "step", policy)
            logged = STEPS.findall(node.log.read_text())[-ROUNDS:]
            lines = [{name: float(ms) for name, ms in (step.split("=") for step in line.split(" "))} for line in logged]
            times = {name: sorted(line[name] for line in lines) for name in lines[0]}
            times["sum"] = sorted(sum(line.values()) for line in lines)
            found.append({name: (of[len(of) // 2], of[len(of) * 99 // 100]) for name, of in times.items()})
    finally:
        node.stop()
    titles = {name: f"`{name}`: {meaning}" for name, meaning in MEANINGS.items()} | {"sum": "sum of each publish"}
    return [[titles[name], *(ms for of in found for ms in of.get(name, ("–", "–")))] for name in max(found, key=len)]


def tables(directory, store, cached):
    rows = latencies(directory, store) + share_after_a_warmed_hit(directory, store)
    return [
        {"title": f"NodePublishVolume of a cached model, beside {cached} cached files", "rows": rows,
         "columns": ["Pull policy", "Median, ms", "99th percentile, ms"]},
        {"title": "Steps of these publishes, with the debug log", "rows": steps(directory, store),
         "columns": ["Step", *(f"{policy}, {what}" for policy in POLICIES for what in ("median, ms", "p99, ms"))]},
    ]
