"""How long a pod waits for its model, in the users' way and with the driver, in the same situations."""

import os
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from compare.programs import ENVIRONMENT, bulk_download, measured, same_memory
from driver import BINARY, Driver

from .models import BUCKET

USERS, OURS = "bulk-download", "oci-model-csi"
FIRST, JOINED_FIRST, JOINED, LATER, MARKED, RESTARTED, CRASHED = (
    "first pod of a node (cold)", "first of two pods", "second one, half a download later (joined)",
    "later pod of the node (hit)", "later pod of a claim with a marker", "pod after a restart of the node plugin",
    "download killed in the middle (SIGKILL), then started again")


class Start(NamedTuple):
    """How long a pod waited, the peak of the program's memory, and what Object Storage sent for it."""

    seconds: float
    memory: float
    sent: float


class Place:
    """What both ways need."""

    def __init__(self, tools, store, directory, model, before):
        self.tools, self.store, self.directory, self.model, self.before = tools, store, directory, model, before

    def empty(self, name):
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def sent(self):
        return self.store.stats()["body_bytes"] / self.model.size

    def until_half_is_sent(self):
        deadline = time.monotonic() + 60
        while self.sent() < 0.5:
            assert time.monotonic() < deadline, "no half of the model was sent within a minute"
            time.sleep(0.005)

    def must_be_in(self, directory):
        assert self.model.is_in(directory), f"{directory} has not the files of {self.model.prefix}"


class Users(Place):
    """An init container with bulk-download, and an empty directory for each pod."""

    def download(self, directory):
        found = measured([[bulk_download(self.tools, self.store, BUCKET, self.model.prefix, directory, "--overwrite")]])
        return Start(found["wall"], found["memory"], self.sent())

    def first(self):
        directory = self.empty("first")
        self.before(self.tools / "oci")
        self.store.clear_stats()
        start = self.download(directory)
        self.must_be_in(directory / self.model.prefix)
        shutil.rmtree(directory)
        return start

    def joined(self):
        pods = [self.empty("one"), self.empty("two")]
        self.before(self.tools / "oci")
        self.store.clear_stats()
        with ThreadPoolExecutor(1) as other:
            first = other.submit(self.download, pods[0])
            self.until_half_is_sent()
            second = self.download(pods[1])
        sent = self.sent()
        for directory in pods:
            self.must_be_in(directory / self.model.prefix)
            shutil.rmtree(directory)
        return first.result()._replace(sent=sent), second._replace(sent=sent)

    def marked(self):
        """A claim for a volume that an earlier pod filled; attaching the volume is not measured."""
        marker = self.empty("claim") / ".complete"
        marker.touch()
        found = measured([[["test", "-e", marker]]])
        return Start(found["wall"], found["memory"], 0.0)

    def crashed(self):
        directory = self.empty("crashed")
        self.before(self.tools / "oci")
        self.store.clear_stats()
        command = bulk_download(self.tools, self.store, BUCKET, self.model.prefix, directory, "--overwrite")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=os.environ | ENVIRONMENT)
        self.until_half_is_sent()
        process.kill()
        process.wait()
        start = self.download(directory)
        self.must_be_in(directory / self.model.prefix)
        shutil.rmtree(directory)
        return start

    def round(self, limited):
        """All situations; without a limit a download is over before its middle is seen."""
        starts = {FIRST: self.first(), LATER: self.first(), MARKED: self.marked()}
        if limited:
            starts[JOINED_FIRST], starts[JOINED] = self.joined()
            starts[CRASHED] = self.crashed()
        return starts


class Ours(Place):
    """Volumes of the driver; each of its nodes begins with an empty cache."""

    def node(self, name):
        node = Driver(self.empty(name), self.store)
        self.before(Path(BINARY))
        self.store.clear_stats()
        return node

    def publish(self, node, pod):
        began = time.perf_counter()
        node.publish(pod, bucket=BUCKET, prefix=self.model.prefix)
        return Start(time.perf_counter() - began, node.peak_memory(), self.sent())

    def end(self, node, *pods):
        for pod in pods:
            self.must_be_in(node.target(pod))
            node.unpublish(pod)
        node.stop()
        shutil.rmtree(node.directory)

    def alone(self):
        node = self.node("alone")
        starts = {FIRST: self.publish(node, "first")}
        self.store.clear_stats()
        starts[LATER] = self.publish(node, "later")
        starts[MARKED] = self.publish(node, "another")
        node.terminate()
        began = time.perf_counter()
        node.start()
        ready = time.perf_counter() - began
        restarted = self.publish(node, "restarted")
        starts[RESTARTED] = restarted._replace(seconds=ready + restarted.seconds)
        self.end(node, "first", "later", "another", "restarted")
        return starts

    def joined(self):
        node = self.node("joined")
        with ThreadPoolExecutor(1) as other:
            first = other.submit(self.publish, node, "first")
            self.until_half_is_sent()
            second = self.publish(node, "second")
        starts = first.result()._replace(sent=self.sent()), second._replace(sent=self.sent())
        self.end(node, "first", "second")
        return starts

    def crashed(self):
        node = self.node("crashed")
        with ThreadPoolExecutor(1) as other:
            lost = other.submit(self.publish, node, "pod")
            self.until_half_is_sent()
            node.kill()
            assert lost.exception() is not None, "the download was over before the kill"
        began = time.perf_counter()
        node.start()
        ready = time.perf_counter() - began
        again = self.publish(node, "pod")
        self.end(node, "pod")
        return again._replace(seconds=ready + again.seconds)

    def round(self, limited):
        starts = self.alone()
        if limited:
            starts[JOINED_FIRST], starts[JOINED] = self.joined()
            starts[CRASHED] = self.crashed()
        return starts


def medians(rounds):
    return {row: Start(*(statistics.median(column) for column in zip(*(starts[row] for starts in rounds))))
            for row in rounds[0]}


def seconds(value):
    return f"{value:.2f}" if value >= 0.095 else f"{value:.4f}"


def rows(users, ours):
    for name in (FIRST, JOINED_FIRST, JOINED, LATER, MARKED, RESTARTED, CRASHED):
        if name not in ours:
            continue
        mine, theirs = ours[name], users.get(name)
        if theirs is None:
            yield [name, "–", seconds(mine.seconds), "–", f"{mine.sent:.2f}", "–", round(mine.memory)]
            continue
        ratio = mine.seconds / theirs.seconds
        yield [name, seconds(theirs.seconds), f"{seconds(mine.seconds)} ({ratio:.3g})", f"{theirs.sent:.2f}",
               f"{mine.sent:.2f}", round(theirs.memory), round(mine.memory)]


def measure(tools, store, directory, model, rounds, rate, before=same_memory):
    """A table of medians; with a rate, Object Storage sends so many bytes a second, all connections together. Calls
    `before` with the program before each download."""
    users, ours = (way(tools, store, directory / way.__name__, model, before) for way in (Users, Ours))
    store.clear()
    if rate:
        store.fault({"bandwidth": {"bytes_per_sec": rate}})
    found = {USERS: [], OURS: []}
    try:
        for _ in range(rounds):
            found[USERS].append(users.round(rate is not None))
            found[OURS].append(ours.round(rate is not None))
    finally:
        store.clear()
    limit = f"{rate / 1e6:.0f} MB/s" if rate else "no limit but the machine"
    return {"title": f"Seconds until a pod has its model of {model.size / 1e6:.0f} MB; Object Storage: {limit}",
            "columns": ["", f"{USERS}, s", f"{OURS}, s", f"Bytes sent ÷ size, {USERS}", OURS, f"Peak memory, MiB, {USERS}", OURS],
            "rows": list(rows(medians(found[USERS]), medians(found[OURS])))}
