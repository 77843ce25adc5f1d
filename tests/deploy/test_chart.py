"""The objects of the chart, for every set of values in its ci/."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from conftest import BASE, CHART, REPOSITORY, VALUES, chart, container, only, pods, rendered, run

EVERY = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem.removesuffix("-values"))
CONFIGURATION = (REPOSITORY / "docs/configuration.md").read_text()


@EVERY
def test_the_chart_is_linted_without_a_warning(values):
    done = run("helm", "lint", "--strict", CHART, "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_every_value_is_in_the_schema_and_every_key_of_the_schema_has_a_value():
    def leaves(value, path=""):
        if isinstance(value, dict) and value:
            for key, below in value.items():
                yield from leaves(below, f"{path}.{key}")
        else:
            yield path

    def known(schema, path=""):
        for key, below in schema.get("properties", {}).items():
            if below.get("properties"):
                assert below["additionalProperties"] is False, f"{path}.{key} takes unknown keys"
                yield from known(below, f"{path}.{key}")
            else:
                yield f"{path}.{key}"

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    # Where the default is an empty object, the schema has more keys than the values.
    empty = {path for path in leaves(values) if any(one.startswith(f"{path}.") for one in known(schema))}
    assert empty == {".sidecars.seLinuxOptions"}
    in_values = set(leaves(values)) - empty
    in_schema = {one for one in known(schema) if not any(one.startswith(f"{path}.") for path in empty)} - {".global"}
    # The opposite case: objects of Kubernetes, whose keys the schema does not list.
    inside = {path for path in in_values if any(path.startswith(f"{one}.") for one in in_schema)}
    assert in_values - inside <= in_schema
    assert {one for one in in_schema if not any(f"{path}.".startswith(f"{one}.") for path in in_values)} == set()


def test_the_configuration_is_the_drivers_with_its_defaults():
    values = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    [sample] = re.findall(r"```yaml\n(.*?)```", CONFIGURATION, re.DOTALL)
    documented = yaml.safe_load(sample)
    assert values == documented


def test_the_readme_has_the_table_of_values():
    script = REPOSITORY / "deploy/helm/values.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_versions_are_those_of_the_driver():
    cargo = (REPOSITORY / "Cargo.toml").read_text()
    version = re.search(r'^version = "(.*)"', cargo, re.MULTILINE)[1]
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (version, version)
    [template, _] = pods(chart("--values", BASE))
    assert container(template)["image"].endswith(f":{version}")


@EVERY
def test_every_flag_of_the_driver_is_one_that_it_has(values):
    documented = set(re.findall(r"^\| `(--[a-z-]+)`", CONFIGURATION, re.MULTILINE))
    for template in pods(chart("--values", values)):
        command, *flags = container(template)["args"]
        assert command in ("node", "controller")
        names = [flag.split("=")[0] for flag in flags]
        assert len(set(names)) == len(names), "the driver refuses a flag that is given twice"
        # A variable replaces a flag, also for commands in the container.
        variables = [one["name"] for one in container(template)["env"] if one["name"].startswith("OCI_MODEL_CSI_")]
        names += ["--" + name.removeprefix("OCI_MODEL_CSI_").lower().replace("_", "-") for name in variables]
        assert set(names) <= documented
        assert len(names) >= 6


def settings_of(one):
    """The settings of a container of the driver, from flags and variables."""
    flags = dict(flag.lstrip("-").split("=", 1) for flag in one["args"][1:])
    variables = {each["name"]: each.get("value") for each in one["env"]}
    prefix = "OCI_MODEL_CSI_"
    named = {name.removeprefix(prefix).lower().replace("_", "-"): value for name, value in variables.items()}
    return {**named, **flags}


@EVERY
def test_only_the_container_that_mounts_is_privileged(values):
    privileged = []
    for template in pods(chart("--values", values)):
        spec = template["spec"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostPID") and not spec.get("hostIPC")
        for one in spec["containers"]:
            context = one["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            # The page cache of the node plugin is the models; its own memory has another limit.
            heap = [argument for argument in one.get("args", []) if argument.startswith("--heap-limit=")]
            assert bool(heap) == bool(context.get("privileged") and one["args"][0] == "node")
            assert heap or one["resources"]["limits"]["memory"]
            bidirectional = [mount for mount in one["volumeMounts"] if "mountPropagation" in mount]
            if context.get("privileged"):
                privileged.append(one["args"][0])
                assert [mount["name"] for mount in bidirectional] == ["pods"]
            else:
                assert not bidirectional
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert context["allowPrivilegeEscalation"] is False
    assert privileged == ["node"]


@EVERY
def test_rights_are_named_one_by_one_and_reach_no_secret(values):
    for one in chart("--values", values).values():
        for rule in one.get("rules", []):
            assert "*" not in str(rule)
            assert "secrets" not in rule["resources"] and "pods" not in rule["resources"]
            assert not set(rule["verbs"]) & {"deletecollection", "escalate", "bind", "impersonate"}
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            assert [subject["kind"] for subject in one["subjects"]] == ["ServiceAccount"]


@EVERY
def test_probes_ask_ports_that_are_served(values):
    for template in pods(chart("--values", values)):
        ports = {}
        for one in template["spec"]["containers"]:
            for port in one.get("ports", []):
                assert port["name"] not in ports
                ports[port["name"]] = port["containerPort"]
        served = {int(number) for one in template["spec"]["containers"] for flag in one["args"]
                  for number in re.findall(r"^--(?:http-endpoint|metrics-address)=[^:]*:(\d+)$", flag)}
        assert set(ports.values()) == served
        probes = [one[probe] for one in template["spec"]["containers"]
                  for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe in one]
        assert len(probes) >= 4
        for probe in probes:
            assert probe["httpGet"]["port"] in ports


@EVERY
def test_paths_are_the_same_on_both_sides_and_where_kubelet_looks(values):
    found = chart("--values", values)
    template = only(found, "DaemonSet")["spec"]["template"]
    name = only(found, "CSIDriver")["metadata"]["name"]
    flags = settings_of(container(template))
    registrar = dict(flag.lstrip("-").split("=", 1) for flag in container(template, "node-driver-registrar")["args"])
    host = {one["name"]: one["hostPath"] for one in template["spec"]["volumes"] if "hostPath" in one}
    mounts = {one["name"]: one["mountPath"] for one in container(template)["volumeMounts"]}

    assert host["cache"]["path"] == mounts["cache"] == flags["cache-dir"]
    assert host["pods"]["path"] == mounts["pods"] == f"{flags['kubelet-dir']}/pods"
    assert host["plugin"]["path"] == f"{flags['kubelet-dir']}/plugins/{name}"
    assert registrar["kubelet-registration-path"] == f"{host['plugin']['path']}/csi.sock"
    assert flags["csi-endpoint"] == f"unix://{registrar['csi-address']}"
    assert flags["driver-name"] == name
    # `kubectl exec … oci-model-csi cache` finds the driver's socket in the cache.
    assert "admin-endpoint" not in flags and "cache-dir" not in str(container(template)["args"])
    config = yaml.safe_load(found["ConfigMap", config_name(found)]["data"]["config.yaml"])
    assert config["cache"]["dir"] == flags["cache-dir"]
    required = config["cache"]["requireMount"]
    assert host["cache"]["type"] == ("Directory" if required else "DirectoryOrCreate")


@EVERY
def test_a_configuration_says_at_its_end_that_it_is_complete(values):
    found = chart("--values", values)
    text = found["ConfigMap", config_name(found)]["data"]["config.yaml"]
    assert text.endswith("\n...\n"), text[-80:]


def config_name(found):
    volumes = only(found, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    return next(one["configMap"]["name"] for one in volumes if one["name"] == "config")


@EVERY
def test_selectors_pick_their_own_pods_and_hold_no_version(values):
    selectors = []
    for one in chart("--values", values).values():
        if one["kind"] in ("DaemonSet", "Deployment"):
            selector = one["spec"]["selector"]["matchLabels"]
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert selector.items() <= labels.items()
            assert not any("version" in label or "chart" in label for label in labels)
            selectors.append(selector)
    assert len({json.dumps(selector) for selector in selectors}) == len(selectors)


def test_a_change_of_the_configuration_restarts_the_pods_and_nothing_else_does():
    def sums(*arguments):
        return [template["metadata"]["annotations"]["checksum/config"]
                for template in pods(chart("--values", BASE, *arguments))]
    before = sums()
    assert len(before) == 2
    assert sums("--set", "config.download.concurrency=32") != before
    assert sums("--set", "metrics.podMonitor.enabled=true", "--set", "networkPolicy.metricsNamespaces.a=b") == before
    # The driver follows these while it runs.
    assert sums("--set", "config.prefetch={oci://ai-model-cache/models/phi3-mini/}") == before
    rule = '[{"namespaces": ["team-a"], "buckets": ["b"], "prefixes": [""], "allow": true}]'
    assert sums("--set-json", f"config.policy.rules={rule}") == before


def test_cache_and_models_beside_it_are_reached_through_one_mount():
    def cache(*settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
        template = only(found, "DaemonSet")["spec"]["template"]
        [host] = [one["hostPath"] for one in template["spec"]["volumes"] if one["name"] == "cache"]
        [mounted] = [one["mountPath"] for one in container(template)["volumeMounts"] if one["name"] == "cache"]
        assert mounted == host["path"]
        return mounted, host["type"], settings_of(container(template))["cache-dir"]
    assert cache() == ("/var/lib/oci-model-csi", "DirectoryOrCreate", "/var/lib/oci-model-csi")
    beside = "config.cache.dir=/mnt/nvme/oci-model-csi", "node.cacheMount=/mnt/nvme"
    assert cache(*beside) == ("/mnt/nvme", "Directory", "/mnt/nvme/oci-model-csi")


def test_the_sidecars_may_use_the_socket_where_selinux_enforces():
    def options(*settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
        template = only(found, "DaemonSet")["spec"]["template"]
        [one] = {str(container(template, name)["securityContext"].get("seLinuxOptions"))
                 for name in ("node-driver-registrar", "liveness-probe")}
        return one
    assert options() == "None"
    assert options("openshift.enabled=true") == "{'type': 'spc_t'}"
    assert options("openshift.enabled=true", "sidecars.seLinuxOptions.type=mine") == "{'type': 'mine'}"


def test_no_value_is_checked_by_a_pattern_that_its_user_would_see():
    text = (CHART / "values.schema.json").read_text()
    assert '"pattern"' not in text and '"anyOf"' not in text, "_words.tpl says what to write"


def images(*settings):
    found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
    return [one["image"] for template in pods(found) for one in template["spec"]["containers"]]


def test_one_registry_has_all_images_under_their_paths():
    mirrored = images("imageRegistry=fra.ocir.io/mytenancy", "image.repository=")
    assert mirrored[0] == mirrored[3] == f"fra.ocir.io/mytenancy/oci-model-csi:{mirrored[0].split(':')[1]}"
    names = ["csi-node-driver-registrar", "livenessprobe", "csi-provisioner"]
    assert [one.split(":")[0] for one in (mirrored[1], mirrored[2], mirrored[4])] == [
        f"fra.ocir.io/mytenancy/sig-storage/{name}" for name in names]
    # An image that names its registry keeps it.
    assert images("imageRegistry=fra.ocir.io/mytenancy")[0].startswith("image.invalid/oci-model-csi:")
    tags = [one.rsplit("/", 1)[1] for one in images()]
    assert [one.rsplit("/", 1)[1] for one in mirrored] == tags, "versions do not depend on the registry"


def test_the_list_for_a_mirror_has_every_image_of_the_chart():
    text = (REPOSITORY / "deploy/image/README.md").read_text()
    sidecars = images()[1:3] + images()[4:]
    assert sorted(re.findall(r"^\| `(registry\S+)` \|", text, re.MULTILINE)) == sorted(sidecars)


def test_a_digest_replaces_the_tag_of_any_image():
    digest = "sha256:" + "2" * 64
    sidecars = ("nodeDriverRegistrar", "livenessProbe", "provisioner")
    pinned = images(f"image.digest={digest}", *(f"sidecars.{name}.image.digest={digest}" for name in sidecars))
    assert len(pinned) == 5 and all(one.endswith(f"@{digest}") and one.count(":") == 1 for one in pinned)


def test_every_object_has_the_common_annotations_and_labels():
    found = chart("--values", CHART / "ci/everything-values.yaml", "--set", "controller.serviceAccount.create=true")
    assert len(found) >= 18
    for key, one in found.items():
        assert one["metadata"]["annotations"]["example.com/contact"] == "ml-platform", key
        assert one["metadata"]["labels"]["team"] == "ml-platform", key
    assert found["ServiceAccount", "models-node"]["metadata"]["annotations"]["example.com/a"] == "b"
    for template in pods(found):
        assert "example.com/contact" not in template["metadata"]["annotations"], "those of pods have their own key"


def test_no_pod_of_the_driver_is_on_a_virtual_node_by_default():
    for template in pods(chart("--values", BASE)):
        [term] = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"]
        assert term == {"matchExpressions": [{"key": "node-role.kubernetes.io/virtual-node", "operator": "DoesNotExist"}]}


def test_a_budget_and_a_spread_select_the_pods_of_the_controller():
    found = chart("--values", CHART / "ci/everything-values.yaml")
    labels = only(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    budget = only(found, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == "50%"
    [spread] = only(found, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    for selector in (budget["selector"], spread["labelSelector"]):
        assert selector["matchLabels"].items() <= labels.items()
        assert selector["matchLabels"]["app.kubernetes.io/component"] == "controller"
    assert not [kind for kind, _ in chart("--values", BASE) if kind == "PodDisruptionBudget"]


def test_containers_before_the_driver_are_the_users():
    templates = pods(chart("--values", CHART / "ci/everything-values.yaml"))
    assert [[one["name"] for one in template["spec"]["initContainers"]] for template in templates] == [["wait"], ["wait"]]
    assert not any("initContainers" in template["spec"] for template in pods(chart("--values", BASE)))


def test_the_values_for_oke_need_only_an_image():
    path = CHART / "values-oke.yaml"
    found = chart("--values", path, "--set", "image.repository=fra.ocir.io/mytenancy/oci-model-csi")
    config = yaml.safe_load(found["ConfigMap", config_name(found)]["data"]["config.yaml"])
    spec = only(found, "DaemonSet")["spec"]["template"]["spec"]
    assert config["cache"]["requireMount"] is True
    assert set(spec["nodeSelector"]) > {"kubernetes.io/os"}, "nodes without the disk would stop every rollout"
    [label] = set(spec["nodeSelector"].items()) - {("kubernetes.io/os", "linux")}
    assert label == ("model-cache", "true")
    for page in ("deploy/README.md", "docs/nodes.md", "docs/quickstart.md"):
        text = (REPOSITORY / page).read_text()
        assert "values-oke.yaml" in text, page
        assert '"key": "model-cache", "value": "true"' in text or 'model-cache: "true"' in text, page


def test_the_notes_warn_of_nodes_without_the_required_disk():
    def notes(*settings):
        done = run("helm", "install", "oci-model-csi", CHART, "--dry-run=client", "--namespace", "oci-model-csi", "--values", BASE,
                   *(word for setting in settings for word in ("--set", setting)))
        assert done.returncode == 0, done.stderr
        return done.stdout.split("NOTES:")[1]
    warned = "On nodes without a disk at /mnt/models"
    disk = "config.cache.dir=/mnt/models", "config.cache.requireMount=true"
    assert warned in notes(*disk)
    assert warned not in notes(*disk, "node.nodeSelector.model-cache=yes")
    assert "the first of them stops every rollout" not in notes()


def test_one_node_at_a_time_and_never_two_drivers_on_one_cache():
    strategy = only(chart("--values", BASE), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    strategy = only(chart("--values", BASE, "--set", "node.updateStrategy=OnDelete"), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy == {"type": "OnDelete"}


def test_an_old_cluster_gets_no_field_that_it_does_not_know():
    def lifecycle(kubernetes):
        found = chart("--values", BASE, kubernetes=kubernetes)
        return container(only(found, "DaemonSet")["spec"]["template"]).get("lifecycle")
    assert lifecycle("1.29.6") is None
    assert lifecycle("1.30.0") == {"preStop": {"sleep": {"seconds": 2}}}


def test_tokens_are_sent_as_secrets_where_kubelet_supports_it():
    def spec(kubernetes, *arguments):
        return only(chart("--values", BASE, *arguments, kubernetes=kubernetes), "CSIDriver")["spec"]
    asked = "--set-json", 'csiDriver.tokenRequests=[{"audience": ""}]'
    there = [spec(version, *asked).get("serviceAccountTokenInSecrets")
             for version in ("1.34.9", "1.35.0-alpha.1", "v1.35.0-gke.100", "v1.35.4+oke.1")]
    assert there == [None, True, True, True]
    assert "serviceAccountTokenInSecrets" not in spec("1.35.4"), "nothing is asked for"
    off = spec("1.35.4", *asked, "--set", "csiDriver.serviceAccountTokenInSecrets=false")
    assert "serviceAccountTokenInSecrets" not in off and off["tokenRequests"] == [{"audience": ""}]


def test_fields_of_newer_clusters_are_rendered_where_these_have_them_and_only_if_asked_for():
    def value(field, kubernetes, *settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)),
                      kubernetes=kubernetes)
        return only(found, "CSIDriver")["spec"].get(field)
    prevent, period = "preventPodSchedulingIfMissing", "nodeAllocatableUpdatePeriodSeconds"
    versions = "1.33.13", "1.34.4", "1.35.4", "v1.36.0-gke.100", "1.37.2"
    asked = [value(prevent, version, f"csiDriver.{prevent}=true") for version in versions]
    assert asked == [None, None, None, True, True]
    assert value(prevent, "1.37.2") is None, "cluster-autoscaler needs a flag for it"
    asked = [value(period, version, f"csiDriver.{period}=600") for version in versions]
    assert asked == [None, 600, 600, 600, 600]
    assert value(period, "1.37.2") is None


def test_the_controller_lists_nodes_only_for_the_view_of_all_nodes():
    def rights(*settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
        rules = found["ClusterRole", "oci-model-csi-controller"]["rules"]
        return {(one, verb) for rule in rules for one in rule["resources"] for verb in rule["verbs"] if "nodes" in one}
    assert rights() == set()
    assert rights("node.modelLabels=8") == {("nodes", "list"), ("csinodes", "list")}


def test_large_numbers_reach_the_driver_as_they_are():
    text = rendered("--values", BASE, "--set", "config.limits.maxObjects=10000000",
                    "--set", "config.limits.maxModelSize=536870912000")
    assert "maxObjects: 10000000\n" in text
    assert "maxModelSize: 536870912000\n" in text


@EVERY
def test_in_the_node_plugin_only_the_driver_has_a_token(values):
    spec = only(chart("--values", values), "DaemonSet")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    with_token = [one["name"] for one in spec["volumes"]
                  if any("serviceAccountToken" in source for source in one.get("projected", {}).get("sources", []))]
    assert with_token == ["token"]
    mounted = [(one["name"], mount["mountPath"]) for one in spec["containers"] for mount in one["volumeMounts"]
               if mount["name"] in with_token]
    # Where the driver looks without a flag.
    default = re.search(r"^\| `--service-account-dir` \|.*\| `(.*)` \|$", CONFIGURATION, re.MULTILINE)[1]
    assert mounted == [("driver", default)]
    [token] = [one for one in spec["volumes"] if one["name"] == "token"]
    files = [source.get("serviceAccountToken", {}).get("path") or source["configMap"]["items"][0]["path"]
             for source in token["projected"]["sources"]]
    assert files == ["token", "ca.crt"]


def test_without_an_admission_policy_the_node_plugin_changes_no_node():
    def rights(kubernetes, *settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)),
                      kubernetes=kubernetes)
        rules = found["ClusterRole", "oci-model-csi-node"]["rules"]
        reaches = any("nodes" in rule["resources"] for rule in rules)
        limited = ("ValidatingAdmissionPolicy", "oci-model-csi-own-node") in found
        flags = [flag for flag in container(pods(found)[0])["args"] if "taint" in flag or "label" in flag]
        return reaches, limited, flags
    assert rights("1.31.9") == (False, False, ["--startup-taint="])
    assert rights("1.32.0") == (True, True, [])
    assert rights("v1.32.0-gke.100") == (True, True, [])
    # An explicit setting allows it for all nodes.
    assert rights("1.31.9", "rbac.ownNodeOnly=false") == (True, False, [])
    assert rights("1.31.9", "rbac.ownNodeOnly=false", "node.modelLabels=5") == (True, False, ["--model-labels=5"])
    assert rights("1.31.9", "rbac.ownNodeOnly=false", "node.startupTaint.remove=false") == (
        False, False, ["--startup-taint="])


def test_the_node_plugin_may_touch_nodes_only_where_it_is_asked_to():
    def rights(*settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
        rules = found["ClusterRole", "oci-model-csi-node"]["rules"]
        flags = [flag for flag in container(pods(found)[0])["args"] if "taint" in flag or "label" in flag]
        return {(one, verb) for rule in rules for one in rule["resources"] for verb in rule["verbs"]}, flags
    events = {("events", "create"), ("events", "patch")}
    nodes = {("nodes", "get"), ("nodes", "patch")}
    assert rights() == (events | nodes | {("csinodes", "get")}, [])
    assert rights("node.startupTaint.remove=false") == (events, ["--startup-taint="])
    assert rights("node.startupTaint.remove=false", "node.modelLabels=5") == (
        events | nodes, ["--startup-taint=", "--model-labels=5"])
    assert rights("node.startupTaint.key=a/b")[1] == ["--startup-taint=a/b"]


def test_the_node_plugin_reads_its_node_for_the_selectors_of_the_prefetch_list():
    def rights(*entries, kubernetes="1.30.0"):
        found = chart("--values", BASE, "--set-json", f"config.prefetch={json.dumps(entries)}", kubernetes=kubernetes)
        rules = found["ClusterRole", "oci-model-csi-node"]["rules"]
        return {verb for rule in rules for verb in rule["verbs"] if "nodes" in rule["resources"]}
    uri = "oci://ai-model-cache/models/phi3-mini/"
    assert rights(uri, {"uri": uri}, {"uri": uri, "nodeSelector": {}}) == set()
    assert rights(uri, {"uri": uri, "nodeSelector": {"pool": "gpu"}}) == {"get"}
    assert rights({"uri": uri, "nodeSelector": {"pool": "gpu"}}, kubernetes="1.35.4") == {"get", "patch"}


def test_an_admission_policy_limits_the_node_plugin_to_its_own_node():
    def policy(kubernetes, *settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set", setting)),
                      kubernetes=kubernetes)
        return ("ValidatingAdmissionPolicy", "oci-model-csi-own-node") in found
    assert [policy(version) for version in ("1.31.9", "1.32.0", "v1.32.0-gke.100", "1.35.4")] == [False, True, True, True]
    assert not policy("1.35.4", "rbac.ownNodeOnly=false")
    # Without the permission there is nothing to limit.
    assert not policy("1.35.4", "node.startupTaint.remove=false")
    assert not policy("1.35.4", "rbac.create=false")
    assert policy("1.35.4", "node.startupTaint.remove=false", "node.modelLabels=5")
    assert policy("1.35.4", "rbac.create=false", "rbac.ownNodeOnly=true")


@EVERY
def test_by_default_no_connection_is_admitted(values):
    found = chart("--values", values, "--set", "networkPolicy.enabled=true")
    policy = only(found, "NetworkPolicy")["spec"]
    assert "Ingress" in policy["policyTypes"]
    for template in pods(found):
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    for rule in policy["ingress"]:
        assert rule["from"], "an empty list of peers admits all"
        assert rule["ports"]


def test_metrics_are_read_from_namespaces_with_the_labels_that_are_named():
    def policy(*settings):
        found = chart("--values", BASE, *(word for setting in settings for word in ("--set-json", setting)))
        return only(found, "NetworkPolicy")["spec"]
    assert policy()["policyTypes"] == ["Ingress"] and policy()["ingress"] == [], "the default"
    labels = {"kubernetes.io/metadata.name": "monitoring"}
    chosen = policy(f"networkPolicy.metricsNamespaces={json.dumps(labels)}", "metrics.podMonitor.enabled=true")
    assert chosen["ingress"] == [
        {"ports": [{"port": "http-metrics"}], "from": [{"namespaceSelector": {"matchLabels": labels}}]}]
    more = [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]
    assert policy(f"networkPolicy.extraIngress={json.dumps(more)}")["ingress"] == more
    assert "egress" not in chosen
    assert policy("networkPolicy.egress=true")["policyTypes"] == ["Ingress", "Egress"]
    off = chart("--values", BASE, "--set", "networkPolicy.enabled=false")
    assert not [kind for kind, _ in off if kind == "NetworkPolicy"]


def test_a_policy_lets_the_configured_endpoint_and_proxy_through():
    def ports(value, key="endpoint"):
        found = chart("--values", BASE, "--set", "networkPolicy.egress=true",
                      "--set", f"config.objectStorage.{key}={value}")
        return [port["port"] for port in only(found, "NetworkPolicy")["spec"]["egress"][1]["ports"]]
    assert ports("") == [443, 6443]
    assert ports("http://store.example.com:8080") == [443, 6443, 8080]
    assert ports("http://10.0.0.1") == [443, 6443, 80]
    assert ports("https://store.example.com:443") == [443, 6443]
    assert ports("dedicated") == ports("dual-stack") == [443, 6443]
    assert ports("http://proxy.example.com:3128", "proxy") == [443, 6443, 3128]
    assert ports("http://proxy.example.com", "proxy") == [443, 6443, 80]


def test_traces_go_where_the_values_say_and_the_policy_lets_them_through():
    collector = "http://collector.observability:4317"
    found = chart("--values", BASE, "--set", f"tracing.endpoint={collector}", "--set", "tracing.headersSecretName=otlp",
                  "--set", "networkPolicy.egress=true")
    for template in pods(found):
        driver = next(one for one in template["spec"]["containers"] if one["name"] == "driver")
        names = [variable["name"] for variable in driver["env"]]
        assert len(set(names)) == len(names)
        values = {variable["name"]: variable.get("value") for variable in driver["env"]}
        assert values["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == collector
        # Kubernetes replaces only variables that come before.
        assert names.index("POD_UID") < names.index("OTEL_RESOURCE_ATTRIBUTES")
        headers = driver["env"][names.index("OTEL_EXPORTER_OTLP_TRACES_HEADERS")]["valueFrom"]
        assert headers == {"secretKeyRef": {"name": "otlp", "key": "headers"}}
    egress = only(found, "NetworkPolicy")["spec"]["egress"][1]["ports"]
    assert 4317 in [port["port"] for port in egress]
    for template in pods(chart("--values", BASE)):
        driver = next(one for one in template["spec"]["containers"] if one["name"] == "driver")
        assert not [one["name"] for one in driver["env"] if one["name"].startswith("OTEL_")], "off by default"
