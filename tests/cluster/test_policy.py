"""Policy rules, from the administrator's configuration to the messages that users see."""

import pytest
from kube import RELEASE, apply, claim, driver_pod, get, inline, kubectl, pod, storage_class
from node import until

def node_plugin():
    """The pod of the driver on the node."""
    return get("pod", driver_pod(), RELEASE)["metadata"]["uid"]


def install(helm, *rules):
    """Sets rules and waits until both services follow them. Nothing is restarted."""
    def changes():
        return [kubectl("--namespace", RELEASE, "logs", driver_pod(component), "--container", "driver").count("the policy changed")
                for component in ("node", "controller")]

    before = changes()
    helm.install({"config": {"policy": {"rules": list(rules)}}})
    until("the policy's change", lambda: all(old < new for old, new in zip(before, changes())), seconds=150)


def test_the_refusal_of_a_namespace_names_the_rule_that_would_allow_it(team, store, helm):
    store.put("models", "tiny/config.json", "{}")
    allowed = {"namespaces": ["no-such-team"], "serviceAccounts": ["*"], "buckets": ["models"], "prefixes": ["tiny/"], "allow": True}
    apply(storage_class(team.name, "Immediate", bucket="models", prefix="tiny/"))
    plugin = node_plugin()
    install(helm, allowed)
    try:
        team.apply(pod("outsider", {"model": inline("tiny/")}), claim("outside", team.name))
        said = team.answered("outsider", "code = PermissionDenied", "no rule of policy.rules allows", team.name)
        print(f"figure: what kubectl describe says of a denied namespace: {said}")
        team.says("outsider", "ModelPullFailed")
        team.answered("outside", "PermissionDenied", kind="persistentvolumeclaim")
        # The administrator adds the namespace, and the pod starts without help.
        install(helm, {**allowed, "namespaces": [team.name]})
        team.wait("outsider", seconds=240)
        assert node_plugin() == plugin
    finally:
        install(helm)
        kubectl("delete", "storageclass", team.name)


@pytest.mark.core
def test_an_annotation_of_a_claim_names_its_model(team, store):
    store.put("models", "by-annotation/phi3/config.json", "phi3")
    apply(storage_class(team.name, bucket="models", prefix="by-annotation/${pvc.annotations['oci-model-csi.dev/model']}/"))
    template = {"spec": {"storageClassName": team.name, "accessModes": ["ReadOnlyMany"],
                         "resources": {"requests": {"storage": "1Gi"}}}}
    named = {"metadata": {"annotations": {"oci-model-csi.dev/model": "phi3"}}, **template}
    team.start("named", {"model": {"ephemeral": {"volumeClaimTemplate": named}}})
    assert team.exec("named", "cat /model/config.json") == "phi3"
    # A missing model and a missing annotation are reported on the claim.
    wrong = {"metadata": {"annotations": {"oci-model-csi.dev/model": "phi4"}}, **template}
    team.apply(pod("wrong", {"model": {"ephemeral": {"volumeClaimTemplate": wrong}}}),
               pod("unnamed", {"model": {"ephemeral": {"volumeClaimTemplate": template}}}))
    team.answered("wrong-model", "NotFound", "by-annotation/phi4/", kind="persistentvolumeclaim")
    said = team.answered("unnamed-model", "has no annotation oci-model-csi.dev/model", kind="persistentvolumeclaim")
    print(f"figure: what kubectl describe pvc says without the annotation: {said}")
    for claim_name in ("wrong-model", "unnamed-model"):
        team.says(claim_name, "ModelPullFailed", kind="persistentvolumeclaim")
    # Both start without help once the missing parts are added.
    store.put("models", "by-annotation/phi4/config.json", "phi4")
    team.kubectl("annotate", "persistentvolumeclaim", "unnamed-model", "oci-model-csi.dev/model=phi4")
    team.wait("wrong", "unnamed", seconds=180)
    team.delete("named", "wrong", "unnamed")
    until("the claims' end", lambda: team.kubectl("get", "persistentvolumeclaims", "--output", "name") == "")
    kubectl("delete", "storageclass", team.name)
