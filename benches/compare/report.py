"""Writes the measurements into docs/performance.md, and plots them."""

import os
import platform
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
END = "<!-- end of figures -->\n"
COLOURS = {"oci-model-csi fetch": "#1f6feb", "curl, 4 ranges": "#8b949e", "rclone": "#bf8700", "rclone lsf": "#bf8700"}


def cell(value):
    match value:
        case (number, ratio):
            return f"{number:.2f} ({ratio:.2f})"
        case float():
            return f"{value:.2f}"
    return str(value)


def markdown(table):
    columns = table["columns"]
    lines = [f"### {table['title']}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(cell(value) for value in row)} |" for row in table["rows"]), ""]


def plot(tables):
    """Horizontal bars: seconds relative to the slowest program of each case."""
    row, width, left = 18, 760, 190
    tables = [table for table in tables if "plot" in table]
    height = sum(34 + row * len(table["plot"]) for table in tables) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    y = 20
    for table in tables:
        parts.append(f'<text x="4" y="{y}" font-weight="bold">{table["title"]}</text>')
        slowest = max(table["plot"].values())
        for name, wall in table["plot"].items():
            y += row
            length = max(1, (width - left - 70) * wall / slowest)
            parts.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{name}</text>'
                         f'<rect x="{left}" y="{y - 11}" width="{length:.0f}" height="13" '
                         f'fill="{COLOURS.get(name, "#cf222e")}"/>'
                         f'<text x="{left + length + 6:.0f}" y="{y}">{wall:.2f} s</text>')
        y += 34
    return "\n".join([*parts, "</svg>\n"])


def versions(tools):
    def first(*command):
        text = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return text.splitlines()[0] if text else ""
    commit = first("git", "-C", HERE, "rev-parse", "--short=12", "HEAD")
    cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
               if line.startswith("model name"))
    return {"commit": commit, "cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
            "curl": " ".join(first("curl", "--version").split()[:2]), "rclone": first(tools / "rclone", "version"),
            "oci": f"oci-cli {first(tools / 'oci', '--version')}"}


def machine(found):
    """The commit and the machine of the figures."""
    return (f"Measured at commit {found['commit']} on {found['cores']} cores of an {found['cpu']}, shared with the "
            f"server, Linux {found['kernel']}")


def insert(path, script, lines):
    """Replaces the figures of a script in a page."""
    begin = f"<!-- figures of {script} -->\n"
    figures = begin + "\n" + "\n".join(lines) + "\n" + END
    text = path.read_text()
    path.write_text(re.sub(re.escape(begin) + ".*?" + re.escape(END), lambda _: figures, text, flags=re.DOTALL))


def write(path, tables, found, rounds):
    lines = [f"{machine(found)}, with {found['curl']}, {found['rclone']} and {found['oci']}. "
             f"Medians of up to {rounds} rounds, in which the programs took turns; in brackets the ratio to curl, or to "
             "rclone where there is no curl.", "", "![Seconds by program](performance.svg)", ""]
    for table in tables:
        lines += markdown(table)
    insert(path, "benches/compare.sh", lines)
    path.with_suffix(".svg").write_text(plot(tables))
    print(f"wrote {path} and {path.with_suffix('.svg')}")
