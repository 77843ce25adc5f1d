"""Rendering the chart and the kustomizations, once per session and form."""

import functools
import os
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "deploy/helm/oci-model-csi"
KUSTOMIZE = REPOSITORY / "deploy/kustomize"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
TOOLS = Path(os.environ.get("DEPLOY_TOOLS", "/nowhere"))
# The base of tests of single values.
BASE = CHART / "ci/base-values.yaml"


def pytest_configure(config):
    if not (TOOLS / "complete").exists():
        raise pytest.UsageError("DEPLOY_TOOLS names no tools: run `make deploy-test`")


def run(tool, *arguments, text=None):
    """Runs one of the tools, whether it succeeds or not."""
    return subprocess.run([TOOLS / tool, *map(str, arguments)], input=text, text=True, capture_output=True)


@functools.cache
def helm(*arguments, kubernetes="1.35.4"):
    """`helm template` with the arguments of the documented installation."""
    return run("helm", "template", "oci-model-csi", CHART, "--namespace", "oci-model-csi",
               "--kube-version", kubernetes, *arguments)


def rendered(*arguments, kubernetes="1.35.4"):
    """The YAML that the chart renders with these arguments."""
    done = helm(*arguments, kubernetes=kubernetes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def kustomized(directory):
    """The YAML that a kustomization renders."""
    done = run("kustomize", "build", directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text):
    """The objects of a stream of YAML, by kind and name."""
    found = {}
    for one in yaml.safe_load_all(text):
        if one:
            key = one["kind"], one["metadata"]["name"]
            assert key not in found, f"{key} is there twice"
            found[key] = one
    return found


def chart(*arguments, **how):
    """The objects that the chart renders with these arguments."""
    return objects(rendered(*arguments, **how))


def only(found, kind):
    """The one object of a kind."""
    [one] = [one for (there, _), one in found.items() if there == kind]
    return one


def pods(found):
    """The pod templates among objects."""
    return [one["spec"]["template"] for one in found.values() if one["kind"] in ("DaemonSet", "Deployment")]


def container(template, name="driver"):
    """A container of a pod template."""
    [one] = [one for one in template["spec"]["containers"] if one["name"] == name]
    return one
