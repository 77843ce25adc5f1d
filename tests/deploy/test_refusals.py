"""Impossible values are refused with a message before anything is installed."""

import pytest
from conftest import BASE, helm

LONG = "a" * 64

SENTENCES = [
    (["image.repository="], "image.repository is empty: no image is published yet"),
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
    (["config.policy.rules[0].namespaces={Team}"], "at '/config/policy/rules/0/namespaces/0': 'Team' does not match"),
    (["config.policy.rules[0].prefixes={/models/}"], "at '/config/policy/rules/0/prefixes/0': '/models/' does not match"),
    (["config.policy.rules[0].buckets=[]"], "at '/config/policy/rules/0/buckets': got string, want array"),
    (["config.cache.maxSize=500GB"], "at '/config/cache/maxSize': '500GB' does not match"),
    (["config.cache.minFreeInodes=101%"], "at '/config/cache/minFreeInodes'"),
    (["config.download.concurrency=0"], "at '/config/download/concurrency': minimum: got 0, want 1"),
    (["config.download.verify=never"], "value must be one of 'always', 'cheap'"),
    (["config.objectStorage.auth=security_token"], "at '/config/objectStorage/auth': value must be one of"),
    (["config.objectStorage.auth=oke_workload_identity"], "csiDriver.tokenRequests is empty: kubelet gives the driver no token"),
    (["config.objectStorage.buckets[0].name=b", "config.objectStorage.buckets[0].auth=oke_workload_identity"],
     "csiDriver.tokenRequests is empty"),
    (["config.objectStorage.endpoint=http://host/path"], "at '/config/objectStorage/endpoint'"),
    (["config.objectStorage.caFile=ca.pem"], "at '/config/objectStorage/caFile'"),
    (["config.prefetch={models/phi3-mini}"], "at '/config/prefetch/0': 'models/phi3-mini' does not match"),
    (["csiDriver.volumeLifecycleModes={Forever}"], "value must be one of 'Persistent', 'Ephemeral'"),
    (["image.digest=latest"], "at '/image/digest'"),
    (["image.pullPolicy=Sometimes"], "at '/image/pullPolicy'"),
    (["logging.format=xml"], "value must be one of 'text', 'json'"),
    (["node.hostNetwork=perhaps"], "at '/node/hostNetwork': got string, want boolean"),
    (["node.cacheMount=/"], "at '/node/cacheMount': '/' does not match"),
    (["rbac.ownNodeOnly=auto"], "at '/rbac/ownNodeOnly': got string, want null or boolean"),
    (["node.startupTaint.key=a b"], "at '/node/startupTaint/key': 'a b' does not match"),
    (["node.modelLabels=-1"], "at '/node/modelLabels': minimum: got -1, want 0"),
    (["node.maxUnavailable=0"], "at '/node/maxUnavailable': minimum: got 0, want 1"),
    (["node.terminationGracePeriodSeconds=10"], "at '/node/terminationGracePeriodSeconds': minimum: got 10"),
    (["node.ports.metrics=70000"], "at '/node/ports/metrics': maximum: got 70,000, want 65,535"),
    (["metrics.prometheusRule.runbookUrl=docs/runbooks.md"], "at '/metrics/prometheusRule/runbookUrl': 'docs/runbooks.md' does not match"),
    (["metrics.podMonitor.enabled=true"], "at '/networkPolicy/metricsNamespaces': minProperties: got 0, want 1"),
    (["networkPolicy.metricsFrom[0].podSelector.a=b"], "additional properties 'metricsFrom' not allowed"),
    (["networkPolicy.egress=maybe"], "at '/networkPolicy/egress': got string, want boolean"),
    (["metrics.podMonitor.interval=often"], "at '/metrics/podMonitor/interval'"),
    (["sidecars.provisioner.image.tag="], "at '/sidecars/provisioner/image/tag'"),
]


@pytest.mark.parametrize("settings, sentence", SENTENCES + SCHEMA, ids=lambda one: one[0][:60] if isinstance(one, list) else "")
def test_impossible_settings_are_refused_with_the_remedy(settings, sentence):
    done = helm("--values", BASE, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode != 0
    assert sentence in done.stderr
    assert done.stdout == ""


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
