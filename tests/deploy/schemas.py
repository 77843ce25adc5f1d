#!/usr/bin/env python3
"""Makes JSON schemas for kubeconform from files of Go modules:

    schemas.py DIRECTORY

DIRECTORY/v1.35.4/ has one file per kind, of the OpenAPI document in
k8s.io/kubernetes at that version; DIRECTORY/crds/ has those of Prometheus
Operator's resources. All are strict: a field that is not known is an error,
as the API server's own check (`--validate=strict`) has it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

# The oldest version that the chart supports, those that OKE has or will have next, and the newest.
KUBERNETES = ["v1.29.6", "v1.33.13", "v1.34.4", "v1.35.4", "v1.37.2"]
OPERATOR = "v0.85.0"
CRDS = ["podmonitors", "prometheusrules"]
# The API server takes both forms of these; the OpenAPI document names one.
LOOSE = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": ["integer", "string"],
    "io.k8s.apimachinery.pkg.api.resource.Quantity": ["number", "string"],
}


def module(name, version, directory):
    """The directory of a Go module's files. The module cache is temporary, since it is large."""
    environment = {**os.environ, "GOMODCACHE": directory, "GOFLAGS": "-modcacherw"}
    answer = subprocess.run(
        ["go", "mod", "download", "-json", f"{name}@{version}"],
        cwd=directory, env=environment, check=True, stdout=subprocess.PIPE)
    return Path(json.loads(answer.stdout)["Dir"])


def strict(schema):
    """The schema and all nested schemas, with unknown fields forbidden."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    preserved = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not preserved:
        made["additionalProperties"] = False
    return made


def file_name(kind, group, version):
    """What kubeconform calls {{.ResourceKind}}{{.KindSuffix}}: of the group its first word."""
    parts = [kind, group.split(".")[0], version]
    return "-".join(part for part in parts if part).lower() + ".json"


def kubernetes(version, into):
    with tempfile.TemporaryDirectory() as directory:
        source = module("k8s.io/kubernetes", version, directory)
        document = json.loads((source / "api/openapi-spec/swagger.json").read_text())
    definitions = document["definitions"]
    for name, types in LOOSE.items():
        definitions[name] = {"type": types}
    into.mkdir(parents=True)
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            file = into / file_name(kind["kind"], kind["group"], kind["version"])
            file.write_text(json.dumps({"$ref": f"_definitions.json#/definitions/{name}"}))
    text = json.dumps({"definitions": strict(definitions)})
    (into / "_definitions.json").write_text(text.replace("#/definitions/", "_definitions.json#/definitions/"))


def operator(into):
    with tempfile.TemporaryDirectory() as directory:
        source = module("github.com/prometheus-operator/prometheus-operator", OPERATOR, directory)
        files = [source / f"example/prometheus-operator-crd/monitoring.coreos.com_{crd}.yaml" for crd in CRDS]
        resources = [yaml.safe_load(file.read_text()) for file in files]
    into.mkdir(parents=True)
    for resource in resources:
        [version] = resource["spec"]["versions"]
        schema = version["schema"]["openAPIV3Schema"]
        # The fields of every object, which the resource's own schema lacks.
        schema["properties"]["metadata"] = {"type": "object"}
        spec = resource["spec"]
        file = into / file_name(spec["names"]["kind"], spec["group"], version["name"])
        file.write_text(json.dumps(strict(schema)))


def main():
    into = Path(sys.argv[1])
    for version in KUBERNETES:
        print(f"deploy-test: schemas of Kubernetes {version}", flush=True)
        kubernetes(version, into / version)
    operator(into / "crds")


if __name__ == "__main__":
    main()
