"""Pods of the driver under faults, whose calls are repeated as kubelet repeats them."""

import collections
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from driver import Driver

from .faults import AT_ONCE, sleep_until
from .models import BUCKET

# kubelet: initialDurationBeforeRetry and maxDurationBeforeRetry.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 122
# How long a pod may wait before its start counts as failed.
PATIENCE = 300
# Until the container of the node plugin runs again.
PAUSE_AFTER_KILL = 0.5
# isFinalError of kubelet.
NOT_FINAL = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE,
             grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}


class Failed(Exception):
    """A final answer, or none in time."""


class Node:
    """A node with the driver, and what its pods saw."""

    def __init__(self, store, directory, settings):
        self.store = store
        self.driver = Driver(directory, store, settings)
        self.starts = self.kills = self.crashes = self.asked = 0
        self.memory = self.sent = 0.0
        self.failures, self.waits, self.wrong, self.left = [], [], [], []
        self.repeated = collections.Counter()

    def run(self, episode):
        """One episode; afterwards all of its pods have ended, and nothing is mounted."""
        began = time.monotonic()
        self.starts += len(episode.pods)
        self.asked += sum(pod.model.size for pod in episode.pods)
        episode.inject(self.store)
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                pods = [pool.submit(self.start, pod, began) for pod in episode.pods]
                if episode.kill_after is not None:
                    sleep_until(began + episode.kill_after)
                    self.kill()
            for pod in pods:
                pod.result()
        finally:
            self.store.clear_faults()
        if self.driver.process.poll() is not None:
            self.crashes += 1
            self.driver.start()

    def kill(self):
        self.note_memory()
        self.driver.kill()
        self.kills += 1
        time.sleep(PAUSE_AFTER_KILL)
        self.driver.start()

    def start(self, pod, began):
        """A pod from its creation to its end."""
        sleep_until(began + pod.after)
        created = time.monotonic()
        try:
            target = self.repeat(lambda: self.driver.publish(pod.name, bucket=BUCKET, prefix=pod.model.prefix))
        except Failed as failed:
            self.failures.append(f"{pod.name}, {pod.model.prefix}: {failed}")
        else:
            self.waits.append(time.monotonic() - created)
            if not pod.model.is_in(target):
                self.wrong.append(pod.name)
            time.sleep(pod.runs)
        try:
            self.repeat(lambda: self.driver.unpublish(pod.name))
        except Failed as failed:
            self.failures.append(f"the end of {pod.name}: {failed}")

    def repeat(self, call):
        """Calls until there is an answer that kubelet would not repeat soon."""
        pause, deadline = FIRST_PAUSE, time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                code = error.code()
                if code not in NOT_FINAL or time.monotonic() + pause > deadline:
                    raise Failed(f"{code.name}: {error.details()}") from error
                self.repeated[code.name] += 1
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def note_memory(self):
        self.memory = max(self.memory, self.driver.peak_memory())

    def evicted(self):
        return self.driver.log.read_text().count("evicted a model")

    def violations(self):
        """What must not happen, once all pods have ended."""
        return [
            *self.failures,
            *(f"{pod} read wrong bytes" for pod in self.wrong),
            *(f"left mounted: {line}" for line in self.left),
            *([f"the driver ended {self.crashes} times:\n{self.driver.log.read_text()[-4000:]}"] if self.crashes else []),
        ]

    def stop(self):
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        self.left = [line for line in mounts if str(self.driver.kubelet) in line]
        self.sent = self.store.stats()["body_bytes"]
        self.note_memory()
        self.driver.stop()
