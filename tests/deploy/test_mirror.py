"""The copy of all images to another registry, with a fake of skopeo."""

import hashlib
import os
import subprocess

import pytest
import yaml
from conftest import REPOSITORY, objects, pods, rendered

# Records what it copies, and makes up a digest of the destination.
SKOPEO = """#!/bin/sh
[ "$1 $2 $3" = "copy --all --digestfile" ] || exit 9
case "$5" in *$FAIL_AT*) echo "skopeo: unauthorized" >&2; exit 1 ;; esac
echo "$5 $6" >>"$LOG"
printf 'sha256:%s' "$(printf %s "$6" | sha256sum | cut -d' ' -f1)" >"$4"
"""
TARGET = "fra.ocir.io/mytenancy"


def mirror(directory, *arguments, fail_at="nothing"):
    """Runs the script; returns the process and the copies that it made."""
    skopeo = directory / "bin/skopeo"
    skopeo.parent.mkdir(exist_ok=True)
    skopeo.write_text(SKOPEO)
    skopeo.chmod(0o755)
    log = directory / "log"
    log.write_text("")
    done = subprocess.run([REPOSITORY / "deploy/image/mirror.sh", *arguments], capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{skopeo.parent}:{os.environ['PATH']}", "LOG": str(log),
                               "FAIL_AT": fail_at})
    return done, [line.split() for line in log.read_text().splitlines()]


def images(*arguments):
    """The images of the chart's pods, by container."""
    return {one["name"]: one["image"] for template in pods(objects(rendered(*arguments)))
            for one in template["spec"]["containers"]}


def test_a_mirror_has_every_image_and_the_chart_uses_nothing_else(tmp_path):
    done, copies = mirror(tmp_path, TARGET + "/", "--driver", "oci-archive:oci-model-csi.tar")
    assert done.returncode == 0, done.stderr
    # As the chart of a release, which names its image.
    released = tmp_path / "released.yaml"
    released.write_text("image: {repository: registry.example/released}")
    before = images("--values", released)
    sources = [source for source, _ in copies]
    assert sorted(sources) == sorted(["oci-archive:oci-model-csi.tar"] + [
        f"docker://{image}" for name, image in before.items() if name != "driver"])
    values = tmp_path / "mirror-values.yaml"
    values.write_text(done.stdout)
    after = images("--values", released, "--values", values)
    copied = {}
    for _, destination in copies:
        name, _, _ = destination.removeprefix("docker://").rpartition(":")
        copied[name] = f"{name}@sha256:{hashlib.sha256(destination.encode()).hexdigest()}"
    assert set(after) == set(before)
    assert set(after.values()) == set(copied.values())
    assert all(image.startswith(f"{TARGET}/") for image in after.values())


def test_without_the_drivers_image_the_sidecars_are_copied(tmp_path):
    done, copies = mirror(tmp_path, TARGET)
    assert done.returncode == 0, done.stderr
    assert len(copies) == 3 and "image" not in yaml.safe_load(done.stdout)


@pytest.mark.parametrize("arguments, said", [
    ([], "deploy/image/mirror.sh REGISTRY/PATH"),
    ([TARGET, "--colour"], "deploy/image/mirror.sh REGISTRY/PATH"),
    (["docker://" + TARGET], "without docker://"),
    (["fra.ocir.io"], "has no path: in OCIR it is your tenancy's namespace"),
])
def test_an_impossible_mirror_is_refused_before_any_copy(tmp_path, arguments, said):
    done, copies = mirror(tmp_path, *arguments)
    assert (done.returncode, copies, done.stdout) == (2, [], "")
    assert said in done.stderr


def test_a_copy_that_fails_leaves_no_values(tmp_path):
    done, _ = mirror(tmp_path, TARGET, fail_at="livenessprobe")
    assert done.returncode == 1
    assert done.stdout == "" and "unauthorized" in done.stderr
