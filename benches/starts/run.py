"""Runs the episodes of a seed in both ways, and makes their table."""

import itertools
import statistics

from .containers import Containers
from .faults import AT_ONCE, episodes, models
from .kubelet import Node


def with_the_driver(store, directory, size, seed):
    """All starts with the driver: a node that counted them."""
    wanted = models(store, size)
    store.clear()
    node = Node(store, directory, size.settings(wanted))
    try:
        for episode in itertools.islice(episodes(seed, size, wanted), size.starts // AT_ONCE):
            node.run(episode)
    finally:
        node.stop()
    return node


def with_bulk_download(tools, store, directory, size, seed, starts):
    """The first starts of the same seed with bulk-download, without kills."""
    wanted = models(store, size)
    store.clear()
    containers = Containers(tools, store, directory)
    for episode in itertools.islice(episodes(seed, size, wanted), starts // AT_ONCE):
        containers.run(episode)
    containers.sent = store.stats()["body_bytes"]
    return containers


def waits(found):
    return f"{statistics.median(found.waits):.2f}, {max(found.waits):.1f}" if found.waits else "–"


def table(node, containers, seed):
    codes = ((code.title().replace("_", ""), count) for code, count in sorted(node.repeated.items()))
    repeated = ", ".join(f"{count} {code}" for code, count in codes) or "none"
    rows = [
        ["pods started", containers.starts, containers.starts, node.starts],
        ["got the right files", len(containers.right), len(containers.right_at_last), len(node.waits) - len(node.wrong)],
        ["started with wrong or missing bytes", len(containers.wrong), len(containers.wrong_at_last), len(node.wrong)],
        ["failed", len(containers.failures), len(containers.never), len(node.failures)],
        ["repeated", "–", f"{containers.restarts} containers", f"calls of kubelet: {repeated}"],
        ["kills of the node plugin (SIGKILL)", "–", "–", node.kills],
        ["models evicted", "–", "–", node.evicted()],
        ["bytes sent ÷ bytes of the pods' models", f"{containers.sent_once / containers.asked:.2f}",
         f"{containers.sent / containers.asked:.2f}", f"{node.sent / node.asked:.2f}"],
        ["seconds until a pod had its files: median, longest", waits(containers), "–", waits(node)],
        ["peak memory of the node plugin, MiB", "–", "–", round(node.memory)],
    ]
    return {"title": f"Starts under faults, seed {seed}", "rows": rows,
            "columns": ["", "bulk-download, once", "bulk-download `--no-overwrite`, again until it succeeds", "oci-model-csi"]}
