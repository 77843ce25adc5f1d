#!/usr/bin/env python3
"""Packs the images that a cluster has besides ours, as archives that containerd
imports:

    images.py --tools DIRECTORY --output DIRECTORY

busybox is what pods run, and with its entrypoint the sandbox of each pod. The
image of Python is made of the Python that runs this, with its packages.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
# Parts of Python's library that no model needs.
UNUSED = re.compile(r"__pycache__|tests?|idlelib|tkinter|ensurepip|lib2to3|dist-packages|site-packages|config-.*"
                    r"|pip|setuptools|_?pytest|pygments|hf_xet")


class Layer:
    """A tar file that is written entry by entry, parents first."""

    def __init__(self):
        self.packed = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.packed, mode="w", format=tarfile.GNU_FORMAT)
        self.made = set()
        self.directory("tmp", 0o1777)
        for name, text in ACCOUNTS.items():
            self.content(name, text.encode(), 0o644)

    def add(self, name, kind, mode, data=b"", target=""):
        if name in self.made:
            return
        parent = os.path.dirname(name)
        if parent:
            self.directory(parent)
        self.made.add(name)
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(data)
        self.tar.addfile(entry, io.BytesIO(data))

    def directory(self, name, mode=0o755):
        self.add(name, tarfile.DIRTYPE, mode)

    def content(self, name, data, mode=0o755):
        self.add(name, tarfile.REGTYPE, mode, data)

    def link(self, name, target):
        self.add(name, tarfile.SYMTYPE, 0o777, target=target)

    def file(self, path, name=None):
        path = Path(path)
        mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        self.content(str(name or path).lstrip("/"), path.read_bytes(), mode)

    def tree(self, directory, name=None):
        for path in sorted(Path(directory).rglob("*")):
            inside = path.relative_to(directory)
            if path.is_file() and not any(map(UNUSED.fullmatch, inside.parts)):
                self.file(path, Path(name or directory) / inside)

    def bytes(self):
        self.tar.close()
        return self.packed.getvalue()


def save(output, names, layer, entrypoint, environment=()):
    """An archive of one image of one layer, with the names that it gets."""
    data = layer.bytes()
    digest = hashlib.sha256(data).hexdigest()
    config = json.dumps({
        "architecture": ARCHITECTURE, "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin:/usr/bin", *environment]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()
    described = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": described, "Layers": [f"{digest}.tar"],
                 "RepoTags": [f"localhost/{name}:e2e" for name in names]}]
    with tarfile.open(output / f"{names[0]}.tar", "w") as archive:
        for name, content in ((described, config), (f"{digest}.tar", data),
                              ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def busybox(tools, output):
    program = tools / "runtime/bin/busybox"
    layer = Layer()
    layer.file(program, "bin/busybox")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        layer.link(f"bin/{applet}", "busybox")
    save(output, ["busybox", "pause"], layer, ["/bin/sleep", "2147483647"])


def program(tools, output, name, images):
    """Saves a static program under several image names, each with its first arguments."""
    for image, arguments in images.items():
        layer = Layer()
        layer.file((tools / "bin" / name).resolve(), f"bin/{name}")
        save(output, [image], layer, [f"/bin/{name}", *arguments])


def libraries(path):
    """The shared libraries that a program or library is loaded with."""
    said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(?:=> )?(/\S+) \(0x", said)


def python(output):
    interpreter = Path(sys.executable).resolve()
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platlib"))
    layer = Layer()
    layer.file(interpreter, f"usr/bin/{interpreter.name}")
    layer.tree(library)
    layer.tree(packages, "packages")
    for path in (interpreter, *library.glob("lib-dynload/*.so"), *packages.rglob("*.so*")):
        # Libraries inside a package are found relative to it.
        for needed in libraries(path):
            if not needed.startswith(str(packages)):
                layer.file(needed)
    save(output, ["python"], layer, [f"/usr/bin/{interpreter.name}"],
         [f"PYTHONHOME={sys.base_prefix}", "PYTHONPATH=/packages"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.output.exists():
        return
    new = Path(f"{args.output}.{os.getpid()}")
    new.mkdir(parents=True)
    busybox(args.tools, new)
    program(args.tools, new, "sidecars", {"node-driver-registrar": ["registrar"], "livenessprobe": ["livenessprobe"]})
    program(args.tools, new, "csi-provisioner", {"csi-provisioner": []})
    python(new)
    try:
        new.rename(args.output)
    except OSError:
        shutil.rmtree(new)  # another one was faster


if __name__ == "__main__":
    main()
