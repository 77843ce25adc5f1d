#!/usr/bin/env python3
"""Writes the table of values into the chart's README.md, from values.yaml:

    deploy/helm/values.py            # writes
    deploy/helm/values.py --check    # fails where the table is not current

A key with a comment above it is a row of the table, with its value as the
default. A key without a comment, or with comments below it, is a section.
"""

import re
import sys
from pathlib import Path

CHART = Path(__file__).resolve().parent / "oci-model-csi"
BEGIN, END = "<!-- values -->\n", "<!-- /values -->\n"
KEY = re.compile(r"( *)([A-Za-z_]+):(?: (.*))?$")


def rows(text):
    """(path, default, meaning) of every documented key, in order."""
    lines = text.splitlines()
    # The indentation and name of each enclosing key.
    path = []
    comment = []
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.strip():
            comment = []
            continue
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip()[1:].strip())
            continue
        found = KEY.match(line)
        if not found:
            raise SystemExit(f"values.yaml:{number}: not a key: {line}")
        indent, name, value = len(found[1]), found[2], found[3]
        path = [one for one in path if one[0] < indent] + [(indent, name)]
        below = []
        for line in lines[number:]:
            if indented(line) <= indent:
                break
            below.append(line)
        section = any(line.lstrip().startswith("#") for line in below)
        if comment and not section:
            number += len(below)
            default = value if value is not None else flow(below)
            yield ".".join(name for _, name in path), default, " ".join(comment)
        elif value is not None:
            raise SystemExit(f"values.yaml:{number}: {name} has no comment")
        comment = []


def indented(line):
    return len(line) - len(line.lstrip())


def flow(lines):
    """A block of nested mappings on one line."""
    parts = []
    while lines:
        line, lines = lines[0], lines[1:]
        indent, name, value = KEY.match(line).groups()
        below = []
        while lines and indented(lines[0]) > len(indent):
            below.append(lines[0])
            lines = lines[1:]
        parts.append(f"{name}: {value if value is not None else flow(below)}")
    return "{" + ", ".join(parts) + "}"


def table(text):
    yield "| Key | Default | Meaning |"
    yield "|---|---|---|"
    for path, default, meaning in rows(text):
        yield f"| `{path}` | `{default}` | {meaning} |"


def main():
    readme = CHART / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    lines = "\n".join(table((CHART / "values.yaml").read_text()))
    current = f"{before}{BEGIN}{lines}\n{END}{after}"
    if sys.argv[1:] == ["--check"]:
        if current != text:
            raise SystemExit("README.md differs from values.yaml: run deploy/helm/values.py")
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    else:
        readme.write_text(current)


if __name__ == "__main__":
    main()
