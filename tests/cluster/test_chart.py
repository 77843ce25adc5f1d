"""The API server accepts the objects of the chart, the kustomizations and the examples."""

import pytest
import yaml
from kube import CHART, RELEASE, REPOSITORY, apply, kubectl
from node import run

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
OVERLAYS = [REPOSITORY / "deploy/kustomize/base", *sorted((REPOSITORY / "deploy/kustomize/overlays").iterdir())]
EXAMPLES = [path for path in sorted((REPOSITORY / "deploy/examples").rglob("*.yaml"))
            if not path.stem.endswith("values")]
# Kinds of operators that are not installed in this cluster.
ELSEWHERE = ("monitoring.coreos.com/", "security.openshift.io/")


def accepted(text):
    objects = [one for one in yaml.safe_load_all(text) if one]
    known = [one for one in objects if not one["apiVersion"].startswith(ELSEWHERE)]
    for namespace in {one["metadata"].get("namespace", RELEASE) for one in known}:
        kubectl("create", "namespace", namespace, fails=None)
    # A pod is checked together with its service account, which a dry run does not create.
    accounts = [one for one in known if one["kind"] == "ServiceAccount" and one["metadata"].get("namespace", RELEASE) != RELEASE]
    if accounts:
        apply(*accounts)
    said = kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict",
                   "--filename", "-", text=yaml.safe_dump_all(known))
    assert len(said.splitlines()) == len(known) > 0, said


@pytest.mark.core
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_the_api_server_accepts_the_chart(helm, values):
    accepted(run("helm", "template", RELEASE, CHART, "--namespace", RELEASE, "--kube-version", "1.35.4", "--values", values))


@pytest.mark.core
@pytest.mark.parametrize("directory", OVERLAYS, ids=lambda path: path.name)
def test_the_api_server_accepts_the_kustomization(helm, directory):
    accepted(run("kustomize", "build", directory))


@pytest.mark.core
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_api_server_accepts_the_example(helm, example):
    accepted(example.read_text())
