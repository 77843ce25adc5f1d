"""What Prometheus reads from a driver whose metrics have values."""

import os
import subprocess
import urllib.request
from pathlib import Path

from driver import Driver, in_mount_namespace

PROMTOOL = Path(os.environ.get("DEPLOY_TOOLS", "/nowhere")) / "promtool"
NEWER = "application/openmetrics-text"


def scrape(driver, accept):
    request = urllib.request.Request(f"http://{driver.metrics}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


@in_mount_namespace
def test_promtool_accepts_the_metrics(request):
    assert PROMTOOL.exists(), "DEPLOY_TOOLS names no promtool: run `make clients`"
    store = request.getfixturevalue("store")
    directory = request.getfixturevalue("tmp_path")
    store.create_bucket("models")
    store.synthetic("models", "small/weights", 1 << 20)
    driver = Driver(directory / "driver", store)
    try:
        driver.publish("downloaded", bucket="models", prefix="small/")
        driver.publish("hit", bucket="models", prefix="small/")
        kind, older = scrape(driver, "text/plain")
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        for line in (
            'oci_model_csi_publish_total{result="downloaded"} 1',
            'oci_model_csi_publish_total{result="hit"} 1',
            "oci_model_csi_download_duration_seconds_count 1",
            "oci_model_csi_credential_refresh_failures_total 0",
            "oci_model_csi_credential_expiry_timestamp_seconds 0",
            'oci_model_csi_rpc_duration_seconds_count{method="NodePublishVolume",code="OK"} 2',
        ):
            assert line in older.splitlines(), older
        checked = subprocess.run([PROMTOOL, "check", "metrics"], input=older, capture_output=True, text=True)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        # Prometheus itself asks for the newer format.
        kind, newer = scrape(driver, f"{NEWER};version=1.0.0;q=0.9,text/plain;q=0.5")
        assert kind.startswith(NEWER)
        assert newer.endswith("# EOF\n")
        samples = {line.split(" ")[0] for line in older.splitlines() if not line.startswith("#")}
        assert samples == {line.split(" ")[0] for line in newer.splitlines() if not line.startswith("#")}
        driver.unpublish("downloaded")
        driver.unpublish("hit")
    finally:
        driver.stop()
