"""The files of a release, and the workflows that make them."""

import hashlib
import json
import os
import re
import subprocess
import tarfile
import tomllib

import pytest
import yaml
from conftest import REPOSITORY, TOOLS, run

VERSION = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["package"]["version"]
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
REGISTRY = "registry.example/team/oci-model-csi"


def release(directory, *arguments):
    binary = directory.parent / "driver"
    binary.write_bytes(b"\x7fELF placeholder for the driver")
    return subprocess.run([REPOSITORY / "deploy/release.sh", directory, "--arch", "amd64", "--binary", binary, *arguments],
                          env={**os.environ, "HELM": str(TOOLS / "helm")}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release") / "files"
    done = release(directory, "--repository", REGISTRY)
    assert done.returncode == 0, done.stderr
    return directory


def test_a_release_is_image_chart_sbom_licences_and_their_checksums(made):
    stem = f"oci-model-csi-{VERSION}"
    assert sorted(one.name for one in made.iterdir()) == sorted([
        "SHA256SUMS", f"{stem}.tar", f"{stem}.tgz", f"{stem}-amd64.cdx.json", f"{stem}-amd64.licenses.txt"])
    sums = dict(reversed(line.split()) for line in (made / "SHA256SUMS").read_text().splitlines())
    assert sums == {one.name: hashlib.sha256(one.read_bytes()).hexdigest()
                    for one in made.iterdir() if one.name != "SHA256SUMS"}
    sbom = json.loads((made / f"{stem}-amd64.cdx.json").read_text())
    assert any(one["name"] == "tokio" for one in sbom["components"])


def test_the_chart_of_a_release_installs_its_image_without_a_value(made):
    done = run("helm", "template", "x", made / f"oci-model-csi-{VERSION}.tgz", "--namespace", "x")
    assert done.returncode == 0, done.stderr
    assert f"image: {REGISTRY}:{VERSION}" in done.stdout.replace('"', "")
    with tarfile.open(made / f"oci-model-csi-{VERSION}.tar") as tar:
        [image] = json.load(tar.extractfile("index.json"))["manifests"]
    assert image["annotations"]["io.containerd.image.name"] == f"{REGISTRY}:{VERSION}"


@pytest.mark.parametrize("tag, said", [
    ("v9.9.9", f"the tag is v9.9.9, and the version in Cargo.toml is {VERSION}"),
    (f"{VERSION}", f"the tag is {VERSION}, and the version"),
])
def test_a_tag_of_another_version_is_refused(tmp_path, tag, said):
    done = release(tmp_path / "files", "--tag", tag)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "files").exists()


def test_files_of_an_earlier_release_are_not_mixed_with_new_ones(made):
    done = release(made)
    assert done.returncode == 1
    assert "is not empty" in done.stderr


def test_the_workflows_pass_actionlint():
    assert len(WORKFLOWS) == 3
    done = run("actionlint", "-no-color", *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    broken = run("actionlint", "-no-color", "-", text=WORKFLOWS[0].read_text().replace("runs-on", "runs-at"))
    assert broken.returncode == 1, "the premise: it finds something"


def test_the_workflows_use_the_versions_that_the_sources_pin():
    texts = "\n".join(one.read_text() for one in WORKFLOWS)
    rust = tomllib.loads((REPOSITORY / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    assert re.findall(r"rust:(\S+)-bookworm", texts) == [rust]
    assert set(re.findall(r"RUSTUP_TOOLCHAIN: (\S+)", texts)) == {rust}
    [helm] = re.findall(r"cmd/helm@(\S+)", texts)
    assert f"helm {helm} " in (REPOSITORY / "tests/deploy/tools.sh").read_text()


def test_no_job_may_do_more_than_it_needs_to():
    for workflow in WORKFLOWS:
        for name, job in yaml.safe_load(workflow.read_text())["jobs"].items():
            rights = job.get("permissions", {"contents": "read"})
            assert name == "publish" or rights == {"contents": "read"}, (workflow, name)
