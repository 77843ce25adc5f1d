"""The kustomizations and the chart make the same objects."""

import re

import pytest
import yaml
from conftest import CHART, KUSTOMIZE, REPOSITORY, chart, kustomized, objects

PAIRS = {
    "base": KUSTOMIZE / "base",
    "oke": KUSTOMIZE / "overlays/oke",
    "oke-workload-identity": KUSTOMIZE / "overlays/oke-workload-identity",
    "openshift": KUSTOMIZE / "overlays/openshift",
    "dev": KUSTOMIZE / "overlays/dev",
    "components": REPOSITORY / "tests/deploy/components",
    "own-node": REPOSITORY / "tests/deploy/own-node",
}
# The oldest cluster that each is for: the chart renders the same objects for it.
OLDEST = {name: "1.30.0" if name in ("base", "components") else "1.32.0" for name in PAIRS}
# helm's labels about itself.
OF_HELM = ("app.kubernetes.io/managed-by", "helm.sh/chart")


def normal(one, names):
    """An object without the differences between the two tools: marks of the tool,
    the digest that restarts pods, and the order of unordered lists."""
    if isinstance(one, list):
        made = [normal(entry, names) for entry in one]
        if all(isinstance(entry, dict) for entry in made):
            made.sort(key=lambda entry: str(entry.get("mountPath") or entry.get("name") or ""))
        return made
    if not isinstance(one, dict):
        return names.get(one, one) if isinstance(one, str) else one
    made = {}
    for key, value in one.items():
        if key in OF_HELM or key == "checksum/config":
            continue
        if key == "args":
            command, *flags = value
            value = [command, *sorted(flags)] if not command.startswith("-") else sorted(value)
        if key == "config.yaml":
            value = yaml.safe_load(value)
        made[key] = normal(value, names)
    return made


def normalized(found):
    # kustomize's oci-model-csi-config-2t4k6h8m9f is helm's oci-model-csi-config.
    names = {name: re.sub(r"-[a-z0-9]{10}$", "", name) for kind, name in found
             if kind == "ConfigMap" and name.startswith("oci-model-csi-config-")}
    return {(kind, names.get(name, name)): normal(one, names) for (kind, name), one in found.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_kustomize_makes_what_the_chart_makes(name):
    by_helm = normalized(chart("--values", CHART / f"ci/{name}-values.yaml", kubernetes=OLDEST[name]))
    by_kustomize = normalized(objects(kustomized(PAIRS[name])))
    assert sorted(by_helm) == sorted(by_kustomize)
    for key, one in by_helm.items():
        assert by_kustomize[key] == one, key
    assert len(by_helm) >= 13


def test_every_overlay_is_compared():
    there = {path.name for path in (KUSTOMIZE / "overlays").iterdir()}
    assert there <= set(PAIRS)


def test_the_documents_say_which_clusters_an_overlay_is_for():
    text = (REPOSITORY / "deploy/README.md").read_text()
    assert "(Kubernetes 1.32 and later; 1.30 with `kustomize/base`)" in text
    for name in ("oke", "openshift", "dev"):
        header = (KUSTOMIZE / f"overlays/{name}/kustomization.yaml").read_text()
        assert ("OpenShift 4.19" if name == "openshift" else "Kubernetes 1.32") + " and later, for own-node" in header


def test_a_change_of_the_configuration_gives_it_another_name():
    def name(directory):
        return next(name for kind, name in objects(kustomized(directory)) if kind == "ConfigMap")
    assert name(PAIRS["base"]) != name(PAIRS["dev"])
