"""The examples, compared with their descriptions."""

import difflib
import re

from conftest import BASE, REPOSITORY, chart, container, only

import yaml

EXAMPLES = REPOSITORY / "deploy/examples"
DRIVER = "oci-model-csi.dev"
NODES = (REPOSITORY / "docs/nodes.md").read_text()


# Manifests for an API server; values for the chart are `.yml`.
OBJECTS = sorted(EXAMPLES.rglob("*.yaml"))


def documents():
    for path in OBJECTS:
        for one in yaml.safe_load_all(path.read_text()):
            yield path.name, one


def pod_specs():
    for name, one in documents():
        if one["kind"] == "Pod":
            yield name, one["spec"]
        if one["kind"] in ("Deployment", "DaemonSet"):
            yield name, one["spec"]["template"]["spec"]


def pod_specs_of_pages():
    """Deployments and InferenceServices in the blocks of the pages."""
    for path in sorted((REPOSITORY / "docs").glob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            for one in yaml.safe_load_all(block):
                if not isinstance(one, dict):
                    continue
                spec = one.get("spec", {})
                if one.get("kind") == "Deployment" and "containers" in spec.get("template", {}).get("spec", {}):
                    yield path.name, spec["template"]["spec"]
                if one.get("kind") == "InferenceService":
                    predictor = spec["predictor"]
                    yield path.name, {"containers": [predictor.get("model")], **predictor}


def code(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_the_migration_is_as_small_as_the_documents_say():
    before, after = (code((EXAMPLES / f"migration/{name}.yaml").read_text()) for name in ("before", "after"))
    changes = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
    gone = sum(line.startswith("-") for line in changes)
    come = sum(line.startswith("+") for line in changes)
    assert come <= 10
    for document in ("README.md", "deploy/README.md", "docs/migration.md"):
        text = " ".join((REPOSITORY / document).read_text().split())
        assert f"{gone} lines go, {come} come" in text, f"{document}: {gone} go, {come} come"


def test_the_migration_leaves_the_container_as_it_is():
    [before, after] = [spec["containers"][0] for name, spec in pod_specs() if name in ("before.yaml", "after.yaml")][::-1]
    [mount_before], [mount_after] = before.pop("volumeMounts"), after.pop("volumeMounts")
    assert before == after
    # bulk-download keeps the whole name of an object below its directory.
    assert mount_after["mountPath"] == f"{mount_before['mountPath']}/models/phi3-mini"


def test_no_volume_is_one_that_a_runtime_would_relabel():
    seen = set()
    for name, spec in pod_specs():
        for volume in spec["volumes"]:
            source = volume.get("csi") or volume.get("persistentVolumeClaim")
            if source and name != "before.yaml":
                assert source["readOnly"] is True, name
                seen.add(next(key for key in volume if key != "name"))
    assert seen == {"csi", "persistentVolumeClaim"}


def test_every_class_waits_for_a_pod_and_every_claim_is_read_only():
    classes = claims = 0
    for name, one in documents():
        if one["kind"] == "StorageClass":
            assert (one["provisioner"], one["volumeBindingMode"]) == (DRIVER, "WaitForFirstConsumer"), name
            classes += 1
        if one["kind"] in ("PersistentVolumeClaim", "PersistentVolume") and name != "before.yaml":
            assert one["spec"]["accessModes"] == ["ReadOnlyMany"], name
            claims += 1
    assert classes >= 2 and claims >= 3


def test_every_mount_has_a_volume_and_every_volume_a_mount():
    for name, spec in pod_specs():
        containers = spec["containers"] + spec.get("initContainers", [])
        mounted = {mount["name"] for one in containers for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}, name


def test_every_pod_with_a_gpu_tolerates_the_taint_of_gpu_nodes_in_the_one_documented_form():
    expected = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert yaml.safe_load(re.search(r"```yaml\n(tolerations:.*?)```", NODES, re.DOTALL)[1]) == {"tolerations": expected}
    seen = 0
    for name, spec in [*pod_specs(), *pod_specs_of_pages()]:
        if "nvidia.com/gpu" in str([one.get("resources") for one in spec["containers"]]) or name == "prefetch-pool.yaml":
            assert spec.get("tolerations") == expected, name
            seen += 1
        else:
            assert "tolerations" not in spec, name
    assert seen >= 11


def test_the_values_for_new_nodes_prefetch_models_and_remove_the_taint():
    path = EXAMPLES / "prefetch-values.yml"
    found = chart("--values", BASE, "--values", path)
    [text] = [one["data"]["config.yaml"] for (kind, _), one in found.items() if kind == "ConfigMap"]
    assert yaml.safe_load(text)["prefetch"] == yaml.safe_load(path.read_text())["config"]["prefetch"] != []
    arguments = container(only(found, "DaemonSet")["spec"]["template"])["args"]
    assert "--model-labels=32" in arguments
    assert not any(one.startswith("--startup-taint") for one in arguments), "the driver's default, which takes it off"
    taint = re.search(r"--register-with-taints=(\S+)=:NoSchedule", path.read_text())[1]
    assert f"{taint}:NoSchedule" in NODES


def test_examples_are_what_users_run():
    kinds = {one["kind"] for _, one in documents()}
    assert "Deployment" in kinds and "Pod" not in kinds, "a bare pod is not replaced when its node fails"


def test_commands_of_the_documents_work_in_zsh_too():
    """An interactive zsh passes a comment on as arguments, and expands patterns outside of quotes."""
    seen = 0
    for path in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "deploy").rglob("*.md")]:
        # Of developers, and written by `make bench`.
        if path.name == "performance.md":
            continue
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.splitlines():
                bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
                assert not re.search(r"(^|\s)#", bare), f"{path.name}: {line}"
                # `[ -s file ]` is a command, and the patterns of one command are meant.
                assert not re.search(r"[*?{}]|\[\S|\S\]", bare.replace("models/*/", "").replace("leases/*", "")), f"{path.name}: {line}"
                seen += 1
    assert seen > 60


def test_every_example_is_in_the_table():
    text = (REPOSITORY / "deploy/README.md").read_text()
    linked = set(re.findall(r"\]\(examples/([\w./-]+\.ya?ml)\)", text))
    assert linked == {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.y*ml")}
