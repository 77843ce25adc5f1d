"""Init containers with bulk-download under faults: no call is repeated but those that the oci CLI repeats."""

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from compare.programs import ENVIRONMENT, bulk_download

from .faults import AT_ONCE, sleep_until
from .models import BUCKET

# How long one bulk-download may take, and how often a container is started again.
PATIENCE, RESTARTS = 300, 5


class Containers:
    """Pods with an empty directory each. A container that fails is started again in the same directory, as kubelet does
    until the container succeeds; with `--no-overwrite`, which keeps what the attempt before has downloaded."""

    def __init__(self, tools, store, directory):
        self.tools, self.store, self.directory = tools, store, directory
        self.starts = self.asked = 0
        self.right, self.wrong, self.failures, self.waits = [], [], [], []
        self.sent_once = 0
        self.right_at_last, self.wrong_at_last, self.never, self.restarts = [], [], [], 0

    def run(self, episode):
        began = time.monotonic()
        self.starts += len(episode.pods)
        self.asked += sum(pod.model.size for pod in episode.pods)
        episode.inject(self.store)
        sent = self.store.stats()["body_bytes"]
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                first = list(pool.map(lambda pod: self.first(pod, began), episode.pods))
            self.sent_once += self.store.stats()["body_bytes"] - sent
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self.again, episode.pods, first))
        finally:
            self.store.clear_faults()

    def first(self, pod, began):
        sleep_until(began + pod.after)
        created = time.monotonic()
        status = self.download(pod)
        if status != 0:
            self.failures.append(f"{pod.name}, {pod.model.prefix}: {status}")
        else:
            self.waits.append(time.monotonic() - created)
            (self.right if self.is_right(pod) else self.wrong).append(pod.name)
        return status

    def again(self, pod, status):
        for _ in range(RESTARTS):
            if status == 0:
                break
            self.restarts += 1
            status = self.download(pod)
        if status != 0:
            self.never.append(pod.name)
        else:
            (self.right_at_last if self.is_right(pod) else self.wrong_at_last).append(pod.name)
        shutil.rmtree(self.directory / pod.name, ignore_errors=True)

    def download(self, pod):
        """The exit status of bulk-download."""
        command = bulk_download(self.tools, self.store, BUCKET, pod.model.prefix, self.directory / pod.name, "--no-overwrite")
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  env=os.environ | ENVIRONMENT, timeout=PATIENCE).returncode
        except subprocess.TimeoutExpired:
            return f"not over after {PATIENCE} s"

    def is_right(self, pod):
        return pod.model.is_in(self.directory / pod.name / pod.model.prefix)
