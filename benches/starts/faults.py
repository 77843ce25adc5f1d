"""Starts of pods while Object Storage fails and the node plugin is killed.

A run is a sequence of episodes. In each one, pods of one seed ask for models at once, with the faults of that seed, and
in some the driver is killed in between. The seed decides all but the order in which threads run."""

import random
import time
from dataclasses import dataclass

from .models import upload

AT_ONCE = 10
MIB = 1 << 20
# The cache holds this part of all models, so that models are evicted.
CACHED = 0.6


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    starts: int
    shards: tuple
    models: int = 6

    def settings(self, models):
        size = int(sum(model.size for model in models) * CACHED)
        return f"cache: {{maxSize: {size}, minFree: 1MiB, minFreeInodes: 0%}}\n"


FULL = Size(1000, (20 * MIB, 12 * MIB + 1))
SHORT = Size(60, (3 * MIB, MIB + 1))


@dataclass(frozen=True)
class Pod:
    name: str
    model: object
    after: float
    runs: float


@dataclass(frozen=True)
class Episode:
    pods: list
    faults: list
    kill_after: float | None

    def inject(self, store):
        for operation, action, rule in self.faults:
            store.fault(action, operation, **rule)


def all_faults(half):
    """Faults that end: of each one so many requests, or slow answers. `half` is a place in a file."""
    return [
        ("get", {"status": {"code": 503}}, {"times": 20}),
        ("list", {"status": {"code": 503}}, {"times": 5}),
        ("get", {"status": {"code": 429, "retry_after": 1}}, {"times": 10}),
        ("get", {"status": {"code": 500}}, {"times": 4}),
        ("get", "disconnect", {"times": 6}),
        ("get", {"reset_after": {"bytes": half}}, {"times": 6}),
        ("get", {"short_body": {"missing": half}}, {"times": 4}),
        ("get", {"flip_byte": {"offset": half}}, {"times": 2}),
        ("get", {"latency": {"ms": 300}}, {"times": 40}),
        ("get", {"bandwidth": {"bytes_per_sec": 64 * MIB}}, {}),
    ]


def faults_of(seed, number, size):
    """Two faults for each episode, so that five episodes have all of them."""
    chance = random.Random(f"{seed}/faults/{number // 5}")
    faults = all_faults(chance.randrange(size.shards[0] // 2))
    chance.shuffle(faults)
    return faults[2 * (number % 5):][:2]


def episodes(seed, size, models):
    """The episodes of a seed, without end."""
    number = 0
    while True:
        chance = random.Random(f"{seed}/{number}")
        pods = [Pod(f"pod-{number}-{n}", chance.choice(models), chance.uniform(0, 0.4), chance.uniform(0, 0.3))
                for n in range(AT_ONCE)]
        # While most of the pods wait for their models.
        kill_after = chance.uniform(0.05, 0.6) if number % 3 == 0 else None
        yield Episode(pods, faults_of(seed, number, size), kill_after)
        number += 1


def models(store, size):
    """Half of them have CRC-32Cs, as from `push`, the others MD5s, as from bulk-upload."""
    return [upload(store, f"model-{n}", size.shards, crc32c=n % 2 == 0) for n in range(size.models)]


def sleep_until(instant):
    time.sleep(max(0.0, instant - time.monotonic()))
