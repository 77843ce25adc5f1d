"""Users' actions with kubectl and helm, and the output that they see."""

import json
import time
from pathlib import Path

from node import run, until

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "deploy/helm/oci-model-csi"
DRIVER = "oci-model-csi.dev"
RELEASE = "oci-model-csi"


def kubectl(*arguments, seconds=60, **how):
    return run("kubectl", *arguments, seconds=seconds, **how)


def apply(*objects, fails=False):
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    return kubectl("apply", "--filename", "-", text=text, fails=fails)


def get(kind, name, namespace=None):
    where = ["--namespace", namespace] if namespace else []
    return json.loads(kubectl("get", kind, name, *where, "--output", "json"))


def inline(prefix, bucket="models", read_only=True, **attributes):
    """An inline volume, without its name."""
    return {"csi": {"driver": DRIVER, "readOnly": read_only,
                    "volumeAttributes": {"bucket": bucket, "prefix": prefix, **attributes}}}


def pod(name, volumes=None, command="sleep 1000000", image="busybox", mount=None, spec=None, **metadata):
    """A pod that sees each volume at /NAME; `mount` has more fields of the mounts."""
    volumes = volumes or {}
    shell = {"command": ["sh", "-c", command]} if isinstance(command, str) else {"args": command}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata},
        "spec": {
            # With 0 the API server forgets a pod before kubelet has ended it.
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [{
                "name": "it", "image": f"localhost/{image}:e2e", "imagePullPolicy": "Never", **shell,
                "volumeMounts": [{"name": volume, "mountPath": f"/{volume}", **(mount or {})} for volume in volumes],
            }],
            "volumes": [{"name": volume, **source} for volume, source in volumes.items()],
            **(spec or {}),
        },
    }


def claim(name, storage_class, mode="ReadOnlyMany", size="1Gi", **annotations):
    return {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "annotations": annotations},
        "spec": {"storageClassName": storage_class, "accessModes": [mode], "resources": {"requests": {"storage": size}}},
    }


def claimed(name):
    """A volume of a claim, without its name."""
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def storage_class(name, binding="WaitForFirstConsumer", **parameters):
    return {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": DRIVER,
        "parameters": parameters, "volumeBindingMode": binding, "reclaimPolicy": "Delete",
    }


class Team:
    """A namespace, and the actions of its users."""

    def __init__(self, name):
        self.name = name

    def create(self):
        kubectl("create", "namespace", self.name)
        until("the default service account", lambda: self.kubectl("get", "serviceaccount", "default"))

    def kubectl(self, *arguments, **how):
        return kubectl("--namespace", self.name, *arguments, **how)

    def apply(self, *objects):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl("apply", "--filename", "-", text=text)

    def start(self, name, volumes=None, seconds=90, condition="condition=Ready", **how):
        """Starts a pod and waits until it is ready or meets another condition."""
        self.apply(pod(name, volumes, **how))
        self.wait(name, seconds=seconds, condition=condition)

    def wait(self, *names, condition="condition=Ready", seconds=90):
        try:
            self.kubectl("wait", *(f"pod/{name}" for name in names), f"--for={condition}",
                         f"--timeout={seconds}s", seconds=seconds + 10)
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{self.describe(names[0])}") from None

    def exec(self, name, *command, **how):
        shell = ["sh", "-c", command[0]] if len(command) == 1 else command
        return self.kubectl("exec", name, "--", *shell, **how)

    def logs(self, name):
        return self.kubectl("logs", name)

    def describe(self, name, kind="pod"):
        return self.kubectl("describe", kind, name)

    def events(self, name):
        """The events of an object, `REASON: message` each."""
        found = json.loads(self.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}",
                                        "--output", "json"))["items"]
        return [f"{event['reason']}: {event.get('message') or event.get('note')}" for event in found]

    def says(self, name, *parts, kind="pod", seconds=90):
        """The output of `kubectl describe`, once all the parts are in it."""
        def there():
            text = self.describe(name, kind)
            missing = [part for part in parts if part not in text]
            assert not missing, f"{missing} not in:\n{text}"
            return text
        return until(f"what is said of {name}", there, seconds=seconds, every=1)

    def answered(self, name, *parts, kind="pod", **how):
        """The driver's answer that the events of `kubectl describe` have, once all the parts are in it.
        What else is described has the names that the object has anyway."""
        def there():
            text = self.describe(name, kind)
            answers = [line.split("rpc error: ")[1] for line in text.splitlines() if "rpc error: " in line]
            fitting = [answer for answer in answers if all(part in answer for part in parts)]
            assert fitting, f"{parts} not in the answers of:\n{text}"
            return fitting[0]
        return until(f"what {name} is answered", there, every=1, **{"seconds": 90, **how})

    def mounts(self, name):
        """The lines of mountinfo of a pod's volumes, on the node."""
        uid = get("pod", name, self.name)["metadata"]["uid"]
        return [line for line in mountinfo() if f"/pods/{uid}/volumes/kubernetes.io~csi/" in line]

    def delete(self, *names, seconds=60):
        """Deletes pods, and waits until kubelet has released them."""
        self.kubectl("delete", "pod", *names, "--ignore-not-found", f"--timeout={seconds}s", seconds=seconds + 10)

    def remove(self):
        """Ends its pods, which shows that each volume can be unmounted, and then the rest."""
        self.kubectl("delete", "pod", "--all", "--timeout=90s", seconds=100)
        self.kubectl("delete", "persistentvolumeclaim", "--all", "--timeout=60s", seconds=70)
        kubectl("delete", "namespace", self.name, "--wait=false")


class Helm:
    """The driver's release."""

    def __init__(self, directory, base):
        self.directory, self.base = directory, base

    def install(self, *changes, seconds=180, wait=True):
        """Installs or upgrades: the base values with changes on top."""
        values = []
        for number, change in enumerate((self.base, *changes)):
            file = self.directory / f"values-{number}.json"
            file.write_text(json.dumps(change))
            values += ["--values", file]
        wait = ["--wait", f"--timeout={seconds}s"] if wait else []
        return run("helm", "upgrade", "--install", RELEASE, CHART, "--namespace", RELEASE, *values, *wait,
                   seconds=seconds + 20)


def driver_pod(component="node"):
    """The name of the driver's pod that is not terminating."""
    found = json.loads(kubectl("--namespace", RELEASE, "get", "pods", "--output", "json", "--selector",
                               f"app.kubernetes.io/component={component}"))["items"]
    [name] = [one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]]
    return name


def driver_says(*arguments):
    """A command of the driver, run in its pod."""
    return kubectl("--namespace", RELEASE, "exec", driver_pod(), "--container", "driver", "--", "oci-model-csi", *arguments)


def mountinfo():
    return Path("/proc/self/mountinfo").read_text().splitlines()


def uptime():
    """Seconds since the machine's start, which containers share."""
    return float(Path("/proc/uptime").read_text().split()[0])


def pause(seconds):
    """Pauses where a state is observed at a given time and not waited for."""
    time.sleep(seconds)
