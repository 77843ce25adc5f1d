//! The driver's log, as a machine reads it.

use std::path::Path;
use std::time::Duration;

use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, MIB, PHI3, put_large, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use serde_json::Value;
use tonic::Code;

async fn driver(scratch: &Path, store: &LocalStore) -> Driver {
    let mut setup = Setup::new(scratch, store);
    setup.arguments.extend(["--log-format=json", "--log-level=info"].map(str::to_owned));
    setup.start().await
}

/// Every line. Each is a JSON object that begins with the same fields.
fn lines(driver: &Driver) -> Vec<Value> {
    let read = |line: &str| -> Value {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for field in ["timestamp", "level", "message"] {
            assert!(value[field].is_string(), "{field}: {line}");
        }
        value
    };
    driver.log().lines().map(read).collect()
}

fn text<'a>(line: &'a Value, path: &str) -> &'a str {
    line.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn of_span<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| text(line, "/span/name") == name).collect()
}

#[test]
fn one_id_ties_the_lines_of_a_publish_and_another_those_of_its_download() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "model.bin", 8 * MIB, 1, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 4 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let driver = driver(scratch, &store).await;
        let kubelet = driver.kubelet();
        let (a, b) = (kubelet.inline("1", &PHI3), kubelet.inline("2", &PHI3));
        let (first, second) = tokio::join!(a.publish(), b.publish());
        first.unwrap();
        second.unwrap();
        a.unpublish().await.unwrap();

        let lines = eventually("the last line", Duration::from_secs(10), async || {
            let lines = lines(&driver);
            lines.iter().any(|line| line["message"] == "unpublished").then_some(lines)
        })
        .await;
        let published: Vec<_> =
            lines.iter().filter(|line| line["message"] == "published").collect();
        assert_eq!(published.len(), 2, "one line for each pod");
        let mut flights = Vec::new();
        for line in &published {
            assert_eq!(text(line, "/span/model"), "models/phi3-mini/ from ai-model-cache");
            assert!(text(line, "/span/pod").starts_with("team-a/"), "{line}");
            assert!(text(line, "/span/volume").starts_with("csi-"), "{line}");
            assert!(text(line, "/revision").starts_with("sha256:"), "{line}");
            assert!(text(line, "/target").ends_with("/mount"), "{line}");
            let trace = text(line, "/span/trace");
            assert_eq!(trace.len(), 8);
            // Nothing of one pod's call has another pod's id.
            for other in of_span(&lines, "publish") {
                let same_volume = text(other, "/span/volume") == text(line, "/span/volume");
                assert_eq!(text(other, "/span/trace") == trace, same_volume, "{other}");
            }
            flights.push(text(line, "/span/flight").to_owned());
        }
        let mut results: Vec<_> = published.iter().map(|line| text(line, "/result")).collect();
        results.sort_unstable();
        assert_eq!(results, ["downloaded", "joined"]);

        // Both waited for one download, which says the same id.
        assert_eq!(flights[0], flights[1]);
        let download = of_span(&lines, "download");
        let said: Vec<_> = download.iter().map(|line| text(line, "/message")).collect();
        assert_eq!(said, ["downloading", "downloaded"]);
        for line in download {
            assert_eq!(text(line, "/span/flight"), flights[0]);
            assert_eq!(text(line, "/span/model"), "models/phi3-mini/ from ai-model-cache");
            assert_eq!(line["bytes"], 8 * MIB);
        }

        let [gone] = of_span(&lines, "unpublish")[..] else { panic!("one line: {lines:?}") };
        assert_eq!(gone["message"], "unpublished");
        let same = |path| text(gone, path) == text(published[0], path);
        let same_as_second = |path| text(gone, path) == text(published[1], path);
        for path in ["/span/volume", "/span/pod"] {
            assert!(same(path) || same_as_second(path), "{gone}");
        }
        assert_eq!(text(gone, "/span/model"), "models/phi3-mini/ from ai-model-cache");
    });
}

#[test]
fn a_refusal_that_kubelet_gets_repeatedly_is_one_line() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "model.bin", MIB, 1, PutOptions::default());
        let driver = driver(scratch, &store).await;
        let wrong = driver.kubelet().inline("1", &[("bucket", BUCKET), ("prefix", "models/no/")]);
        for _ in 0..10 {
            assert_eq!(wrong.refused().await.0, Code::NotFound);
        }
        let lines = lines(&driver);
        let refusals: Vec<_> = lines.iter().filter(|line| line["code"] == "NotFound").collect();
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert_eq!(refusals[0]["level"], "WARN");
        assert!(
            text(refusals[0], "/message").contains("no object under models/no/"),
            "{}",
            refusals[0]
        );
        assert_eq!(text(refusals[0], "/span/model"), "models/no/ from ai-model-cache");
        assert!(
            driver
                .metric(
                    "rpc_duration_seconds_count{method=\"NodePublishVolume\",code=\"NotFound\"}"
                )
                .await
                >= 10
        );
    });
}

#[test]
fn the_debug_log_has_the_milliseconds_of_each_step_of_a_publish() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = Setup::new(scratch, &store);
        setup.arguments.extend(["--log-format=json", "--log-level=debug"].map(str::to_owned));
        let driver = setup.start().await;
        let without_listing = [PHI3[0], PHI3[1], ("pullPolicy", "IfNotPresent")];
        for (pod, attributes) in [("1", &PHI3[..]), ("2", &PHI3[..]), ("3", &without_listing[..])] {
            driver.kubelet().inline(pod, attributes).publish().await.unwrap();
        }
        let lines = lines(&driver);
        let timed = lines.iter().map(|line| text(line, "/steps")).filter(|steps| !steps.is_empty());
        let steps: Vec<Vec<&str>> = timed
            .map(|steps| {
                let pairs = steps.split(' ').map(|step| step.split_once('=').unwrap());
                pairs
                    .map(|(step, millis)| {
                        assert!(millis.parse::<f64>().unwrap() >= 0.0, "{steps}");
                        step
                    })
                    .collect()
            })
            .collect();
        let shared = ["weights", "record", "mountpoint", "lease", "bind", "answer"];
        let expected = |found: &[&'static str]| {
            [&["target", "permit", "route", "revision"], found, &shared].concat()
        };
        let (first, second) = (expected(&["lookup", "download"]), expected(&["lookup"]));
        assert_eq!(steps, [first, second, expected(&[])]);
    });
}
