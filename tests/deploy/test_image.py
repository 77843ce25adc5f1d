"""The image that is built without Docker, around a stand-in for the driver."""

import gzip
import hashlib
import io
import json
import os
import re
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
    binary.write_bytes(b"\x7fELF stands for the driver")
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


def test_the_sbom_has_what_is_linked_and_not_what_only_builds(image):
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


def test_what_cannot_be_built_is_refused(tmp_path):
    def refused(*arguments):
        done = subprocess.run([IMAGE / "build.sh", *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr
    assert "is neither amd64 nor arm64" in refused(tmp_path / "i.tar", "--arch", "riscv64", "--binary", "/bin/true")
    assert "--binary is of one architecture" in refused(tmp_path / "i.tar", "--arch", "amd64,arm64", "--binary", "/bin/true")
    assert "deploy/image/build.sh IMAGE.tar" in refused()
    assert "deploy/image/build.sh IMAGE.tar" in refused(tmp_path / "i.tar", "--colour", "red")


def test_the_dockerfile_makes_the_same_of_the_same_parts():
    text = (IMAGE / "Dockerfile").read_text()
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    toolchain = re.search(r'channel = "(.*)"', (REPOSITORY / "rust-toolchain.toml").read_text())[1]
    assert f"ARG RUST={toolchain}\n" in text and f"VERSION={version}\n" in text
    assert "deploy/image/rootfs.sh" in text and '\nENTRYPOINT ["/usr/bin/oci-model-csi"]\n' in text
    labels = set(re.findall(r"org\.opencontainers\.image\.\w+", text))
    packed = set(re.findall(r'"(org\.opencontainers\.image\.\w+)":', (IMAGE / "layout.py").read_text()))
    # What only a layout needs: its name, and the time that buildkit sets by itself.
    only = {"org.opencontainers.image.created", "org.opencontainers.image.ref"}
    assert labels == {label for label in packed if label not in only}
    # What the build reads is what the ignore file lets in.
    let_in = {line[2:] for line in (IMAGE / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!/")}
    assert all((REPOSITORY / path).exists() for path in let_in)
    assert shutil.which("cargo"), "the SBOM is made by cargo"
