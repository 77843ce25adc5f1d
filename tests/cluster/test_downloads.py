"""Downloads that take longer than kubelet waits, and pods that do not."""

import os
import re
import threading
import time

import pytest
from kube import Team, inline, pod
from node import SCRATCH, until

SIZE, RATE = 560 << 20, 4 << 20  # two minutes and twenty seconds
MOMENTS = (30, 130)


class Slow:
    """A pod that waits for a long download, and what a user sees of it at certain
    moments. The download starts with the session, and other tests run meanwhile."""

    def __init__(self, store):
        self.team = Team(f"patient-{os.getpid()}")
        self.team.create()
        self.bucket = self.team.name
        store.synthetic(self.bucket, "long/weights.bin", SIZE)
        self.rule = store.slow("long/", RATE)
        store.rules.remove(self.rule)  # other tests leave it
        self.texts = {}
        self.team.apply(pod("vllm", {"model": inline("long/", bucket=self.bucket)}))
        self.started = time.monotonic()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for moment in MOMENTS:
            time.sleep(max(0, self.started + moment - time.monotonic()))
            self.texts[moment] = self.team.describe("vllm")
            (SCRATCH / f"describe-at-{moment}-s.txt").write_text(self.texts[moment])


@pytest.fixture(scope="session", autouse=True)
def slow(request):
    """Begins with the first test where the one that looks at it is to run."""
    if not any(item.name == WATCHED for item in request.session.items):
        return None
    request.getfixturevalue("helm")
    return Slow(request.getfixturevalue("store"))


def event_table(text):
    """The table of events of a description."""
    return text[text.index("Events:"):].strip()


def pulling(text):
    """The progress in the driver's event in percent, and how often the event was recorded."""
    [line] = [line for line in text.splitlines() if " ModelPulling " in line]
    times = re.search(r"\(x(\d+) over ", line)
    return int(re.search(r" \((\d+) %\)", line)[1]), int(times[1]) if times else 1


def test_a_download_longer_than_kubelets_two_minutes_reports_its_progress(slow, store):
    slow.reader.join(timeout=MOMENTS[-1] + 60)
    assert set(slow.texts) == set(MOMENTS)
    for moment in MOMENTS:
        print(f"figure: kubectl describe pod, {moment} s after kubectl apply:\n{event_table(slow.texts[moment])}")
    early, late = (event_table(slow.texts[moment]) for moment in MOMENTS)
    assert f"downloading long/ from {slow.bucket}: " in early
    (begun, once), (far, times) = pulling(early), pulling(late)
    assert begun < 40 and far > 60, "the event follows the download"
    assert once == 1 and 2 <= times <= 4, "at once, and then about once a minute"
    # kubelet's own event: the answer to its first call.
    assert "FailedMount" in late and f"code = Aborted desc = downloading long/ from {slow.bucket}: " in late
    assert " %), " in late and "MISSING" not in late, "kubelet takes the message for a format"
    slow.team.wait("vllm", seconds=240)
    assert store.sent(slow.bucket, "long/weights.bin") == SIZE, "one download, however many calls"
    assert int(slow.team.exec("vllm", "wc -c < /model/weights.bin")) == SIZE
    slow.team.says("vllm", "ModelPulled")
    slow.team.remove()


WATCHED = test_a_download_longer_than_kubelets_two_minutes_reports_its_progress.__name__


@pytest.mark.core
def test_a_pod_that_is_deleted_during_the_download_ends_at_once_and_loses_nothing(team, store):
    size = 60 << 20
    store.synthetic(team.name, "left/weights.bin", size)
    rule = store.slow("left/", 2 << 20)
    team.apply(pod("impatient", {"model": inline("left/", bucket=team.name)}))
    team.says("impatient", "ModelPulling")
    team.delete("impatient", seconds=40)
    before = store.sent(team.name, "left/weights.bin")
    assert before < size
    until("the download going on", lambda: store.sent(team.name, "left/weights.bin") > before)
    team.apply(pod("patient", {"model": inline("left/", bucket=team.name)}))
    store.heal(rule)
    team.wait("patient")
    assert store.sent(team.name, "left/weights.bin") == size, "nothing was downloaded twice"
