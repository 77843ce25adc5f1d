"""The image that is built without Docker, around a placeholder for the driver."""

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tarfile

import pytest
from conftest import REPOSITORY

IMAGE = REPOSITORY / "deploy/image"
EPOCH = 1700000000
NAME = "localhost/oci-model-csi:test"


def build(directory, *arguments, epoch=EPOCH):
    output = directory / "image.tar"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run([IMAGE / "build.sh", output, "--name", NAME, *arguments],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image")
    binary = directory / "driver"
    binary.write_bytes(b"\x7fELF placeholder for the driver")
    return build(directory, "--arch", "arm64", "--binary", binary)


def opened(image):
    """The layout's files by name."""
    with tarfile.open(image) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}


def blob(files, descriptor):
    data = files["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]
    assert len(data) == descriptor["size"]
    return data


def layer(files):
    index = json.loads(files["index.json"])
    manifest = json.loads(blob(files, index["manifests"][0]))
    config = json.loads(blob(files, manifest["config"]))
    [descriptor] = manifest["layers"]
    unpacked = gzip.decompress(blob(files, descriptor))
    [diff] = config["rootfs"]["diff_ids"]
    assert diff == "sha256:" + hashlib.sha256(unpacked).hexdigest()
    return tarfile.open(fileobj=io.BytesIO(unpacked)), config


def test_every_blob_is_what_its_name_says(image):
    files = opened(image)
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    assert len(blobs) == 3
    for name, data in blobs.items():
        assert name == "blobs/sha256/" + hashlib.sha256(data).hexdigest()
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    annotations = json.loads(files["index.json"])["manifests"][0]["annotations"]
    assert annotations["io.containerd.image.name"] == NAME


def test_the_image_is_the_driver_and_nothing_that_could_run(image):
    tar, config = layer(opened(image))
    entries = {one.name: one for one in tar}
    files = {name for name, one in entries.items() if one.isfile()}
    assert files == {"usr/bin/oci-model-csi", "etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt",
                     "licenses/LICENSE", "licenses/THIRD-PARTY.txt", "licenses/rust-std.html", "licenses/sbom.cdx.json"}
    assert {name for name in files if entries[name].mode & 0o111} == {"usr/bin/oci-model-csi"}
    assert all((one.uid, one.gid, one.mtime) == (0, 0, EPOCH) for one in entries.values())
    assert config["config"]["Entrypoint"] == ["/usr/bin/oci-model-csi"]
    assert config["config"]["Env"] == ["PATH=/usr/bin"]
    assert (config["os"], config["architecture"]) == ("linux", "arm64")
    assert config["created"] == "2023-11-14T22:13:20Z"


def test_the_same_sources_make_the_same_image(image, tmp_path):
    # Another directory, another time, other permissions of the files.
    binary = tmp_path / "other"
    binary.write_bytes((image.parent / "driver").read_bytes())
    binary.chmod(0o700)
    again = build(tmp_path, "--arch", "arm64", "--binary", binary)
    assert again.read_bytes() == image.read_bytes()
    later = build(tmp_path, "--arch", "arm64", "--binary", binary, epoch=EPOCH + 1)
    assert later.read_bytes() != image.read_bytes()


def test_several_architectures_are_one_image(tmp_path):
    systems = []
    for arch in ("amd64", "arm64"):
        (tmp_path / arch).mkdir()
        (tmp_path / arch / "oci-model-csi").write_text(arch)
        systems.append(f"{arch}={tmp_path / arch}")
    output = tmp_path / "image.tar"
    subprocess.run([IMAGE / "layout.py", "--output", output, "--name", NAME, "--version", "0", "--revision", "0", *systems],
                   check=True, stdout=subprocess.DEVNULL)
    files = opened(output)
    [top] = json.loads(files["index.json"])["manifests"]
    both = json.loads(blob(files, top))["manifests"]
    assert [one["platform"]["architecture"] for one in both] == ["amd64", "arm64"]


def test_the_sbom_has_linked_crates_and_no_build_dependencies(image):
    tar, _ = layer(opened(image))
    sbom = json.load(tar.extractfile("licenses/sbom.cdx.json"))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    names = [one["name"] for one in sbom["components"]]
    assert {"aws-lc-sys", "hyper", "rustls", "tokio", "tonic", "glibc", "ca-certificates", "rust-std"} <= set(names)
    assert not {"protox", "tonic-prost-build", "proptest", "localstore", "oci-rust-sdk"} & set(names)
    for one in sbom["components"]:
        assert one["licenses"][0]["expression"], one
        if one["purl"].startswith("pkg:cargo/"):
            assert re.fullmatch("[0-9a-f]{64}", one["hashes"][0]["content"]), one
    assert len({one["bom-ref"] for one in sbom["components"]}) == len(names)


def test_the_notices_name_every_component(image):
    tar, _ = layer(opened(image))
    notices = tar.extractfile("licenses/THIRD-PARTY.txt").read().decode()
    sbom = json.load(tar.extractfile("licenses/sbom.cdx.json"))
    for one in sbom["components"]:
        assert f"\n{one['name']} {one['version']} (" in notices, one["name"]


def test_an_impossible_build_is_refused(tmp_path):
    def refused(*arguments):
        done = subprocess.run([IMAGE / "build.sh", *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr
    assert "is neither amd64 nor arm64" in refused(tmp_path / "i.tar", "--arch", "riscv64", "--binary", "/bin/true")
    assert "--binary is of one architecture" in refused(tmp_path / "i.tar", "--arch", "amd64,arm64", "--binary", "/bin/true")
    assert "deploy/image/build.sh IMAGE.tar" in refused()
    assert "deploy/image/build.sh IMAGE.tar" in refused(tmp_path / "i.tar", "--colour", "red")


# Docker is not available. The functions below read the Dockerfile as Docker does, and follow it.

def instructions():
    """Stages of the Dockerfile: each a list of (instruction, rest), with continued lines joined."""
    lines = [line for line in (IMAGE / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    stages = [[]]
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest.strip()))
    return stages


def arguments(stage, **given):
    """The values of a stage's ARG instructions: the default, or the value of the build."""
    found = {}
    for name, rest in stage:
        for word in shlex.split(rest) if name == "ARG" else []:
            key, _, default = word.partition("=")
            found[key] = given.get(key, default)
    return found


def with_values(text, values):
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], text)


def let_in(pattern):
    """The files of the repository that Dockerfile.dockerignore admits to the build."""
    lines = [line for line in (IMAGE / "Dockerfile.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "what follows lets in"
    for line in lines[1:]:
        assert re.fullmatch(r"!/[\w./-]+", line), line
        path = REPOSITORY / line[2:]
        assert path.exists(), line
        yield from [path] if path.is_file() else (one for one in path.rglob(pattern) if one.is_file())


def test_the_dockerfile_gives_the_image_the_configuration_that_the_layout_gives(image):
    _, config = layer(opened(image))
    head, _, final = instructions()
    assert final[0] == ("FROM", "scratch")
    revision = config["config"]["Labels"]["org.opencontainers.image.revision"]
    values = arguments(final, REVISION=revision)
    made = {"Labels": {}}
    for name, rest in final[1:]:
        match name:
            case "LABEL":
                made["Labels"].update(word.split("=", 1) for word in shlex.split(with_values(rest, values)))
            case "ENV":
                made["Env"] = shlex.split(rest)
            case "WORKDIR":
                made["WorkingDir"] = rest
            case "ENTRYPOINT":
                made["Entrypoint"] = json.loads(rest)
            case "COPY":
                assert rest == "--from=build /rootfs/ /"
            case _:
                assert name == "ARG", name
    # buildkit sets the time by itself.
    of_layout = {**config["config"], "Labels": dict(config["config"]["Labels"])}
    del of_layout["Labels"]["org.opencontainers.image.created"]
    assert made == of_layout
    toolchain = re.search(r'channel = "(.*)"', (REPOSITORY / "rust-toolchain.toml").read_text())[1]
    assert arguments(head)["RUST"] == toolchain


# Compiles nothing: records the arguments, and leaves a file in place of the binary.
CARGO = """#!/bin/sh
if [ "$1" != build ]; then exec "$CARGO" "$@"; fi
echo "$@" >"$ASKED"
while [ "$1" != --target ]; do shift; done
mkdir -p "$CARGO_TARGET_DIR/$2/dist"
printf '\\177ELF placeholder for the driver' >"$CARGO_TARGET_DIR/$2/dist/oci-model-csi"
"""


def test_the_dockerfile_fills_the_image_with_what_the_layout_has(tmp_path):
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    _, build_stage, _ = instructions()
    context = tmp_path / "src"
    for path in let_in("*"):
        copy = context / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    cargo = tmp_path / "bin/cargo"
    cargo.parent.mkdir()
    cargo.write_text(CARGO)
    cargo.chmod(0o755)
    copied = [number for number, one in enumerate(build_stage) if one == ("COPY", ". .")]
    assert build_stage[copied[0] - 1] == ("WORKDIR", "/src")
    runs = [rest for name, rest in build_stage[copied[0]:] if name == "RUN"]
    assert runs, "something is built of what was copied"
    # A RUN has the arguments of its stage in its environment.
    values = arguments(build_stage, TARGETARCH=arch, SOURCE_DATE_EPOCH=str(EPOCH))
    root = tmp_path / "rootfs"
    environment = {**os.environ, **values, "PATH": f"{cargo.parent}:{os.environ['PATH']}", "CARGO": shutil.which("cargo"),
                   "ASKED": str(tmp_path / "asked"), "CARGO_TARGET_DIR": str(context / "target")}
    for command in runs:
        words = [str(root) if word == "/rootfs" else word for word in shlex.split(with_values(command, values))]
        assert str(root) in words, command
        done = subprocess.run(words, cwd=context, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text()
    assert "--locked --profile dist --bin oci-model-csi" in asked

    binary = tmp_path / "driver"
    binary.write_bytes(b"\x7fELF placeholder for the driver")
    tar, _ = layer(opened(build(tmp_path, "--arch", arch, "--binary", binary)))
    packed = {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}
    by_docker = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert by_docker == packed


CROSS = {"arm64": {"gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"}, "amd64": {"gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"}}


@pytest.mark.parametrize("build_arch", ["amd64", "arm64"])
@pytest.mark.parametrize("target_arch", ["amd64", "arm64"])
def test_the_dockerfile_installs_the_compiler_of_each_architecture_on_each(tmp_path, build_arch, target_arch):
    log = tmp_path / "log"
    for name in ("apt-get", "rustup"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{log}"\n')
        program.chmod(0o755)
    _, stage, _ = instructions()
    before = stage[:stage.index(("COPY", ". ."))]
    values = arguments(stage, BUILDARCH=build_arch, TARGETARCH=target_arch)
    for command in (rest for name, rest in before if name == "RUN"):
        done = subprocess.run(["sh", "-c", command], env={**values, "PATH": f"{tmp_path}:/usr/bin:/bin"},
                              capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
    update, install, target = log.read_text().splitlines()
    assert update.startswith("apt-get update")
    cross = CROSS[target_arch] if build_arch != target_arch else set()
    assert {word for word in install.split() if "gcc" in word or "libc6" in word} == cross
    assert {"ca-certificates", "python3"} <= set(install.split())
    triple = {"amd64": "x86_64", "arm64": "aarch64"}[target_arch]
    assert target == f"rustup target add {triple}-unknown-linux-gnu"


def test_the_build_context_has_all_sources_of_the_driver():
    names = {str(path.relative_to(REPOSITORY)) for path in let_in("*")}
    sources = subprocess.run(["git", "ls-files", "src", "crates", "proto", "Cargo.*"], cwd=REPOSITORY, check=True,
                             capture_output=True, text=True).stdout.split()
    assert len(sources) > 100 and set(sources) <= names
