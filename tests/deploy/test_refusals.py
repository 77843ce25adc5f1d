"""Impossible values are refused with a message before anything is installed."""

import pytest
from conftest import BASE, helm

LONG = "a" * 64


def rule(**changed):
    """The settings of a whole rule of the policy, with a change."""
    complete = {"namespaces": "{team-a}", "buckets": "{b}", "prefixes": "{models/}", "allow": "true"} | changed
    return [f"config.policy.rules[0].{key}={value}" for key, value in complete.items()]


SENTENCES = [
    (["image.repository="], "image.repository is empty: no image is published yet"),
    (["image.repository=fra.ocir.io/mytenancy/oci-model-csi:0.1.0"],
     'image.repository is "fra.ocir.io/mytenancy/oci-model-csi:0.1.0", which ends with a tag or a digest: leave that out here, and write it in image.tag'),
    (["image.repository=localhost:5000/oci-model-csi@sha256:00"], "which ends with a tag or a digest"),
    (["image.repository=https://fra.ocir.io/mytenancy/oci-model-csi"], "such as fra.ocir.io/mytenancy/oci-model-csi, without https://"),
    (["sidecars.livenessProbe.image.repository=localhost/livenessprobe:v1"],
     "write it in sidecars.livenessProbe.image.tag or sidecars.livenessProbe.image.digest"),
    (["imageRegistry=fra.ocir.io/mytenancy/"], "without https:// and without a slash at its end"),
    (["imageRegistry=https://fra.ocir.io/mytenancy"], 'imageRegistry is "https://fra.ocir.io/mytenancy": write a registry with its path'),
    (["node.tolerations[0].operator=Exists"],
     "node.tolerations has no effect while node.tolerateAllTaints is true: the node plugin tolerates every taint already"),
    (["csiDriver.name=Models"], 'csiDriver.name is "Models": write a DNS name'),
    (["csiDriver.name=models_example"], 'csiDriver.name is "models_example": write a DNS name'),
    (["csiDriver.name="], 'csiDriver.name is "": write a DNS name'),
    ([f"csiDriver.name={LONG}"], "of at most 63 characters in lower case"),
    (["node.kubeletPath=/var/lib/kubelet/"], "write an absolute path without a slash at its end, such as /var/lib/kubelet"),
    (["node.kubeletPath=var/lib/kubelet"], 'node.kubeletPath is "var/lib/kubelet": write an absolute path'),
    (["node.kubeletPath="], 'node.kubeletPath is "": write an absolute path'),
    (["node.kubeletPath=/" + "k" * 90], "has 135 bytes, and the kernel takes 107"),
    (["config.cache.dir="], 'config.cache.dir is "": write the absolute path of a directory on the nodes'),
    (["config.cache.dir=cache"], 'config.cache.dir is "cache": write the absolute path'),
    (["config.cache.dir=/"], 'config.cache.dir is "/": write the absolute path'),
    (["config.cache.dir=/var/lib"], "which holds kubelet's directory /var/lib/kubelet"),
    (["config.cache.dir=/var/lib/kubelet"], "which holds kubelet's directory /var/lib/kubelet"),
    (["config.cache.dir=/var/lib/kubelet/pods/cache"], "which is among kubelet's pods"),
    (["node.cacheMount=/mnt/nvme"], "is not in it: name a directory that has both the cache and the models to import, such as /var/lib"),
    (["config.cache.dir=/mnt/nvme-cache", "node.cacheMount=/mnt/nvme"], "is not in it: name a directory"),
    (["node.cacheMount=/var/lib"], "which holds kubelet's directory /var/lib/kubelet"),
    (["config.cache.dir=/mnt/nvme/cache", "node.cacheMount=/mnt/nvme", "config.cache.requireMount=true"],
     'config.cache.requireMount wants "/mnt/nvme/cache" to be a mount point'),
    (["config.objectStorage.auth=api_key"], "and credentials.secretName is empty: name a Secret"),
    (["metrics.prometheusRule.enabled=true"], "metrics.prometheusRule.runbookUrl is empty: every alert links to its section"),
    (["node.ports.metrics=9808"], "node.ports are [9808 9808 9809]: the three have to differ"),
    (["controller.ports.metrics=9092"], "controller.ports are both 9092: they have to differ"),
]

SCHEMA = [
    (["nodes.kubeletPath=/x"], "additional properties 'nodes' not allowed"),
    (["config.cache.maxSzie=1GiB"], "at '/config/cache': additional properties 'maxSzie' not allowed"),
    (["config.policy.rules[0].allow=true"], "at '/config/policy/rules/0': missing properties 'namespaces', 'buckets', 'prefixes'"),
    (["config.policy.rules[0].namespace=team-a"], "additional properties 'namespace' not allowed"),
    (rule(namespaces="{Team}"), 'config.policy.rules[0].namespaces or serviceAccounts is "Team": write names as Kubernetes has them'),
    (rule(serviceAccounts="{a b}"), 'config.policy.rules[0].namespaces or serviceAccounts is "a b"'),
    (rule(prefixes="{/models/}"), 'config.policy.rules[0].prefixes is "/models/": write a directory such as models/, without a slash at its beginning'),
    (rule(prefixes="{models/*}"), "and without *"),
    (rule(objectStorageNamespaces="{a/b}"), 'config.policy.rules[0].buckets or objectStorageNamespaces is "a/b"'),
    (["config.policy.rules[0].buckets=[]"], "at '/config/policy/rules/0/buckets': got string, want array"),
    (["config.cache.maxSize=500GB"], 
     'config.cache.maxSize is "500GB": write a number of bytes, or a number with KiB, MiB, GiB or TiB such as 500GiB, or a percentage'),
    (["config.cache.minFree=some"], 'config.cache.minFree is "some": write auto, a number of bytes'),
    (["config.cache.minFreeInodes=101%"], 'config.cache.minFreeInodes is "101%": write a percentage from 0% to 100%'),
    (["config.cache.idleTTL=30"], 'config.cache.idleTTL is "30": write a duration with its unit, such as 10m, 1h 30m or 30d'),
    (["config.cache.scrubRate=fast"], 'config.cache.scrubRate is "fast": write a number of bytes'),
    (["config.download.abandonAfter=soon"], 'config.download.abandonAfter is "soon": write a duration'),
    (["config.download.rangeSize=16MB"], 'config.download.rangeSize is "16MB": write a number of bytes'),
    (["config.download.concurrency=0"], "at '/config/download/concurrency': minimum: got 0, want 1"),
    (["config.download.concurrency=10000"], "at '/config/download/concurrency': maximum: got 10,000, want 1,024"),
    (["config.download.concurrency=many"], 'config.download.concurrency is "many": write auto, or a number from 1 to 1024'),
    (["config.limits.maxModelSize=1TB"], 'config.limits.maxModelSize is "1TB": write a number of bytes'),
    (["config.download.verify=never"], "value must be one of 'always', 'cheap'"),
    (["config.objectStorage.auth=delegation_token"], "at '/config/objectStorage/auth': value must be one of"),
    (["config.objectStorage.auth=oke_workload_identity"], "csiDriver.tokenRequests is empty: kubelet gives the driver no token"),
    (["config.objectStorage.buckets[0].name=b", "config.objectStorage.buckets[0].auth=oke_workload_identity"],
     "csiDriver.tokenRequests is empty"),
    (["config.objectStorage.endpoint=http://host/path"], 
     'config.objectStorage.endpoint is "http://host/path": write a URL without a path, such as https://store.example.com'),
    (["config.objectStorage.proxy=http://me:s3cret@proxy:3128"],
     "config.objectStorage.proxy has a login, and a ConfigMap is no place for one: put the URL into a Secret"),
    (["config.objectStorage.proxy=proxy:3128"],
     'config.objectStorage.proxy is "proxy:3128": write the URL of a proxy, such as http://proxy.example.com:3128'),
    (["config.objectStorage.proxyCaFile=ca.pem"], 'config.objectStorage.proxyCaFile is "ca.pem": write the absolute path'),
    (["config.download.sourceAddresses={eth1}"],
     'config.download.sourceAddresses is "eth1": write addresses or networks of the nodes, such as 10.0.1.0/24'),
    (["config.objectStorage.caFile=ca.pem"], 'config.objectStorage.caFile is "ca.pem": write the absolute path of a file'),
    (["config.objectStorage.buckets[0].name=a/b"], 'config.objectStorage.buckets[0].name is "a/b": write letters, digits'),
    (["config.objectStorage.buckets[0].name=b", "config.objectStorage.buckets[0].region=a b"],
     "write a region by name or short code, such as eu-frankfurt-1 or fra"),
    (["config.prefetch={models/phi3-mini}"], 'config.prefetch[0] is "models/phi3-mini": write oci://BUCKET/PREFIX'),
    (["config.prefetch[0].uri=models/phi3-mini"], 'config.prefetch[0].uri is "models/phi3-mini": write oci://BUCKET/PREFIX'),
    (["csiDriver.nodeAllocatableUpdatePeriodSeconds=5"], "at '/csiDriver/nodeAllocatableUpdatePeriodSeconds': minimum"),
    (["csiDriver.preventPodSchedulingIfMissing=auto"], "at '/csiDriver/preventPodSchedulingIfMissing': got string, want boolean"),
    (["config.prefetch[0].nodeSelector.pool=gpu"], "at '/config/prefetch/0': missing property 'uri'"),
    (["config.prefetch[0].uri=oci://b/p", "config.prefetch[0].nodeSelecter.pool=gpu"], "additional properties 'nodeSelecter' not allowed"),
    (["config.prefetch[0].uri=oci://b/p", "config.prefetch[0].nodeSelector.pool=a b"],
     'config.prefetch[0].nodeSelector.pool is "a b": write the value of a label'),
    (["config.prefetch[0].uri=oci://b/p", "config.prefetch[0].nodeSelector.a b=c"],
     'config.prefetch[0].nodeSelector is "a b": write keys of labels'),
    (["config.prefetch[0].uri=oci://b/p", "config.prefetch[0].keepRevisions=17"], "maximum"),
    (["csiDriver.volumeLifecycleModes={Forever}"], "value must be one of 'Persistent', 'Ephemeral'"),
    (["image.digest=latest"], 'image.digest is "latest": write sha256: and 64 hex digits, or leave it empty for the tag'),
    (["image.pullPolicy=Sometimes"], "at '/image/pullPolicy'"),
    (["logging.format=xml"], "value must be one of 'text', 'json'"),
    (["tracing.endpoint=collector:4317"], 'tracing.endpoint is "collector:4317": write http:// or https://, the host and the port'),
    (["node.hostNetwork=perhaps"], "at '/node/hostNetwork': got string, want boolean"),
    (["node.cacheMount=/"], 'node.cacheMount is "/": write the absolute path of a directory on the nodes'),
    (["rbac.ownNodeOnly=auto"], "at '/rbac/ownNodeOnly': got string, want null or boolean"),
    (["node.startupTaint.key=a b"], 'node.startupTaint.key is "a b": write the key of a taint, such as example.com/not-ready'),
    (["node.modelLabels=-1"], "at '/node/modelLabels': minimum: got -1, want 0"),
    (["node.heapLimit=64MiB"], 'node.heapLimit is "64MiB": write 256MiB or more, such as 512MiB or 2GiB'),
    (["node.updateStrategy=Recreate"], "value must be one of 'RollingUpdate', 'OnDelete'"),
    (["node.maxUnavailable=all"], 'node.maxUnavailable is "all": write a number of nodes, or a percentage from 1% to 100%'),
    (["controller.podDisruptionBudget.maxUnavailable=none"], "write a number of pods, or a percentage such as 50%"),
    (["node.maxUnavailable=0"], "at '/node/maxUnavailable': minimum: got 0, want 1"),
    (["node.terminationGracePeriodSeconds=10"], "at '/node/terminationGracePeriodSeconds': minimum: got 10"),
    (["node.ports.metrics=70000"], "at '/node/ports/metrics': maximum: got 70,000, want 65,535"),
    (["metrics.prometheusRule.runbookUrl=docs/runbooks.md"], "write the URL where your team can read docs/runbooks.md"),
    (["metrics.podMonitor.enabled=true"], "metrics.podMonitor.enabled needs networkPolicy.metricsNamespaces: without it the NetworkPolicy lets no Prometheus read"),
    (["networkPolicy.metricsFrom[0].podSelector.a=b"], "additional properties 'metricsFrom' not allowed"),
    (["networkPolicy.egress=maybe"], "at '/networkPolicy/egress': got string, want boolean"),
    (["metrics.podMonitor.interval=often"], 'metrics.podMonitor.interval is "often": write a duration with its unit, such as 30s'),
    (["sidecars.provisioner.image.tag="], "at '/sidecars/provisioner/image/tag'"),
    (["sidecars.provisioner.image.digest=v6"], 'sidecars.provisioner.image.digest is "v6": write sha256: and 64 hex digits'),
    (["sidecars.provisioner.additionalArgs={v=5}"], "write flags that begin with --, such as --v=5"),
]


@pytest.mark.parametrize("settings, sentence", SENTENCES + SCHEMA, ids=lambda one: one[0][:60] if isinstance(one, list) else "")
def test_impossible_settings_are_refused_with_the_remedy(settings, sentence):
    done = helm("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode != 0
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "pattern" not in done.stderr and "[A-Za-z" not in done.stderr, "a user reads what to write"


def test_a_cluster_whose_tokens_name_no_node_is_refused_with_the_reason():
    done = helm("--values", BASE, "--set", "rbac.ownNodeOnly=true", kubernetes="1.31.0")
    assert done.returncode != 0
    assert "rbac.ownNodeOnly needs Kubernetes 1.32, whose tokens name their node" in done.stderr


@pytest.mark.parametrize("setting", ["node.startupTaint.remove=true", "node.modelLabels=5"])
def test_a_permission_on_all_nodes_is_granted_only_on_request(setting):
    asked = "--values", BASE, "--set", setting
    done = helm(*asked, kubernetes="1.31.0")
    assert done.returncode != 0
    assert "Kubernetes limits it to the own node from 1.32 on, and this is v1.31.0: leave both out, or set rbac.ownNodeOnly to false" in done.stderr
    for allowed in (helm(*asked, kubernetes="1.32.0"), helm(*asked, "--set", "rbac.ownNodeOnly=false", kubernetes="1.31.0")):
        assert allowed.returncode == 0, allowed.stderr


def test_a_pod_monitor_needs_no_labels_where_no_policy_keeps_prometheus_out():
    done = helm("--values", BASE, "--set", "metrics.podMonitor.enabled=true", "--set", "networkPolicy.enabled=false")
    assert done.returncode == 0, done.stderr


def test_the_refusal_of_an_old_cluster_says_what_it_lacks():
    done = helm("--values", BASE, kubernetes="1.28.0")
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.29.0-0" in done.stderr
