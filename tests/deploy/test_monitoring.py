"""Alerts and dashboard: rules that promtool accepts, metrics that the driver has."""

import json
import re

import pytest
import yaml
from conftest import BASE, CHART, KUSTOMIZE, REPOSITORY, chart, kustomized, objects, only, pods, run

RULES = yaml.safe_load((CHART / "files/prometheusrule.yaml").read_text())["spec"]
DASHBOARD = json.loads((CHART / "files/oci-model-csi.json").read_text())
RUNBOOKS = (REPOSITORY / "docs/runbooks.md").read_text()
COMPONENTS = REPOSITORY / "tests/deploy/components"
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Labels that our PodMonitor gives to every metric, besides Prometheus' own.
OF_MONITOR = {"node", "component", "job"}
OF_TARGETS = OF_MONITOR | {"instance", "le"}


def documented():
    """Metrics as they are scraped, with their labels, from the table in docs/metrics.md."""
    found = {}
    for line in (REPOSITORY / "docs/metrics.md").read_text().splitlines():
        if not line.startswith("| `"):
            continue
        name, kind, labels = [cell.strip() for cell in line.strip("|").split("|")][:3]
        name, labels = name.strip("`"), set(re.findall(r"`(\w+)`", labels))
        endings = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        found.update({name + ending: labels for ending in endings})
    return found


def queries():
    """Every PromQL expression of the dashboard, as Grafana would send it."""
    for panel in PANELS:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "5m").replace("$node", ".*")
            assert "$" not in text, text
            yield panel["title"], text


def expressions():
    return [(alert["alert"], alert["expr"]) for alert in ALERTS] + list(queries())


def promtool_check(tmp_path, rules):
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules))
    return run("promtool", "check", "rules", "--lint=all", "--lint-fatal", file)


def test_promtool_accepts_the_alerts(tmp_path):
    done = promtool_check(tmp_path, RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in done.stdout


def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(queries())]
    assert len(rules) > 20
    done = promtool_check(tmp_path, {"groups": [{"name": "dashboard", "rules": rules}]})
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_name_only_metrics_and_labels_that_are_documented():
    known = documented() | {"up": set()}
    used = set()
    for place, text in expressions():
        # `up` is Prometheus' own, of every target.
        names = set(re.findall(r"\b(oci_model_csi_\w+|up(?={))", text))
        assert names and names <= set(known), f"{place}: {names - set(known)}"
        used |= names
        labels = set().union(*(known[name] for name in names)) | OF_TARGETS
        matched = re.findall(r"(\w+)=~?\"", text)
        for group in re.findall(r"by \((.*?)\)", text):
            matched += [label.strip() for label in group.split(",")]
        assert set(matched) <= labels, f"{place}: {set(matched) - labels}"
    # Each metric is on the dashboard or in an alert.
    forgotten = {name for name in known if not name.endswith(("_sum", "_bucket", "_count"))} - used
    assert not forgotten


def test_the_pod_monitor_gives_the_labels_that_alerts_go_by():
    monitor = only(chart("--values", CHART / "ci/components-values.yaml"), "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    rules = {rule["targetLabel"]: rule.get("sourceLabels", rule.get("replacement")) for rule in endpoint["relabelings"]}
    assert set(rules) == OF_MONITOR
    assert rules["component"] == ["__meta_kubernetes_pod_label_app_kubernetes_io_component"]
    [job] = {name for _, text in expressions() for name in re.findall(r'job="([^"]*)"', text)}
    assert rules["job"] == job
    templates = pods(chart("--values", BASE))
    components = {template["metadata"]["labels"]["app.kubernetes.io/component"] for template in templates}
    named = {name for _, text in expressions() for name in re.findall(r'component="([^"]*)"', text)}
    assert named and named <= components


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do_and_has_its_runbook(alert):
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert notes["summary"] and notes["description"]
    assert notes["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
    assert f"\n## {alert['alert']}\n" in RUNBOOKS


def test_every_alert_that_is_installed_links_to_where_its_runbook_can_be_read():
    for found in (chart("--values", CHART / "ci/components-values.yaml"), objects(kustomized(COMPONENTS))):
        rules = [rule for group in only(found, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
        links = [rule["annotations"]["runbook_url"] for rule in rules]
        read = "https://wiki.example.com/oci-model-csi/runbooks.md"
        assert links == [f"{read}#{alert['alert'].lower()}" for alert in ALERTS]


def test_the_component_says_how_its_links_are_made_absolute():
    lines = (KUSTOMIZE / "components/monitoring/kustomization.yaml").read_text().splitlines()
    said = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    used = yaml.safe_load((COMPONENTS / "kustomization.yaml").read_text())
    assert yaml.safe_load(said) == {key: used[key] for key in ("configMapGenerator", "replacements")}


def test_every_runbook_has_its_alert():
    headings = re.findall(r"^## (OciModelCsi\w+)$", RUNBOOKS, re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]


def test_the_alerts_fire_when_they_should(tmp_path):
    tests = yaml.safe_load((REPOSITORY / "tests/deploy/alerts.yaml").read_text())
    fired = {check["alertname"] for test in tests["tests"] for check in test["alert_rule_test"] if check.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in ALERTS}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    # The texts of alerts are compared above; this checks when they fire and for which node.
    plain = json.loads(json.dumps(RULES))
    for group in plain["groups"]:
        for rule in group["rules"]:
            rule["annotations"] = {}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(tests))
    done = run("promtool", "test", "rules", tmp_path / "alerts.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_have_unique_ids():
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not covered & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= covered
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def claims():
    """Claims of models in examples and documents, with a name of their own."""
    files = {path: path.read_text() for path in (REPOSITORY / "deploy/examples").rglob("*.yaml") if path.name != "before.yaml"}
    for path in (REPOSITORY / "docs").glob("*.md"):
        for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)):
            files[path.with_suffix(f".{number}")] = text
    for path, text in files.items():
        for one in filter(None, yaml.safe_load_all(text)):
            # oci-bv are OKE's block volumes, which pods fill.
            if (isinstance(one, dict) and one.get("kind") == "PersistentVolumeClaim"
                    and one["spec"].get("storageClassName") != "oci-bv"):
                yield f"{path.stem}-{one['metadata']['name']}", one
            for volume in one.get("spec", {}).get("volumes", []) if isinstance(one, dict) else []:
                if template := volume.get("ephemeral", {}).get("volumeClaimTemplate"):
                    yield f"{path.stem}-{volume['name']}", template


def volume_of_a_model(claim):
    """The metrics of kubelet and kube-state-metrics for a model's volume, which is always full."""
    name, one = claim
    of = f'namespace="team-a", persistentvolumeclaim="{name}"'
    kubelet = 'job="kubelet", metrics_path="/metrics"'
    bytes_and_inodes = {"capacity_bytes": 7500000000, "used_bytes": 7500000000, "available_bytes": 0,
                        "inodes": 19, "inodes_used": 19, "inodes_free": 0}
    for metric, value in bytes_and_inodes.items():
        yield f"kubelet_volume_stats_{metric}{{{kubelet}, {of}}}", value
    for mode in one["spec"]["accessModes"]:
        yield f'kube_persistentvolumeclaim_access_mode{{{of}, access_mode="{mode}"}}', 1
    labels = "".join(f', label_{key}="{value}"' for key, value in one["metadata"].get("labels", {}).items())
    yield f"kube_persistentvolumeclaim_labels{{{of}{labels}}}", 1


def test_a_documented_claim_of_a_model_raises_no_alert_about_full_volumes(tmp_path):
    documented = dict(claims())
    assert len(documented) >= 4
    modes = {mode for one in documented.values() for mode in one["spec"]["accessModes"]}
    assert modes == {"ReadOnlyMany", "ReadWriteOnce"}, "both ways are among them"
    careless = {"careless": {"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"]}}}
    series = [{"series": name, "values": f"{value}x480"} for claim in {**documented, **careless}.items()
              for name, value in volume_of_a_model(claim)]
    fires = [{"exp_labels": {"severity": "critical", "namespace": "team-a", "persistentvolumeclaim": "careless",
                             "job": "kubelet", "metrics_path": "/metrics"}}]
    checks = [{"alertname": alert, "eval_time": time, "exp_alerts": fires}
              for alert in ("KubePersistentVolumeFillingUp", "KubePersistentVolumeInodesFillingUp")
              for time in ("10m", "8h")]
    tests = {"rule_files": [str(REPOSITORY / "tests/deploy/kubernetes-mixin.yaml")], "evaluation_interval": "1m",
             "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": checks}]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = run("promtool", "test", "rules", tmp_path / "tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
