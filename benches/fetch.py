"""Measures the candidates of fetch.sh in turn, round by round, and prints medians and ratios."""

import argparse
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

OBJECTS = [f"model/shard-{number}" for number in (1, 2, 3, 4)]
PARTS = 4


def measured(batches):
    """Runs batches of commands one after the other, the commands of a batch at once.
    Wall and CPU in seconds; memory in MiB as the sum of the peaks of one batch."""
    cpu = memory = 0
    started = time.perf_counter()
    for batch in batches:
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in batch]
        peaks = 0
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{process.args} ended with {process.returncode}")
            cpu += usage.ru_utime + usage.ru_stime
            peaks += usage.ru_maxrss / 1024
        memory = max(memory, peaks)
    return time.perf_counter() - started, cpu, memory


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    for name in ("program", "endpoint", "namespace"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()

    def fetch(bucket):
        return [[[given.program, "fetch", f"oci://{bucket}@{given.namespace}/model/",
                  given.directory / "fetched", "--auth", "none", "--oci-endpoint", given.endpoint]]]

    def ranges(name):
        # The ranges stay separate files; joining them would cost curl extra time.
        url = f"{given.endpoint}/n/{given.namespace}/b/crc32c/o/{name.replace('/', '%2F')}"
        step = given.size // PARTS
        bounds = [(part * step, given.size if part == PARTS - 1 else (part + 1) * step)
                  for part in range(PARTS)]
        return [["curl", "-fsS", "-r", f"{start}-{end - 1}",
                 "-o", given.directory / f"{Path(name).name}.{start}", url]
                for start, end in bounds]

    candidates = {
        "curl, 4 ranges at once, object by object": [ranges(name) for name in OBJECTS],
        "curl, all 16 ranges at once": [[one for name in OBJECTS for one in ranges(name)]],
        "fetch, verified by CRC-32C": fetch("crc32c"),
        "fetch, verified by multipart MD5": fetch("multipart-md5"),
    }
    results = {name: [] for name in candidates}
    for _ in range(given.rounds):
        for name, batches in candidates.items():
            shutil.rmtree(given.directory, ignore_errors=True)
            given.directory.mkdir(parents=True)
            os.sync()
            results[name].append(measured(batches))
            written = sum(file.stat().st_size for file in given.directory.rglob("*") if file.is_file())
            if written < given.size * len(OBJECTS):
                raise SystemExit(f"{name}: only {written} bytes arrived")

    medians = {name: [statistics.median(column) for column in zip(*runs)]
               for name, runs in results.items()}
    base = next(iter(medians.values()))
    gigabytes = given.size * len(OBJECTS) / 1e9
    print(f"medians of {given.rounds} rounds; in brackets, the ratio to the first line")
    print(f"{'':42} {'wall':>15} {'CPU':>15} {'peak memory':>18} {'rate':>10}")
    for name, median in medians.items():
        cells = [f"{value:.{digits}f} {unit} ({value / first:.2f})" for value, first, digits, unit
                 in zip(median, base, (2, 2, 0), ("s", "s", "MiB"))]
        print(f"{name:42} {cells[0]:>15} {cells[1]:>15} {cells[2]:>18}"
              f" {gigabytes / median[0]:>5.2f} GB/s")


if __name__ == "__main__":
    main()
