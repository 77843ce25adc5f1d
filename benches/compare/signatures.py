"""Signatures and their part of a download's CPU time; see benches/signatures.sh."""

import argparse
import json
import shutil
from pathlib import Path

from .programs import Programs, measured
from .store import SHARDS, SMALL, Store


def main():
    parser = argparse.ArgumentParser()
    for name in ("programs", "tools", "directory", "estimates"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    given = parser.parse_args()
    seconds = json.loads(given.estimates.read_text())["median"]["point_estimate"] / 1e9
    print(f"{1 / seconds:.0f} signatures a second on one core: {seconds * 1000:.2f} ms each")
    store = Store(given.programs, given.directory / "http")
    try:
        store.put("models", SHARDS + SMALL)
        store.put_small("many", 10_000)
        for bucket, what in (("models", "a model of 4 shards"), ("many", "10,000 files of 1 KiB")):
            shares = []
            for _ in range(given.rounds):
                store.clear()
                run = measured(Programs(given).fetch(store, bucket, None))
                answers = store.stats()["requests"].values()
                requests = sum(sum(statuses.values()) for statuses in answers)
                shares.append((requests * seconds / run["cpu"], requests, run["cpu"]))
                shutil.rmtree(given.directory / "out")
            share, requests, cpu = sorted(shares)[len(shares) // 2], shares[0][1], shares[0][2]
            print(f"{what}: {requests} requests, {cpu:.2f} s of CPU time; signatures are "
                  f"{100 * share[0]:.1f} % of it in the median of {given.rounds} rounds")
    finally:
        store.stop()


main()
