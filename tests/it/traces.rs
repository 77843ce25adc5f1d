//! Traces, as an OpenTelemetry collector gets them from the driver, and what a collector that is
//! not there costs.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::collector::{Collector, Trace, attributes};
use crate::support::driver::{Driver, Setup, memory_of};
use crate::support::models::{BUCKET, MIB, PHI3, put_large, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use tonic::Code;

const SOON: Duration = Duration::from_secs(30);

/// The root of a publish, and below it the span of a call.
const ROOT: &str = "publish volume";
const CALL: &str = "publish volume/publish";

async fn driver_with(
    scratch: &Path,
    store: &LocalStore,
    environment: Vec<(&'static str, String)>,
) -> Driver {
    let mut setup = Setup::new(scratch, store);
    setup.environment.extend(environment);
    setup.start().await
}

/// The steps below the last call of a publish, without what is below them.
fn steps(trace: &Trace) -> Vec<&str> {
    let below = trace.paths().into_iter();
    below.filter_map(|path| path.strip_prefix(CALL)?.strip_prefix('/')).collect()
}

#[test]
fn a_publish_is_one_trace_with_its_steps_and_a_hit_has_no_download() {
    end_to_end(async |scratch| {
        let (store, collector) = (store_with_phi3(), Collector::start().await);
        let driver = driver_with(scratch, &store, collector.environment()).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        let miss = collector.until(ROOT, 1).await.remove(0);
        assert_eq!(
            steps(&miss),
            [
                "policy",
                "route",
                "revision",
                "revision/listing",
                "lookup",
                "download",
                "weights",
                "policy",
                "mount",
                "mount/lease",
                "mount/bind"
            ]
        );
        let call = attributes(&miss.span(CALL).attributes);
        assert_eq!(call["oci_model_csi.result"], "downloaded");
        assert_eq!(call["code"], "OK");
        assert_eq!(call["pod"], "team-a/1");
        assert_eq!(call["model"], "models/phi3-mini/ from ai-model-cache");
        assert_eq!(call["trace"], miss.id, "the log has the id of the trace");
        let line = "\"published\"";
        assert!(driver.log().contains(&format!("trace=\"{}\"", miss.id)), "{line}");

        // The download is a trace of its own, since it has many callers: theirs are linked to it.
        let flight = collector.until("download", 1).await.remove(0);
        let below: Vec<&str> = flight.paths();
        assert_eq!(
            below,
            [
                "download",
                "download/slot",
                "download/admission",
                "download/transfer",
                "download/commit"
            ]
        );
        let link = &miss.span(&format!("{CALL}/download")).links[0];
        assert_eq!(link.span_id, flight.span("download").span_id);
        let transfer = attributes(&flight.span("download/transfer").attributes);
        assert_eq!(transfer["objects"], "3");
        assert_eq!(transfer["bytes"], (3 * MIB + 7 + 8 + 22).to_string());

        kubelet.inline("2", &PHI3).publish().await.unwrap();
        let traces = collector.until(ROOT, 2).await;
        let hit = traces.iter().find(|trace| trace.id != miss.id).unwrap();
        assert!(!steps(hit).iter().any(|step| step.contains("download")), "{:?}", steps(hit));
        assert_eq!(attributes(&hit.span(CALL).attributes)["oci_model_csi.result"], "hit");

        let resource = collector.resource();
        let expected = [
            ("service.name", "oci-model-csi"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("k8s.node.name", "node-1"),
            ("telemetry.sdk.language", "rust"),
        ];
        for (key, value) in expected {
            assert_eq!(resource[key], value, "{resource:?}");
        }
        assert_eq!(resource["service.instance.id"].len(), 32);
        for line in miss.paths().iter().chain(&below) {
            figure(format_args!("span: {line}"));
        }
    });
}

#[test]
fn all_calls_of_a_publish_are_in_one_trace_and_its_root_lasts_until_success() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "large.bin", 12 * MIB, 3, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 2 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let collector = Collector::start().await;
        let driver = driver_with(scratch, &store, collector.environment()).await;
        let mut kubelet = driver.kubelet();
        kubelet.deadline = Duration::from_secs(4);
        let (first, second) = (kubelet.inline("1", &PHI3), kubelet.inline("2", &PHI3));
        let (calls, _) = tokio::join!(first.mount(), second.mount());
        assert!(calls > 1, "the premise: kubelet called again");
        let traces = collector.until(ROOT, 2).await;
        assert_eq!(traces.len(), 2, "one for each volume");
        let flight = collector.until("download", 1).await.remove(0);
        for trace in &traces {
            let called = trace.spans.iter().filter(|(path, _)| path == CALL);
            let codes: Vec<String> =
                called.map(|(_, span)| attributes(&span.attributes)["code"].clone()).collect();
            let (last, before) = codes.split_last().unwrap();
            assert_eq!(last, "OK");
            assert!(!before.is_empty() && before.iter().all(|code| code == "Aborted"), "{codes:?}");
            let (root, last) = (trace.span(ROOT), trace.span(CALL));
            assert!(root.start_time_unix_nano <= trace.spans[1].1.start_time_unix_nano);
            assert!(root.end_time_unix_nano >= last.end_time_unix_nano);
            let waits = trace.spans.iter().filter(|(path, _)| path.ends_with("/download"));
            for (_, span) in waits {
                assert_eq!(span.links[0].span_id, flight.span("download").span_id);
            }
        }
        let joined = |trace: &Trace| {
            let waits = trace.spans.iter().find(|(path, _)| path.ends_with("/download"));
            attributes(&waits.unwrap().1.attributes)["joined"].clone()
        };
        let mut began: Vec<String> = traces.iter().map(joined).collect();
        began.sort();
        assert_eq!(began, ["false", "true"]);
    });
}

#[test]
fn a_refusal_ends_its_trace_with_code_and_message_and_unpublish_has_one_too() {
    end_to_end(async |scratch| {
        let (store, collector) = (store_with_phi3(), Collector::start().await);
        let mut environment = collector.environment();
        environment.extend([
            ("OTEL_SERVICE_NAME", "models".to_owned()),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=node-plugin-1,service.name=x".to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=s3cret-of-tenant".to_owned()),
        ]);
        let driver = driver_with(scratch, &store, environment).await;
        let kubelet = driver.kubelet();
        let wrong = kubelet.inline("1", &[("bucket", BUCKET), ("prefix", "models/none/")]);
        for _ in 0..2 {
            assert_eq!(wrong.refused().await.0, Code::NotFound);
        }
        let traces = collector.until(ROOT, 2).await;
        for trace in &traces {
            let root = trace.span(ROOT);
            assert_eq!(attributes(&root.attributes)["code"], "NotFound");
            let status = root.status.clone().unwrap();
            assert!(status.message.contains("no object under models/none/"), "{status:?}");
        }
        let right = kubelet.inline("2", &PHI3);
        right.publish().await.unwrap();
        right.unpublish().await.unwrap();
        let unpublish = collector.until("unpublish", 1).await.remove(0);
        let call = attributes(&unpublish.span("unpublish").attributes);
        assert_eq!((call["pod"].as_str(), call["trace"].as_str()), ("team-a/2", &*unpublish.id));

        let resource = collector.resource();
        assert_eq!(resource["service.name"], "models");
        assert_eq!(resource["k8s.pod.name"], "node-plugin-1");
        assert!(collector.tenants().iter().all(|tenant| tenant == "s3cret-of-tenant"));
        assert!(!collector.tenants().is_empty());
        assert!(!driver.log().contains("s3cret-of-tenant"));
    });
}

#[test]
fn traces_are_off_by_default_and_with_variables_that_cannot_be_used() {
    end_to_end(async |scratch| {
        let (store, collector) = (store_with_phi3(), Collector::start().await);
        let off = |name, value: &str| [collector.environment(), vec![(name, value.to_owned())]];
        for (n, environment) in [
            Vec::new(),
            off("OTEL_SDK_DISABLED", "true").concat(),
            off("OTEL_TRACES_EXPORTER", "none").concat(),
            off("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf").concat(),
            off("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "user:s3cret@nowhere").concat(),
            off("OTEL_TRACES_SAMPLER", "always_off").concat(),
        ]
        .into_iter()
        .enumerate()
        {
            let scratch = scratch.join(n.to_string());
            let mut driver = driver_with(&scratch, &store, environment.clone()).await;
            driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
            let says_why = driver.log().contains("no traces are exported");
            assert_eq!(says_why, n == 3 || n == 4, "{environment:?}: {}", driver.log());
            assert!(!driver.log().contains("s3cret"));
            driver.terminate().await;
            assert!(driver.ended().await.success());
        }
        assert_eq!(collector.traces(ROOT).len(), 0);
    });
}

#[test]
fn a_collector_that_is_gone_or_never_answers_costs_no_publish_and_bounded_memory() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        // One port that nothing listens at, and one that accepts and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = closed.local_addr().unwrap();
        drop(closed);
        for (name, address) in [("gone", gone), ("silent", silent.local_addr().unwrap())] {
            let environment = vec![
                ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "200".to_owned()),
                ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100".to_owned()),
                ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
            ];
            let mut driver = driver_with(&scratch.join(name), &store, environment).await;
            let kubelet = driver.kubelet();
            let mut times = Vec::new();
            for n in 0..60 {
                let volume = kubelet.inline(&n.to_string(), &PHI3);
                volume.publish().await.unwrap();
                times.push(volume.calls()[0].took);
                volume.unpublish().await.unwrap();
            }
            times.sort();
            let dropped = eventually("spans are dropped", SOON, async || {
                let dropped = driver.metric("trace_spans_total{result=\"dropped\"}").await;
                (dropped > 0).then_some(dropped)
            })
            .await;
            assert_eq!(driver.log().matches("spans of traces are dropped").count(), 1);
            let memory = memory_of(driver.pid(), "RssAnon") >> 20;
            let before = Instant::now();
            driver.terminate().await;
            assert!(driver.ended().await.success());
            figure(format_args!(
                "collector {name}: 60 publishes, median {:.1} ms, {dropped} spans dropped, \
                 {memory} MiB, stopped in {:.1} s",
                times[times.len() / 2].as_secs_f64() * 1000.0,
                before.elapsed().as_secs_f64()
            ));
        }
    });
}

#[test]
fn a_stop_exports_the_last_spans() {
    end_to_end(async |scratch| {
        let (store, collector) = (store_with_phi3(), Collector::start().await);
        let environment = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000".to_owned()),
        ];
        let mut driver = driver_with(scratch, &store, environment).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        assert_eq!(collector.traces(ROOT).len(), 0, "the premise: not yet");
        driver.terminate().await;
        assert!(driver.ended().await.success());
        assert_eq!(collector.traces(ROOT).len(), 1);
    });
}

#[test]
fn no_span_has_the_credential_of_a_pre_authenticated_request() {
    end_to_end(async |scratch| {
        let (store, collector) = (store_with_phi3(), Collector::start().await);
        let driver = driver_with(scratch, &store, collector.environment()).await;
        // An administrator who takes such a URL for the name of a volume, and a pod's author who
        // copies a part of one. Names of volumes are cut short in spans.
        let whole =
            "https://objectstorage.us-ashburn-1.oraclecloud.com/p/s3cret-of-par/n/mytenancy/b/x/o/";
        let (host, rest) = ("host".repeat(12), "x".repeat(64));
        let long = format!("https://mytenancy.{host}/p/s3cret-of-par{rest}/n/");
        let filtered = [PHI3.as_slice(), &[("exclude", "*/p/s3cret-of-par/n/none")]].concat();
        let kubelet = driver.kubelet();
        kubelet.persistent(whole, "1", &filtered).publish().await.unwrap();
        kubelet.persistent(&long, "2", &filtered).publish().await.unwrap();
        let traces = collector.until(ROOT, 2).await;
        let of = |end: &str| {
            let volume = |trace: &Trace| attributes(&trace.span(ROOT).attributes)["volume"].clone();
            traces.iter().find(|trace| volume(trace).ends_with(end)).expect(end)
        };
        of("hosthost/p/…");
        let published = of("oraclecloud.com/p/…/n/mytenancy/b/x/o/");
        let lines = published.spans.iter().flat_map(|(_, span)| &span.events);
        let texts: Vec<String> =
            lines.flat_map(|line| attributes(&line.attributes).into_values()).collect();
        let warned = texts.iter().any(|text| text.contains("\"*/p/…/n/none\" of exclude"));
        assert!(warned, "the premise: the log quotes the pattern: {texts:?}");
        assert!(!collector.text().contains("s3cret-of-par"), "{}", collector.text());
        assert!(!driver.log().contains("s3cret-of-par"), "{}", driver.log());
    });
}

#[test]
fn a_collector_is_reached_over_https_with_a_certificate_that_is_trusted_and_with_no_other() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let other = scratch.join("other");
        std::fs::create_dir(&other).unwrap();
        let collector = Collector::start_with_tls(scratch, "localhost").await;
        let trusted = collector.environment();
        let driver = driver_with(&scratch.join("trusted"), &store, trusted.clone()).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        collector.until(ROOT, 1).await;
        assert!(!driver.log().contains("exporting spans of traces failed"), "{}", driver.log());

        let misnamed = Collector::start_with_tls(&other, "collector.example").await;
        // Only the system's certificates, of which the machine may have none.
        let system = ("SSL_CERT_FILE", other.join("collector.example.pem").display().to_string());
        let untrusted = vec![trusted[0].clone(), trusted[1].clone(), system];
        for (what, environment) in [("untrusted", untrusted), ("misnamed", misnamed.environment())]
        {
            let driver = driver_with(&scratch.join(what), &store, environment).await;
            driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
            eventually(what, SOON, async || {
                driver.log().contains("exporting spans of traces failed").then_some(())
            })
            .await;
            let failed = driver.metric("trace_spans_total{result=\"failed\"}").await;
            assert!(failed > 0, "{what}");
        }
        assert_eq!((collector.traces(ROOT).len(), misnamed.traces(ROOT).len()), (1, 0));

        let empty = scratch.join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        for (what, file) in [("missing", scratch.join("none.pem")), ("empty", empty)] {
            let mut environment = trusted.clone();
            environment[2].1 = file.display().to_string();
            let driver = driver_with(&scratch.join(what), &store, environment).await;
            driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
            let log = driver.log();
            assert!(log.contains("no traces are exported"), "{what}: {log}");
            assert!(log.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{what}: {log}");
        }
    });
}
