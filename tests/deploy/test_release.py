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


def publishing():
    """The steps of the job that publishes, by name or by the action that they use."""
    release = yaml.safe_load((REPOSITORY / ".github/workflows/release.yml").read_text())
    return release, {step.get("name", step.get("uses")): step for step in release["jobs"]["publish"]["steps"]}


def test_the_workflows_name_no_registry_but_that_of_the_repositorys_variable():
    release, _ = publishing()
    assert release["env"]["REGISTRY"] == "${{ vars.REGISTRY }}"
    text = "\n".join(one.read_text() for one in WORKFLOWS)
    targets = re.findall(r"(?:docker|oci)://([^\s\"']+)", text)
    assert targets and all(target.startswith("$repository") for target in targets)


# Each records its arguments. skopeo and helm give digests, as the programs do.
FAKES = {
    "skopeo": 'case "$1" in copy) [ -e "${5#oci-archive:}" ] || exit 7; echo "sha256:$(printf 1%.0s $(seq 64))" >"$4";; esac',
    "helm": 'case "$1" in push) [ -e "$2" ] || exit 7; echo "Pushed: $3"; echo "Digest: sha256:$(printf 2%.0s $(seq 64))";; esac >&2',
    "cosign": "",
    "gh": "",
}


def publish(directory, step, **environment):
    """Runs the commands of a step beside the files of a release, with fakes of what publishes."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    for name, script in FAKES.items():
        program = programs / name
        program.write_text(f'#!/bin/bash\n{{ printf "%s" "{name}"; printf " %s" "$@"; echo; }} >>"$LOG"\n{script}\n')
        program.chmod(0o755)
    (directory / "log").write_text("")
    (directory / "output").write_text("")
    known = {"PATH": f"{programs}:{os.environ['PATH']}", "LOG": str(directory / "log"), "USER": "alice", "TOKEN": "secret",
             "GITHUB_OUTPUT": str(directory / "output"), "REGISTRY": "registry.example", "REPOSITORY": "Team/oci-model-csi"}
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step["run"]], cwd=directory, capture_output=True, text=True,
                          env={**known, **environment})
    outputs = dict(line.split("=", 1) for line in (directory / "output").read_text().splitlines())
    return done, (directory / "log").read_text().splitlines(), outputs


def test_image_and_chart_are_pushed_signed_and_attested_by_their_digests(made, tmp_path):
    (tmp_path / "release").symlink_to(made)
    _, steps = publishing()
    step = steps["Image and chart to the registry, signed"]
    done, calls, outputs = publish(tmp_path, step, VERSION=f"v{VERSION}")
    assert done.returncode == 0, done.stderr
    name = "registry.example/team/oci-model-csi"
    image, chart = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert outputs == {"version": VERSION, "repository": name, "image": image, "chart": chart}
    assert f"skopeo copy --all --digestfile image.digest oci-archive:release/oci-model-csi-{VERSION}.tar docker://{name}:{VERSION}" in calls
    assert f"helm push release/oci-model-csi-{VERSION}.tgz oci://{name}/charts" in calls
    signed = [call.split()[-1] for call in calls if call.startswith("cosign sign")]
    assert signed == [f"{name}@{image}", f"{name}/charts/oci-model-csi@{chart}"]
    assert "secret" not in "\n".join(calls), "a password is not an argument"
    # The attestations are of these digests, and push to the registry.
    attested = [(one["uses"].split("@")[0], one["with"]) for one in steps.values() if "attest" in one.get("uses", "")]
    assert sorted((action, of["subject-name"].split("outputs.")[1], of["subject-digest"]) for action, of in attested) == sorted([
        ("actions/attest-build-provenance", "repository }}", "${{ steps.push.outputs.image }}"),
        ("actions/attest-build-provenance", "repository }}/charts/oci-model-csi", "${{ steps.push.outputs.chart }}"),
        ("actions/attest-sbom", "repository }}", "${{ steps.push.outputs.image }}"),
        ("actions/attest-sbom", "repository }}", "${{ steps.push.outputs.image }}")])
    assert all(of["push-to-registry"] is True for _, of in attested)
    sboms = [of["sbom-path"].replace("${{ steps.push.outputs.version }}", VERSION) for _, of in attested if "sbom-path" in of]
    assert sboms == [f"release/oci-model-csi-{VERSION}-{arch}.cdx.json" for arch in ("amd64", "arm64")]
    assert (made.parent / sboms[0].replace("release/", "files/")).exists()


def test_nothing_is_signed_if_a_push_gives_no_digest(made, tmp_path):
    (tmp_path / "release").symlink_to(made)
    step = publishing()[1]["Image and chart to the registry, signed"]
    silent = {"run": step["run"].replace("helm push", "true")}
    done, calls, outputs = publish(tmp_path, silent, VERSION=f"v{VERSION}")
    assert done.returncode != 0 and outputs == {}
    assert not any(call.startswith("cosign sign") for call in calls)


def test_a_tag_without_a_registry_is_refused_before_anything_is_built(tmp_path):
    release, _ = publishing()
    first = release["jobs"]["make"]["steps"][0]
    assert first["if"] == "github.ref_type == 'tag'"
    done, _, _ = publish(tmp_path, first, REGISTRY="")
    assert done.returncode == 1 and "The variable REGISTRY of this repository is empty" in done.stdout
    assert publish(tmp_path, first)[0].returncode == 0
