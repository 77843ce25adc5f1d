"""The short form of benches/starts.sh: a pod's start in the users' way and with the driver, and sixty starts under faults."""

import os
import sys
from pathlib import Path

import conftest
from conftest import REPOSITORY, TOOLS
from driver import in_mount_namespace

sys.path.insert(0, str(REPOSITORY / "benches"))

from compare import report  # noqa: E402
from compare.store import MIB, Store  # noqa: E402
from starts import faults, run, table  # noqa: E402
from starts.models import upload  # noqa: E402

PROGRAMS = Path(conftest.BINARY).parent
SEED = int(os.environ.get("OCI_MODEL_CSI_TEST_SEED", "1"))


@in_mount_namespace
def test_sixty_starts_under_faults_and_kills_give_sixty_pods_their_files(request):
    directory = request.getfixturevalue("tmp_path")
    store = Store(PROGRAMS, directory / "store")
    try:
        node = run.with_the_driver(store, directory / "node", faults.SHORT, SEED)
        containers = run.with_bulk_download(TOOLS, store, directory / "containers", faults.SHORT, SEED, faults.AT_ONCE)
    finally:
        store.stop()
    assert node.violations() == []
    assert (node.starts, len(node.waits)) == (60, 60)
    assert node.kills == 2 and node.evicted() > 0 and node.repeated, "nothing went wrong, so nothing was shown"
    assert containers.starts == len(containers.right) + len(containers.wrong) + len(containers.failures)
    assert report.markdown(run.table(node, containers, SEED))


@in_mount_namespace
def test_each_situation_of_the_table_is_measured_in_both_ways(request):
    directory = request.getfixturevalue("tmp_path")
    store = Store(PROGRAMS, directory / "store")
    try:
        model = upload(store, "table", (12 * MIB, 12 * MIB))
        limited = table.measure(TOOLS, store, directory / "table", model, rounds=1, rate=20_000_000,
                                before=lambda program: None)
    finally:
        store.stop()
    assert len(limited["rows"]) == 7, limited
    ours = {row[0]: float(row[4]) for row in limited["rows"]}
    assert ours[table.LATER] == ours[table.MARKED] == ours[table.RESTARTED] == 0, "a hit sends nothing"
    assert 0.99 < ours[table.FIRST] < 1.01 and 0.99 < ours[table.JOINED] < 1.01, "one download for both"
    assert ours[table.CRASHED] < 1.5, "a download continues after a crash"
