"""The cluster with the driver in it, once per session; a namespace for each test."""

import itertools
import os

import pytest
from kube import RELEASE, Helm, Team, apply, kubectl
from node import SCRATCH, Node, until
from store import ENDPOINT, Store

LOCAL = {"tag": "e2e", "pullPolicy": "Never"}
VALUES = {
    "image": {"repository": "localhost/oci-model-csi", **LOCAL},
    "sidecars": {
        "nodeDriverRegistrar": {"image": {"repository": "localhost/node-driver-registrar", **LOCAL}},
        "livenessProbe": {"image": {"repository": "localhost/livenessprobe", **LOCAL}},
        "provisioner": {"image": {"repository": "localhost/csi-provisioner", **LOCAL}},
    },
    "credentials": {"secretName": "oci"},
    "config": {
        # The machine that runs tests may be fuller than a node should be.
        "cache": {"minFree": "1MiB", "minFreeInodes": "0%"},
        "objectStorage": {"auth": "api_key", "endpoint": ENDPOINT},
    },
    "logging": {"level": "oci_model_csi=debug"},
}


def pytest_configure(config):
    if not os.environ.get("E2E_SCRATCH"):
        raise pytest.UsageError("no cluster to be in: run `make e2e`")


# The long download of test_downloads runs during the tests before it, and the
# tests after it restart the driver.
ORDER = ["volumes", "refusals", "model", "chart", "downloads", "space", "figures", "policy", "identity", "nodes", "lifecycle"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(item.module.__name__.removeprefix("test_")))


@pytest.fixture(scope="session")
def node():
    made = Node()
    try:
        made.up()
    except BaseException:
        print(made.diagnosis())
        raise
    return made


@pytest.fixture(scope="session")
def store(node):
    made = Store()
    made.up()
    return made


@pytest.fixture(scope="session")
def helm(node, store):
    """The driver, installed as its documents say."""
    kubectl("create", "namespace", RELEASE, fails=None)
    apply(store.secret())
    release = Helm(SCRATCH, VALUES)
    try:
        release.install()
    except BaseException:
        print(kubectl("describe", "pods", "--namespace", RELEASE))
        print(node.diagnosis())
        raise
    return release


NUMBERS = itertools.count(1)


@pytest.fixture
def team(helm, store, request):
    """An empty namespace. Afterwards each of its volumes is unmounted."""
    made = Team(f"team-{os.getpid()}-{next(NUMBERS)}")
    made.create()
    yield made
    store.heal()
    if getattr(request.node, "rep_call", None) is None or request.node.rep_call.failed:
        print(made.kubectl("get", "pods,persistentvolumeclaims,events", fails=None))
        print(kubectl("--namespace", RELEASE, "logs", "--selector", "app.kubernetes.io/component=node",
                      "--container", "driver", "--tail=60", fails=None))
    made.remove()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    setattr(item, f"rep_{report.when}", report)
