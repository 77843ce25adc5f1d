"""The API servers of several versions accept every object and know every field."""

import pytest
from conftest import TOOLS, VALUES, kustomized, rendered, run
from test_examples import OBJECTS
from test_kustomize import OLDEST, PAIRS

VERSIONS = sorted(path.name for path in (TOOLS / "schemas").glob("v*"))
AT = pytest.mark.parametrize("version", VERSIONS)


def check(version, directory, **texts):
    """The output of kubeconform for these streams of YAML."""
    for name, text in texts.items():
        (directory / f"{name}.yaml").write_text(text)
    schemas = TOOLS / "schemas"
    form = "{{.ResourceKind}}{{.KindSuffix}}.json"
    return run("kubeconform", "-strict", "-summary", "-schema-location", schemas / version / form,
               "-schema-location", schemas / "crds" / form, directory)


def minor(version):
    return int(version.split(".")[1])


def test_there_are_several_versions():
    assert len(VERSIONS) >= 4


@AT
def test_all_objects_are_valid(version, tmp_path):
    charts = {f"chart-{path.stem}": rendered("--values", path, kubernetes=version[1:]) for path in VALUES}
    kustomizations = {f"kustomize-{name}": kustomized(path) for name, path in PAIRS.items()
                      if minor(version) >= minor(OLDEST[name])}
    examples = {f"example-{path.stem}": path.read_text() for path in OBJECTS}
    done = check(version, tmp_path, **charts, **kustomizations, **examples)
    assert done.returncode == 0, done.stdout
    files = len(charts) + len(kustomizations) + len(examples)
    assert f"in {files} files" in done.stdout
    assert "Skipped: 0" in done.stdout


@pytest.mark.parametrize("wrong, said", [
    ("maxUnavailabel: 1", "additional properties 'maxUnavailabel' not allowed"),
    ("maxUnavailable: [1]", "got array, want integer or string"),
])
def test_a_field_that_is_misspelt_or_of_another_type_is_found(wrong, said, tmp_path):
    text = rendered("--values", VALUES[0])
    assert "maxUnavailable: 1" in text
    done = check(VERSIONS[-1], tmp_path, wrong=text.replace("maxUnavailable: 1", wrong))
    assert done.returncode != 0
    assert said in done.stdout
