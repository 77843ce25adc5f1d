"""Runs scenarios; see compare.sh."""

import argparse
from pathlib import Path

from . import report
from .programs import Programs
from .scenarios import ALL
from .store import Store


def main():
    parser = argparse.ArgumentParser(prog="benches/compare.sh")
    for name in ("programs", "tools", "directory", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("scenarios", nargs="*", choices=[*ALL, "list", []], metavar="SCENARIO")
    given = parser.parse_args()
    if "list" in given.scenarios:
        print("\n".join(ALL))
        return
    programs, tables = Programs(given), []
    store = Store(given.programs, given.directory / "http")
    try:
        for name in given.scenarios or ALL:
            for table in ALL[name](programs, store, given.rounds):
                tables.append(table)
                print("\n".join(report.markdown(table)), flush=True)
    finally:
        store.stop()
    if not given.scenarios:
        report.write(given.report, tables, report.versions(given.tools), given.rounds)


main()
