"""The Terraform module, evaluated without its provider.

terraform/main.go evaluates the module as Terraform would. The provider cannot be
installed everywhere, so terraform/provider.json lists the arguments that Oracle's
documentation gives for the resources in use."""

import json
import re
import subprocess

import pytest
from conftest import REPOSITORY, TOOLS

MODULE = REPOSITORY / "deploy/terraform"
QUICKSTART = MODULE / "examples/quickstart"
PROVIDER = json.loads((REPOSITORY / "tests/deploy/terraform/provider.json").read_text())
IAM = (REPOSITORY / "docs/iam.md").read_text()

LEAST = {
    "tenancy_id": "ocid1.tenancy.oc1..tenancy",
    "compartment_id": "ocid1.compartment.oc1..ai",
    "region": "eu-frankfurt-1",
    "bucket_name": "ai-model-cache",
}
WORKLOAD = {"cluster_id": "ocid1.cluster.oc1..cluster", "namespace": "team-a", "service_account": "vllm"}
EVERYTHING = LEAST | {
    "node_compartment_id": "ocid1.compartment.oc1..nodes",
    "node_tag": {"namespace": "oke", "key": "pool", "value": "gpu"},
    "dynamic_group_name": "gpu-nodes",
    "kms_key_id": "ocid1.key.oc1..key",
    "kms_compartment_id": "ocid1.compartment.oc1..security",
    "workloads": [WORKLOAD],
    "reader_group": "ml-engineers",
    "uploader_group": "model-uploaders",
    "freeform_tags": {"team": "ml"},
}


def evaluated(directory, **variables):
    computed = json.dumps({kind: one["computed"] for kind, one in PROVIDER.items()})
    done = subprocess.run([TOOLS / "terraform-evaluate", directory, computed], input=json.dumps(variables),
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def created(**variables):
    """The resources and data sources by address, and the values of the outputs."""
    found = evaluated(MODULE, **variables)
    assert found["errors"] == []
    return found["resources"], {name: one["value"] for name, one in found["outputs"].items()}


def statements(resources):
    policies = [one["arguments"] for address, one in resources.items() if ".oci_identity_policy." in address]
    return {policy["compartment_id"]: policy["statements"] for policy in policies}


@pytest.mark.parametrize("directory", [MODULE, QUICKSTART], ids=["module", "quickstart"])
def test_every_file_is_formatted_and_every_directory_is_tested(directory):
    found = evaluated(directory, **{name: LEAST[name] for name in ("tenancy_id", "compartment_id", "region")},
                      **({"bucket_name": "b"} if directory == MODULE else {}))
    assert found["unformatted"] == [] and found["errors"] == []
    assert {path.parent for path in MODULE.rglob("*.tf")} == {MODULE, QUICKSTART}


@pytest.mark.parametrize("variables", [LEAST, EVERYTHING], ids=["least", "everything"])
def test_every_argument_is_one_that_the_provider_has(variables):
    resources, _ = created(**variables)
    for address, one in resources.items():
        known = PROVIDER[address.split(".")[1]]
        arguments = set(one["arguments"])
        assert set(known["required"]) <= arguments, address
        assert arguments <= set(known["required"]) | set(known["optional"]), address
        # Only the home region takes changes of identities.
        assert one["provider"] == ("oci.home" if "oci_identity" in address else ""), address


def test_the_list_of_arguments_has_no_resource_that_is_not_used():
    resources, _ = created(**EVERYTHING)
    assert {address.split(".")[1] for address in resources} == set(PROVIDER)


def test_alone_the_module_makes_a_private_bucket_and_allows_nothing():
    resources, outputs = created(**LEAST)
    assert [address for address in resources if "identity" in address] == []
    bucket = resources["resource.oci_objectstorage_bucket.models"]["arguments"]
    assert bucket["access_type"] == "NoPublicAccess" and "kms_key_id" not in bucket
    assert outputs["statements"] == [] and outputs["matching_rule"] == ""
    assert outputs["uri"].startswith("oci://ai-model-cache@")
    resources, _ = created(**LEAST, create_bucket=False)
    assert not any("bucket" in address for address in resources)


def test_every_statement_is_for_one_bucket_or_one_key():
    resources, outputs = created(**EVERYTHING)
    made = [one for of in statements(resources).values() for one in of]
    assert sorted(made) == sorted(outputs["statements"]) and len(made) == 6
    for one in made:
        assert "target.bucket.name='ai-model-cache'" in one or "target.key.id='ocid1.key.oc1..key'" in one, one
        assert "in tenancy" not in one
        may_write = re.search(r" to (use|manage) ", one)
        assert not may_write or "model-uploaders" in one or "service objectstorage-eu-frankfurt-1 to use keys" in one


def test_every_policy_is_in_the_compartment_that_it_is_about():
    resources, _ = created(**EVERYTHING)
    for compartment, texts in statements(resources).items():
        assert all(f"in compartment id {compartment} " in one for one in texts)
    assert set(statements(resources)) == {"ocid1.compartment.oc1..ai", "ocid1.compartment.oc1..security"}
    group = resources["resource.oci_identity_dynamic_group.nodes"]["arguments"]
    assert group["compartment_id"] == LEAST["tenancy_id"]
    # Without a compartment of its own the key is in the bucket's.
    resources, _ = created(**LEAST, kms_key_id="ocid1.key.oc1..key")
    assert set(statements(resources)) == {LEAST["compartment_id"]}


def test_the_module_writes_the_rules_and_statements_of_the_page_word_for_word():
    quoted = [line for block in re.findall(r"```text\n(.*?)```", IAM, re.DOTALL) for line in block.splitlines()]
    names = {"ocid1.compartment.oc1..ai": "ai", "ocid1.compartment.oc1..security": "security"}

    def as_on_the_page(text):
        for ocid, name in names.items():
            text = text.replace(f"compartment id {ocid}", f"compartment {name}")
        return text.replace("ocid1.compartment.oc1..nodes", "ocid1.compartment.oc1..aaaanodes").replace(
            "ocid1.cluster.oc1..cluster", "ocid1.cluster.oc1..aaaacluster").replace(
            "ocid1.key.oc1..key", "ocid1.key.oc1..aaaakey")

    _, outputs = created(**EVERYTHING)
    for text in outputs["statements"] + [outputs["matching_rule"]]:
        assert as_on_the_page(text) in quoted
    _, outputs = created(**{name: value for name, value in EVERYTHING.items() if name != "node_tag"})
    assert as_on_the_page(outputs["matching_rule"]) in quoted


@pytest.mark.parametrize("wrong, said", [
    ({"tenancy_id": "mytenancy"}, "The tenancy_id has to be the OCID of a tenancy"),
    ({"compartment_id": "ai"}, "The compartment_id has to be the OCID of a compartment"),
    ({"region": "fra"}, "a full name such as eu-frankfurt-1, not a short code"),
    ({"bucket_name": "a'b"}, "The bucket_name has to be"),
    ({"bucket_name": "*/"}, "The bucket_name has to be"),
    ({"kms_key_id": "my-key"}, "The kms_key_id has to be the OCID of a Vault key"),
    ({"kms_compartment_id": "security"}, "The kms_compartment_id has to be"),
    ({"node_compartment_id": "nodes"}, "The node_compartment_id has to be"),
    ({"node_tag": {"namespace": "oke", "key": "pool", "value": "a' }"}}, "a value without quotes"),
    ({"node_tag": {"namespace": "oke", "key": "pool"}}, 'attribute "value" is required'),
    ({"dynamic_group_name": "a b"}, "The dynamic_group_name has to be"),
    ({"workloads": [WORKLOAD | {"cluster_id": "gpu"}]}, "Each cluster_id of workloads has to be the OCID"),
    ({"workloads": [WORKLOAD | {"namespace": "*"}]}, "without wildcards"),
    ({"reader_group": "a' or 'b"}, "The reader_group has to be"),
    ({"uploader_group": "a b"}, "The uploader_group has to be"),
    ({"policy_name": ""}, "The policy_name has to be"),
    ({"bukcet_name": "b"}, "no variable is called bukcet_name"),
], ids=lambda one: next(iter(one)) if isinstance(one, dict) else "")
def test_a_wrong_value_is_refused_with_what_it_has_to_be(wrong, said):
    found = evaluated(MODULE, **(EVERYTHING | wrong))
    assert any(said in error for error in found["errors"]), found["errors"]
    assert found["resources"] == {}


def test_a_reference_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "main.tf").write_text('output "a" {\n  description = "A."\n  value = var.b\n}\n')
    found = evaluated(tmp_path)
    assert 'does not have an attribute named "b"' in found["errors"][0]
    assert found["unformatted"] == [str(tmp_path / "main.tf")]


def test_every_variable_and_output_is_described_and_in_the_readme():
    text = (MODULE / "README.md").read_text()
    found = evaluated(MODULE, **LEAST)
    for name, one in (found["variables"] | found["outputs"]).items():
        assert one["description"].endswith("."), name
        assert f"| `{name}` | {one['description']} |" in text, name
    rows = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(list(found["variables"]) + list(found["outputs"]))
    required = [name for name, one in found["variables"].items() if one["required"]]
    assert sorted(required) == sorted(LEAST), "the README says which are required"


def test_the_quickstart_names_the_bucket_of_the_page():
    found = evaluated(QUICKSTART, **{name: LEAST[name] for name in ("tenancy_id", "compartment_id", "region")})
    [module] = found["modules"].values()
    assert found["errors"] == module["errors"] == []
    assert module["resources"]["resource.oci_objectstorage_bucket.models"]["arguments"]["name"] == "ai-model-cache"
    assert len(found["outputs"]["statements"]["value"]) == 1, "the nodes may read, and nothing else"
