"""The driver's changes to its Node object."""

import json

import pytest
from kube import RELEASE, apply, driver_pod, get, inline, kubectl, pod
from node import API, NODE, PKI, run, until

TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/oci-model-csi.dev-not-ready"


@pytest.mark.core
def test_a_startup_taint_keeps_pods_off_until_the_driver_is_registered(team, store, helm):
    def taints():
        return [one["key"] for one in get("node", NODE)["spec"].get("taints", [])]

    store.put("models", "tiny/config.json", "{}")
    kubectl("taint", "node", NODE, f"{TAINT}=:NoSchedule")
    assert TAINT in taints()
    team.apply(pod("patient", {"model": inline("tiny/")}))
    team.says("patient", "untolerated taint")
    # The driver checks when it is registered, as on a new node.
    kubectl("--namespace", RELEASE, "rollout", "restart", "daemonset/oci-model-csi-node")
    until("the taint's end", lambda: TAINT not in taints(), seconds=90)
    team.wait("patient")
    kubectl("--namespace", RELEASE, "rollout", "status", "daemonset/oci-model-csi-node", "--timeout=60s", seconds=70)


def test_a_node_plugin_labels_its_own_node_and_may_change_no_other(team, store, helm):
    def labels():
        return [label for label in get("node", NODE)["metadata"]["labels"] if label.startswith("oci-model-csi.dev/model.")]

    def as_the_plugin(*arguments, **how):
        token = kubectl("--namespace", RELEASE, "create", "token", "oci-model-csi-node",
                        "--bound-object-kind", "Pod", "--bound-object-name", driver_pod()).strip()
        return run("kubectl", "--kubeconfig", "/dev/null", "--server", API, "--certificate-authority", PKI / "ca.crt",
                   "--token", token, *arguments, **how)

    apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}})
    store.put("models", "labelled/config.json", "{}")
    try:
        helm.install({"rbac": {"ownNodeOnly": True}, "node": {"modelLabels": 8}})
        team.start("reader", {"model": inline("labelled/")})
        until("the label", lambda: any(".labelled." in label for label in labels()), seconds=90)
        patch = ["patch", "node", "--type=merge", "--patch", '{"metadata": {"labels": {"e2e.example/mine": "yes"}}}']
        until("the policy", lambda: "the node plugin may change its own node and no other"
              in as_the_plugin(*patch, "other", fails=True))
        as_the_plugin(*patch, NODE)
        # One view over all nodes, with the rights of the Controller.
        view = kubectl("--namespace", RELEASE, "exec", "deploy/oci-model-csi-controller", "--container", "driver",
                       "--", "oci-model-csi", "nodes", "--output", "json")
        shown = {one["node"]: one for one in json.loads(view)}
        assert "labelled" in [model["name"].split(".")[0] for model in shown[NODE]["models"]]
        assert shown[NODE]["registered"] and shown[NODE]["cache"]["models"] >= 1
        assert not shown["other"]["registered"] and shown["other"]["cache"] is None
    finally:
        helm.install()
        kubectl("delete", "node", "other", "--timeout=30s")
        kubectl("label", "node", NODE, "e2e.example/mine-", *(f"{label}-" for label in labels()))
        kubectl("annotate", "node", NODE, "oci-model-csi.dev/cache-")
