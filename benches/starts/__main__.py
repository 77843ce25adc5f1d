"""Measures starts of pods; see starts.sh."""

import argparse
import secrets
from dataclasses import replace
from pathlib import Path

from compare import report
from compare.store import MIB, Store

from . import faults, run, table
from .models import upload

SHARDS = (256 * MIB, 256 * MIB)
RATE = 200_000_000


def measured(given, store):
    model = upload(store, "table", SHARDS)
    for rate in (RATE, None):
        yield table.measure(given.tools, store, given.directory / "table", model, given.rounds, rate)


def under_faults(given, store):
    print(f"seed {given.seed}", flush=True)
    size = replace(faults.FULL, starts=given.starts)
    node = run.with_the_driver(store, given.directory / "node", size, given.seed)
    given.wrong = node.violations()
    containers = run.with_bulk_download(given.tools, store, given.directory / "containers", size, given.seed, given.containers)
    yield run.table(node, containers, given.seed)


PARTS = {"table": measured, "faults": under_faults}


def main():
    parser = argparse.ArgumentParser(prog="benches/starts.sh")
    for name in ("programs", "tools", "directory", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--starts", type=int, default=faults.FULL.starts, help="with the driver [default: 1000]")
    parser.add_argument("--containers", type=int, default=60, help="with bulk-download [default: 60]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of the faults [default: a new one]")
    parser.add_argument("--print", action="store_true", help="leave docs/bulk-download.md as it is")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="table|faults")
    given = parser.parse_args()
    given.wrong = []
    store = Store(given.programs, given.directory / "store")
    try:
        for name in given.parts or PARTS:
            lines = [line for found in PARTS[name](given, store) for line in report.markdown(found)]
            print("\n".join(lines), flush=True)
            if not given.print:
                write(given, name, lines)
    finally:
        store.stop()
    if given.wrong:
        raise SystemExit("\n".join(["not as promised:", *given.wrong]))


def write(given, name, lines):
    found = report.versions(given.tools)
    above = f"{report.machine(found)}, with {found['oci']}."
    if name == "table":
        above += f" Medians of {given.rounds} rounds; in brackets the ratio to bulk-download in the same situation."
    report.insert(given.report, f"benches/starts.sh {name}", [above, "", *lines])
    print(f"wrote {given.report}")


main()
