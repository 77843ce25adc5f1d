"""The Python SDK as a pod of an OKE cluster, which knows one port only: 12250."""

import os

import oci
import pytest
from oci.auth.signers import get_oke_workload_identity_resource_principal_signer

CALLER = "system:serviceaccount:team-a:vllm"


@pytest.fixture
def cluster(start, tmp_path, monkeypatch):
    # All of 127/8 is loopback, and no two tests have one address.
    address = f"127.64.{os.getpid() >> 8 & 255}.{os.getpid() & 255 | 2}"
    ca = tmp_path / "ca.pem"
    store = start("--listen", f"{address}:12250", "--tls", "--ca-file", ca, "--allow", f"{CALLER}=models")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address)
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_REGION", "us-ashburn-1")
    monkeypatch.setenv("OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH", str(ca))
    return store


def client_of(store, tmp_path, name):
    account = {"namespace": "team-a", "name": name, "seconds": 3600}
    token = tmp_path / name
    token.write_text(store.admin("tokens/service-account", account)["token"])
    signer = get_oke_workload_identity_resource_principal_signer(service_account_token_path=str(token))
    # Over http, since the client itself takes no CA of ours.
    endpoint = store.imds.removesuffix("/opc/v2")
    return oci.object_storage.ObjectStorageClient({}, signer=signer, service_endpoint=endpoint)


def test_the_sdks_workload_identity_reads_what_its_account_is_granted(cluster, tmp_path):
    for bucket in ("models", "secrets"):
        cluster.synthetic(bucket, "m/weights", 1000)
    client = client_of(cluster, tmp_path, "vllm")
    assert client.get_namespace().data == cluster.namespace
    read = client.get_object(cluster.namespace, "models", "m/weights").data.content
    assert len(read) == 1000
    with pytest.raises(oci.exceptions.ServiceError) as refused:
        client.get_object(cluster.namespace, "secrets", "m/weights")
    assert refused.value.status == 404
    assert {request["caller"] for request in cluster.requests("get")} == {CALLER}
    assert cluster.answered("workload_identity") == 1
