#!/usr/bin/env python3
"""What is in the image, and under which terms:

    licenses.py --target TRIPLE --sbom sbom.cdx.json --notices THIRD-PARTY.txt

The crates are those that are linked for the target, without the tools that
only build and test. cargo says which, Cargo.lock has their checksums, and their
sources have their licences. The SBOM is CycloneDX 1.6.
"""

import argparse
import json
import os
import re
import subprocess
import tomllib
import uuid
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXTS = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
# What is linked or copied besides crates and comes from Debian: name, licence, package.
OTHERS = [("glibc", "LGPL-2.1-or-later", "libc6"), ("ca-certificates", "MPL-2.0", "ca-certificates")]


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def crates(target):
    """The packages that are linked, in order, as cargo's metadata has them."""
    lines = cargo("tree", "--locked", "--package", "oci-model-csi", "--edges", "normal", "--target", target,
                  "--prefix", "none", "--format", "{p}", "--no-dedupe").splitlines()
    linked = {tuple(line.split()[:2]) for line in lines if line}
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    found = [one for one in metadata["packages"] if (one["name"], f"v{one['version']}") in linked]
    # Procedural macros run when the driver is built, and what they make is in it.
    assert len(found) == len(linked), "cargo tree and cargo metadata disagree"
    return sorted((one for one in found if one["source"]), key=lambda one: (one["name"], one["version"]))


def checksums():
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(one["name"], one["version"]): one.get("checksum") for one in lock["package"]}


def said_by(*command):
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def others():
    """(name, version, licence, purl, text) of what is in the image besides crates."""
    for name, licence, package in OTHERS:
        version = said_by("dpkg-query", "--show", "--showformat", "${Version}", package)
        text = Path(f"/usr/share/doc/{package}/copyright").read_text()
        yield name, version, licence, f"pkg:deb/debian/{package}@{version}", text
    version = said_by("rustc", "--version").split()[1]
    text = "The terms of the Rust standard library, and of what it is made of, are in rust-std.html."
    yield "rust-std", version, "MIT OR Apache-2.0", f"pkg:generic/rust-std@{version}", text


def texts(crate):
    """The licence files of a crate's source."""
    directory = Path(crate["manifest_path"]).parent
    found = sorted(path for path in directory.iterdir() if path.is_file() and TEXTS.match(path.name))
    return [path.read_text(errors="replace").strip() for path in found]


def expression(crate):
    # Cargo once took a slash for OR.
    return (crate["license"] or "").replace("/", " OR ") or f"LicenseRef-{crate['name']}"


def sbom(linked, epoch):
    sums = checksums()
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    components = []
    for crate in linked:
        name, number = crate["name"], crate["version"]
        component = {
            "type": "library", "name": name, "version": number,
            "bom-ref": f"pkg:cargo/{name}@{number}", "purl": f"pkg:cargo/{name}@{number}",
            "licenses": [{"expression": expression(crate)}],
        }
        if sums.get((name, number)):
            component["hashes"] = [{"alg": "SHA-256", "content": sums[name, number]}]
        if crate["repository"]:
            component["externalReferences"] = [{"type": "vcs", "url": crate["repository"]}]
        components.append(component)
    for name, number, licence, purl, _ in others():
        components.append({"type": "library", "name": name, "version": number, "bom-ref": purl, "purl": purl,
                           "licenses": [{"expression": licence}]})
    own = {"type": "application", "name": "oci-model-csi", "version": version, "bom-ref": "oci-model-csi",
           "licenses": [{"expression": "Apache-2.0"}]}
    made = datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = json.dumps([own, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "metadata": {"timestamp": made, "component": own},
        "components": components,
    }


def notices(linked):
    """Every licence text once, under the names of those that come with it."""
    holders = {}
    without = []
    for crate in linked:
        label = f"{crate['name']} {crate['version']} ({expression(crate)})"
        found = texts(crate)
        for text in found:
            holders.setdefault(text, []).append(label)
        if not found:
            without.append(f"{label} by {', '.join(crate['authors']) or 'its authors'}, {crate['repository'] or 'no repository named'}")
    for name, number, licence, _, text in others():
        holders.setdefault(text.strip(), []).append(f"{name} {number} ({licence})")
    line = "=" * 80
    yield "What is in the image of oci-model-csi besides the driver itself, and under which terms.\n"
    yield ("glibc is linked statically. The driver's sources, with the script that links them (deploy/image), are\n"
           "what is needed to link it with another version of glibc.\n")
    if without:
        yield f"{line}\nCrates whose sources have no licence file; their terms are those of the expression:\n"
        yield "\n".join(without) + "\n"
    for text, names in sorted(holders.items(), key=lambda pair: pair[1]):
        yield f"{line}\n" + "\n".join(names) + f"\n\n{text}\n"


def main():
    parser = argparse.ArgumentParser()
    for option in ("--target", "--sbom", "--notices"):
        parser.add_argument(option, required=True)
    args = parser.parse_args()
    linked = crates(args.target)
    made = sbom(linked, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    Path(args.sbom).write_text(json.dumps(made, indent=1) + "\n")
    Path(args.notices).write_text("\n".join(notices(linked)))


if __name__ == "__main__":
    main()
