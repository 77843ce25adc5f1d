"""The messages that users see for invalid objects."""

import json
import shutil

import pytest
from kube import CHART, RELEASE, apply, claim, claimed, get, inline, kubectl, pod, storage_class
from node import SCRATCH, run, until
from conftest import VALUES


@pytest.mark.core
@pytest.mark.parametrize("name, volume, said", [
    ("writable", inline("tiny/", read_only=False), ["code = InvalidArgument", "readOnly: true"]),
    ("bucket", inline("tiny/", bucket="no-such-bucket"), ["code = NotFound", "bucket no-such-bucket", "404 BucketNotFound"]),
    ("prefix", inline("no-such-model/"), ["code = NotFound", "no object under no-such-model/ in bucket models"]),
    ("attribute", inline("tiny/", prefx="x"), ["code = InvalidArgument", 'unknown attribute "prefx"; did you mean prefix?']),
    ("endpoint", inline("tiny/", endpoint="http://10.0.0.1"), ["code = InvalidArgument", 'unknown attribute "endpoint"']),
])
def test_the_events_of_a_pod_name_the_mistake_in_its_volume(team, store, name, volume, said):
    store.put("models", "tiny/config.json", "{}")
    team.apply(pod(name, {"model": volume}))
    print(f"figure: what kubectl describe says of {name}: {team.answered(name, *said)}")
    if said[0] == "code = NotFound":
        team.says(name, "ModelPullFailed")
    assert get("pod", name, team.name)["status"]["phase"] == "Pending"


@pytest.mark.core
def test_a_pod_starts_once_a_mistake_outside_it_is_corrected(team, store):
    team.apply(pod("early", {"model": inline("it/", bucket=team.name)}))
    team.answered("early", "code = NotFound")
    store.put(team.name, "it/config.json", "{}")
    team.wait("early", seconds=120)


@pytest.mark.core
@pytest.mark.parametrize("name, wanted, parameters, said", [
    ("writers", {"mode": "ReadWriteMany"}, {}, ["InvalidArgument", "ReadOnlyMany"]),
    ("vanished", {}, {"bucket": "was-deleted"}, ["NotFound", "was-deleted"]),
    ("unknown", {}, {"reclaim": "x"}, ["InvalidArgument", "reclaim"]),
    ("missing", {}, {"prefix": "models/${pvc.name}/"}, ["NotFound", "models/missing/"]),
    ("variable", {}, {"prefix": "models/${pvc.labels}/"}, ["InvalidArgument", "pvc.labels"]),
])
def test_the_events_of_a_claim_name_its_mistake_or_that_of_its_class(team, store, name, wanted, parameters, said):
    store.put("models", "tiny/config.json", "{}")
    of_class = f"{team.name}-{name}"
    apply(storage_class(of_class, "Immediate", **{"bucket": "models", "prefix": "tiny/", **parameters}))
    team.apply(claim(name, of_class, **wanted))
    team.answered(name, *said, kind="persistentvolumeclaim")
    kubectl("delete", "storageclass", of_class)


@pytest.mark.core
def test_a_claim_of_one_byte_is_as_large_as_its_model(team, store):
    store.put("models", "byte/config.json", "{}")
    store.put("models", "byte/weights.bin", b"w" * 4998)
    apply(storage_class(team.name, "Immediate", bucket="models", prefix="byte/"))
    team.apply(claim("byte", team.name, size="1"))
    until("the claim", lambda: get("persistentvolumeclaim", "byte", team.name)["status"]["phase"] == "Bound")
    assert get("persistentvolumeclaim", "byte", team.name)["status"]["capacity"]["storage"] == "5k"
    kubectl("delete", "storageclass", team.name)


@pytest.mark.core
def test_new_pods_of_a_class_whose_bucket_vanished_say_so(team, store):
    store.put(team.name, "it/config.json", "{}")
    apply(storage_class(team.name, "Immediate", bucket=team.name, prefix="it/"))
    team.apply(claim("it", team.name))
    until("the claim", lambda: get("persistentvolumeclaim", "it", team.name)["status"]["phase"] == "Bound")
    shutil.rmtree(store.root / team.name)
    team.apply(pod("late", {"model": claimed("it")}))
    team.answered("late", "code = NotFound", f"bucket {team.name}")
    kubectl("delete", "storageclass", team.name)


def test_kubelet_reports_a_pod_that_names_another_driver(team):
    volume = inline("tiny/")
    volume["csi"]["driver"] = "oci-model-cis.dev"
    team.apply(pod("mistyped", {"model": volume}))
    team.says("mistyped", "driver name oci-model-cis.dev not found in the list of registered CSI drivers")


class Second:
    """Another release with a driver of its own name, beside the one of all tests."""

    name = "second"

    def install(self, cache=None, **node):
        values = SCRATCH / "second.json"
        values.write_text(json.dumps({
            **VALUES, "csiDriver": {"name": "second.example"}, "controller": {"enabled": False}, "node": node,
            "config": {**VALUES["config"], "cache": {**VALUES["config"]["cache"], "dir": "/var/lib/second", **(cache or {})}}}))
        return run("helm", "upgrade", "--install", self.name, CHART, "--namespace", RELEASE, "--values", values,
                   fails=None)

    def kubectl(self, *arguments, **how):
        return kubectl("--namespace", RELEASE, *arguments, **how)

    def pod(self):
        found = self.kubectl("get", "pods", "--output", "name", "--selector", f"app.kubernetes.io/instance={self.name}")
        return found.split()[-1]


@pytest.fixture
def second(helm):
    made = Second()
    yield made
    run("helm", "uninstall", made.name, "--namespace", RELEASE, "--ignore-not-found", "--wait", "--timeout=60s",
        seconds=80, fails=None)


def test_a_wrong_kubelet_path_is_reported_on_the_drivers_pod(second):
    second.install(kubeletPath="/var/lib/k0s/kubelet")
    until("the event", lambda: "hostPath type check failed: /var/lib/k0s/kubelet/p" in second.kubectl("describe", second.pod()))


def test_a_missing_disk_is_reported_on_the_drivers_pod_and_no_directory_replaces_it(second):
    second.install(cache={"dir": "/var/lib/missing", "requireMount": True})
    until("the event", lambda: "hostPath type check failed: /var/lib/missing is not a directory"
          in second.kubectl("describe", second.pod()))


def test_a_configuration_with_an_unknown_key_stops_the_driver_with_file_and_line(second):
    second.install()
    until("the configuration", lambda: second.kubectl("get", "configmap", "second-oci-model-csi-config"))
    config = second.kubectl("get", "configmap", "second-oci-model-csi-config", "--output", "jsonpath={.data.config\\.yaml}")
    lines = config.splitlines()
    wrong = "\n".join([*lines, "cahce:", "  dir: /elsewhere"])
    second.kubectl("patch", "configmap", "second-oci-model-csi-config", "--type=merge",
                   "--patch", json.dumps({"data": {"config.yaml": wrong}}))
    second.kubectl("delete", second.pod(), "--timeout=60s", seconds=70)
    expected = f"/etc/oci-model-csi/config.yaml, line {len(lines) + 1}, column 1: unknown key `cahce`; did you mean `cache`?"

    def ended():
        status = json.loads(second.kubectl("get", second.pod(), "--output", "json"))["status"]
        [driver] = [one for one in status["containerStatuses"] if one["name"] == "driver"]
        if driver["ready"]:  # kubelet still had the previous configuration
            second.kubectl("delete", second.pod(), "--timeout=60s", seconds=70)
        return (driver["lastState"].get("terminated") or driver["state"].get("terminated"))["exitCode"] == 2
    until("exit code 2", ended, seconds=120, every=2)
    said = second.kubectl("logs", second.pod(), "--container", "driver")
    assert expected in said, said
