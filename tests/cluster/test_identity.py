"""Pods that read with their own service accounts."""

import pytest
from kube import inline, pod
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
        callers = {one["caller"] for one in store.admin("requests") if f"/b/{PRIVATE}/" in one["target"]}
        assert callers == {f"system:serviceaccount:{team.name}:{READER}"}, "a token that the API server signed"
        # A cached model is not given to another account.
        team.apply(pod("stranger", volume, spec=accounts[STRANGER]))
        said = team.answered("stranger", f"request.principal.service_account='{STRANGER}'",
                             f"request.principal.namespace='{team.name}'")
        print(f"figure: what kubectl describe says of a service account that may not read: {said}")
        team.start("second", volume, spec=accounts[READER])
    finally:
        helm.install()
