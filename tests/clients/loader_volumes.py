"""Volumes of a driver that have the model of `loader_models`."""

import subprocess

import loader_models as models
from conftest import Store
from driver import BINARY, Driver

# Directories of a volume that have the same files.
PLACES = {
    "directory": ("models/tiny/", ""),
    "Hub snapshot": ("hub/", f"models--org--tiny/snapshots/{models.COMMIT}"),
}


def push(store, directory, uri, *arguments):
    run = subprocess.run(
        [BINARY, "push", "--config-file", store.config, "--oci-endpoint", store.endpoint,
         "--part-size", "1MiB", *arguments, directory, uri],
        env=store.environment(), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


class Mounted:
    """A store with the model, pushed as a directory and as a Hub cache, and a driver that
    mounts both."""

    def __init__(self, directory):
        self.directory = directory
        self.files = models.write_model(directory / "files")
        self.snapshot = models.lay_out_hub_cache(self.files, directory / "cache")
        self.store = Store(directory / "store")
        self.store.create_bucket("b")
        push(self.store, self.files, "oci://b/models/tiny/")
        push(self.store, directory / "cache", "oci://b/hub/",
             "--exclude", "blobs/, */blobs/, .locks/")
        self.driver = Driver(directory / "driver", self.store)
        self.pods = 0
        self.targets = {}

    def target(self, place):
        """The target path of the pod that has this place."""
        if place not in self.targets:
            self.targets[place] = self.publish(place)
        return self.targets[place]

    def publish(self, place, **attributes):
        """The target path of another pod."""
        self.pods += 1
        return self.driver.publish(
            f"pod-{self.pods}", bucket="b", prefix=PLACES[place][0], **attributes)

    def downloads(self):
        return self.store.answered("get") + self.store.answered("get", 206)

    def restart(self, between=lambda: None):
        self.driver.stop()
        between()
        self.driver = Driver(self.directory / "driver", self.store)

    def stop(self):
        self.driver.stop()
        self.store.stop()


def listing(directory):
    """What can be seen of every file below a directory but its content."""
    return {str(path.relative_to(directory)): (state.st_ino, state.st_size, state.st_mtime_ns)
            for path in directory.rglob("*") if (state := path.stat())}
