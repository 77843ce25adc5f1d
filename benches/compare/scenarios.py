"""What is measured. Each scenario returns tables: a title, columns, and rows of a name and figures.
A figure is a number, or a number and its ratio to another."""

import os
import re
import shutil
import threading
import time

from .programs import CURL, FLOOR, OCI, OURS, RCLONE_UP, in_turn
from .store import MIB, SHARDS, SMALL, Store

MANY, LISTED = 10_000, 100_000
COLUMNS = ["Program", "Seconds", "CPU seconds", "Peak memory, MiB"]


def comparison(title, medians, base):
    """A table of medians with their ratios to one program."""
    wall, cpu, _ = medians[base]
    rows = [[name, (row[0], row[0] / wall), (row[1], row[1] / cpu), round(row[2])] for name, row in medians.items()]
    return {"title": title, "columns": COLUMNS, "rows": rows, "plot": {name: row[0] for name, row in medians.items()}}


def one_object(programs, store, rounds):
    files = [("weights.bin", 1464 * MIB)]
    store.put("object", files)
    medians = programs.compare(store, "object", files, programs.everyone(), rounds)
    return [comparison("One object of 1.5 GB with a CRC-32C", medians, CURL)]


def model(programs, store, rounds):
    store.put("model", SHARDS + SMALL)
    everyone = programs.everyone() | {FLOOR: programs.floor}
    medians = programs.compare(store, "model", SHARDS + SMALL, everyone, rounds)
    return [comparison("A model: 4 shards, 5 small files, 1.5 GB, with CRC-32Cs", medians, CURL)]


def md5(programs, store, rounds):
    store.put("md5", SHARDS + SMALL, crc32c=False)
    medians = programs.compare(store, "md5", SHARDS + SMALL, programs.everyone(), rounds)
    return [comparison("The same with MD5s of parts only, as from bulk-upload", medians, CURL)]


def https(programs, _, rounds):
    given = programs.given
    store = Store(given.programs, given.directory / "https", "--tls", "--ca-file", given.directory / "ca.pem")
    try:
        store.put("model", SHARDS + SMALL)
        # bulk-download does not pass --cert-bundle on to its transfers.
        everyone = {name: program for name, program in programs.everyone().items() if name != OCI}
        medians = programs.compare(store, "model", SHARDS + SMALL, everyone, rounds)
    finally:
        store.stop()
    return [comparison("The model with CRC-32Cs, over https", medians, CURL)]


def small_files(programs, store, rounds):
    store.put_small("small", MANY)
    files = [(str(n), 1024) for n in range(MANY)]
    everyone = {name: program for name, program in programs.everyone().items() if name != CURL}
    medians = programs.compare(store, "small", files, everyone, min(rounds, 3))
    return [comparison(f"{MANY:,} files of 1 KiB", medians, "rclone")]


def listing(programs, store, rounds):
    """One file of a prefix with many objects: all of it is listed."""
    store.put_small("listed", LISTED)

    def fetch(store, bucket, _):
        return programs.fetch(store, bucket, [], "--include", "000000.json")

    def rclone(store, bucket, _):
        [[command]] = programs.rclone(store, bucket, [])
        return [[[*command[:3], "lsf", f"oos:{bucket}/m"]]]

    medians = programs.compare(store, "listed", [], {OURS: fetch, "rclone lsf": rclone}, min(rounds, 3))
    return [comparison(f"Listing {LISTED:,} objects", medians, "rclone lsf")]


def push(programs, store, rounds):
    """The other direction: the model from a directory, each time to an empty prefix."""
    files, source = SHARDS + SMALL, programs.given.directory / "source"
    source.mkdir()
    for name, size in files:
        with open(source / name, "wb") as file:
            for at in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - at)))
    store.put("pushed", [("other", 1)])

    def run(name, commands):
        prefix = name.replace(" ", "-")
        found = programs.run(commands(store, "pushed", source, prefix))
        store.take("pushed", prefix, files)
        return found

    medians = in_turn(programs.uploads(), rounds, run)
    shutil.rmtree(source)
    return [comparison("Upload of the model, 1.5 GB", medians, RCLONE_UP)]


def push_latency(programs, store, rounds):
    """A network far away for uploads: parts of 8 MiB over slow connections."""
    del rounds
    source, rows = programs.given.directory / "far-source", []
    store.put("far-pushed", [("other", 1)])
    store.clear()
    store.fault({"latency": {"ms": 20}}, "upload_part")
    store.fault({"connection_bandwidth": {"bytes_per_sec": 2_000_000}}, "upload_part")
    try:
        for number in ("auto", 16, 64, 256):
            size = 2048 if number in ("auto", 256) else 512
            source.mkdir()
            with open(source / "weights.bin", "wb") as file:
                file.truncate(size * MIB)
            store.clear_stats()
            found = programs.run(programs.push(
                store, "far-pushed", source, str(number), "--part-size", "8MiB", "--concurrency", str(number),
                "--log-level", "debug"))
            store.take("far-pushed", str(number), [("weights.bin", size * MIB)])
            shutil.rmtree(source)
            rows.append([f"`--concurrency {number}`", round(size * MIB / found["wall"] / 1e6), round(found["memory"]),
                         store.stats()["concurrent_requests_max"], chosen(found["output"])])
    finally:
        store.clear()
    return [{"title": "Upload with 20 ms latency, 2 MB/s a connection, in parts of 8 MiB", "rows": rows,
             "columns": ["", "MB/s, start included", "Peak memory, MiB", "Most requests at once", "What `auto` chose"]}]


def chosen(output):
    """The numbers of requests at once, from the debug log."""
    steps = re.findall(r"changes from=(\d+) to=(\d+)", output)
    return " → ".join([steps[0][0], *(to for _, to in steps)]) if steps else "–"


class Fastest:
    """The most bytes per second that a store sends in two seconds."""

    def __init__(self, store):
        self.store, self.rate, self.done = store, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def watch(self):
        seen = []
        while not self.done.wait(0.25):
            seen.append((time.monotonic(), self.store.stats()["body_bytes"]))
            while seen[-1][0] - seen[0][0] >= 2:
                (since, before), (now, after) = seen.pop(0), seen[-1]
                self.rate = max(self.rate, (after - before) / (now - since))


def latency(programs, store, rounds):
    """A network far away: each request waits, and each connection is slow."""
    del rounds
    store.put("far", [("weights.bin", 4096 * MIB)])
    store.clear()
    store.fault({"latency": {"ms": 20}})
    store.fault({"connection_bandwidth": {"bytes_per_sec": 2_000_000}})
    rows = []
    try:
        for number in ("auto", 16, 64, 256):
            size = 4096 if number in ("auto", 256) else 512
            extra = () if size == 4096 else ("--include", "less.bin")
            if extra:
                store.put("far", [("less.bin", 512 * MIB)])
            store.clear_stats()
            fetch = programs.fetch(store, "far", [], "--concurrency", str(number), "--log-level", "debug",
                                   *(extra or ("--include", "weights.bin")))
            with Fastest(store) as fastest:
                found = programs.run(fetch)
            rate = size * MIB / found["wall"] / 1e6
            most = store.stats()["concurrent_requests_max"]
            rows.append([f"`--concurrency {number}`", round(rate), round(fastest.rate / 1e6), round(found["memory"]), most,
                         chosen(found["output"])])
    finally:
        store.clear()
    return [{"title": "20 ms latency, 2 MB/s a connection (512 MB/s with 256)", "rows": rows,
             "columns": ["", "MB/s, start included", "MB/s in the best two seconds", "Peak memory, MiB", "Most requests at once", "What `auto` chose"]}]


def failures(programs, store, rounds):
    """Failing requests, and a storm of 429."""
    del rounds
    store.put("model", SHARDS + SMALL)
    total = sum(size for _, size in SHARDS + SMALL)
    rows = []
    for title, faults in {
        "no failures": [],
        "each 100th request is answered 503": [({"status": {"code": 503}}, {"every": 100})],
        "each 20th is reset after 1 MiB": [({"reset_after": {"bytes": MIB}}, {"every": 20})],
        "the first 200 requests are answered 429": [({"status": {"code": 429}}, {"times": 200})],
    }.items():
        walls, sent, refused = [], [], []
        for _ in range(3):
            store.clear()
            for action, rule in faults:
                store.fault(action, **rule)
            found = programs.run(programs.fetch(store, "model", []), SHARDS + SMALL)
            stats = store.stats()
            walls.append(found["wall"])
            sent.append(stats["body_bytes"] / total)
            refused.append(sum(n for code, n in stats["requests"].get("get", {}).items() if int(code) in (429, 503)))
        rows.append([title, sorted(walls)[1], round(sorted(sent)[1], 3), sorted(refused)[1]])
    store.clear()
    return [{"title": "Failing requests, the model with CRC-32Cs", "rows": rows,
             "columns": ["", "Seconds", "Bytes sent ÷ size", "Requests refused"]}]


def memory(programs, store, rounds):
    del rounds
    rows = []
    for gigabytes in (1, 4, 10):
        bucket, files = f"size-{gigabytes}", [("weights.bin", gigabytes << 30)]
        store.put(bucket, files)
        found = programs.run(programs.fetch(store, bucket, files, "--concurrency", "16"), files)
        rows.append([f"{gigabytes} GiB", found["wall"], round(found["memory"])])
    programs.run([[["true"]]])  # frees the disk
    return [{"title": "Memory by size of the object, 16 requests at once", "rows": rows,
             "columns": ["Object", "Seconds", "Peak memory, MiB"]}]


def hits(programs, store, rounds):
    """NodePublishVolume of a cached model, beside many cached files."""
    del rounds
    from . import hits as of_hits  # imports the driver: after OCI_MODEL_CSI_BIN is set

    store.put_small("cached", MANY)
    store.put("hit", [("config.json", 700), ("weights.bin", of_hits.SIZE)])
    return of_hits.tables(programs.given.directory / "driver", store, f"{MANY:,}")


ALL = {scenario.__name__.replace("_", "-"): scenario for scenario in (
    one_object, model, md5, https, small_files, listing, push, latency, push_latency, failures, memory, hits)}
