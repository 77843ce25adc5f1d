"""Pods that read with their own service accounts, and with the keys in their own Secrets."""

import pytest
from kube import RELEASE, driver_pod, inline, kubectl, pod
from store import ENDPOINT, PRIVATE, READER, STRANGER

# The store serves at its own address what an OKE cluster serves at its address.
VALUES = {
    "csiDriver": {"tokenRequests": [{"audience": ""}]},
    "config": {"objectStorage": {"buckets": [{"name": PRIVATE, "auth": "oke_workload_identity"}]}},
    "node": {"env": [{"name": "OCI_MODEL_CSI_OKE_ENDPOINT", "value": ENDPOINT}]},
}


@pytest.mark.core
def test_a_pod_reads_with_the_token_of_its_own_service_account_and_another_does_not(team, store, helm):
    prefix = f"{team.name}/"
    store.put(PRIVATE, f"{prefix}config.json", "secret")
    accounts = {name: {"serviceAccountName": name} for name in (READER, STRANGER)}
    for name in accounts:
        team.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    volume = {"model": inline(prefix, bucket=PRIVATE)}
    try:
        helm.install(VALUES)
        team.start("reader", volume, spec=accounts[READER])
        assert team.exec("reader", "cat /model/config.json") == "secret"
        callers = {one["caller"] for one in store.admin("requests") if team.name in one["target"]}
        assert callers == {f"system:serviceaccount:{team.name}:{READER}"}, "a token that the API server signed"
        # A cached model is not given to another account.
        team.apply(pod("stranger", volume, spec=accounts[STRANGER]))
        said = team.answered("stranger", f"request.principal.service_account='{STRANGER}'",
                             f"request.principal.namespace='{team.name}'")
        print(f"figure: what kubectl describe says of a service account that may not read: {said}")
        team.start("second", volume, spec=accounts[READER])
    finally:
        helm.install()


@pytest.mark.core
def test_a_pod_reads_with_the_key_in_its_own_secret_where_that_is_allowed_and_another_key_does_not(team, store, helm):
    prefix = f"{team.name}/"
    store.put(PRIVATE, f"{prefix}config.json", "secret")
    reader, stranger = (store.users[name] for name in (READER, STRANGER))
    team.apply(reader.secret(), stranger.secret())

    def volume(user):
        model = inline(prefix, bucket=PRIVATE)
        model["csi"]["nodePublishSecretRef"] = {"name": user.name}
        return {"model": model}

    team.apply(pod("reader", volume(reader)))
    said = team.answered("reader", "PermissionDenied", "objectStorage.podSecrets: true")
    print(f"figure: what kubectl describe says of a Secret that the driver does not take: {said}")
    try:
        helm.install({"config": {"objectStorage": {"podSecrets": True}}})
        # The pod that waited starts without help.
        team.wait("reader", seconds=180)
        assert team.exec("reader", "cat /model/config.json") == "secret"
        callers = {one["caller"] for one in store.admin("requests") if team.name in one["target"]}
        assert callers == {reader.caller}, "the key of the Secret, and not the driver's own"
        # A cached model is not given to another key.
        team.apply(pod("stranger", volume(stranger)))
        said = team.answered("stranger", "NotFound", f"the user of API key {stranger.fingerprint} may read")
        print(f"figure: what kubectl describe says of a key that may not read: {said}")
        team.start("second", volume(reader))
        logged = kubectl("--namespace", RELEASE, "logs", driver_pod(), "--container", "driver")
        shown = team.kubectl("get", "events,pods", "--output", "json") + logged
        lines = [line for user in (reader, stranger) for line in user.key.read_text().splitlines() if len(line) == 64]
        assert lines and not [line for line in lines if line in shown]
    finally:
        helm.install()
