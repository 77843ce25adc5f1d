//! The speed of a node and what limits it, measured against stores that limit in different ways.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use oci_model_csi::ErrorKind;
use oci_model_csi::doctor::Severity;
use oci_model_csi::doctor::speed::{
    RampEnd, SpeedLimit, SpeedObject, SpeedOptions, SpeedReport, measure, rate_text,
};
use oci_model_csi::oci::{Environment, ObjectStorage, Settings};
use oci_model_csi::source::{AuthMethod, Bucket, ObjectSource};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::support::models::{BUCKET, MIB, PREFIX, put_large};
use crate::support::run::figure;

/// A connection's bytes in a second.
const RATE: u64 = MIB;

/// One measurement at a time: the CPU time of the process is that of all tests.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A store with objects of this size whose answers are subject to these faults.
struct Bench {
    store: LocalStore,
    objects: Vec<SpeedObject>,
    options: SpeedOptions,
    cancelled: CancellationToken,
}

impl Bench {
    fn new(size: u64, faults: &[Action]) -> Self {
        let store = LocalStore::builder().start().unwrap();
        for action in faults {
            store.faults().add(Rule::new(action.clone()).operation(Operation::Get));
        }
        let bucket = Arc::new(Bucket::new(store.namespace(), BUCKET));
        let object = |seed: u64| {
            let name = format!("{seed}.bin");
            let etag = put_large(&store, &name, size, seed, PutOptions::default());
            SpeedObject { name: bucket.object(format!("{PREFIX}{name}")), etag, size }
        };
        let objects = (0..4).map(object).collect();
        let step = Duration::from_millis(500);
        let options = SpeedOptions { step, connections: 64, ..SpeedOptions::default() };
        Self { store, objects, options, cancelled: CancellationToken::new() }
    }

    async fn measure(&self) -> SpeedReport {
        self.measure_until(usize::MAX).await
    }

    /// Cancels the measurement after the step with so many connections.
    async fn measure_until(&self, connections: usize) -> SpeedReport {
        let settings = Settings {
            endpoint: Some(self.store.endpoint()),
            metadata_base: Some(self.store.imds_base()),
            federation_endpoint: Some(self.store.federation_endpoint()),
            environment: Environment::empty(),
            ..Settings::new(AuthMethod::InstancePrincipal)
        };
        let source: Arc<dyn ObjectSource> =
            Arc::new(ObjectStorage::connect(settings).await.unwrap());
        let _alone = ALONE.lock().await;
        let report = measure(source, &self.objects, &self.options, &self.cancelled, |step| {
            if step.connections >= connections {
                self.cancelled.cancel();
            }
        });
        let report = report.await;
        let rates = report
            .steps
            .iter()
            .map(|step| format!("{}: {}", step.connections, rate_text(step.bytes_per_second)));
        let rates = rates.collect::<Vec<_>>().join(", ");
        figure(format_args!("doctor --bench: {rates}; {}", report.findings()[0].what));
        report
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_connections_limit_if_each_further_one_adds_its_own_rate() {
    let faults = [Action::ConnectionBandwidth { bytes_per_sec: RATE }];
    let mut bench = Bench::new(64 * MIB, &faults);
    bench.options.connections = 16;
    let report = bench.measure().await;
    assert_eq!(report.limit, SpeedLimit::Connections, "{report:?}");
    assert_eq!(report.ended, RampEnd::MostConnections);
    let connections: Vec<usize> = report.steps.iter().map(|step| step.connections).collect();
    assert_eq!(connections, [1, 2, 4, 8, 16]);
    assert_eq!(report.findings()[0].severity, Severity::Warning);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_all_connections_share_is_the_networks() {
    let mut bench = Bench::new(64 * MIB, &[Action::Bandwidth { bytes_per_sec: 8 * RATE }]);
    let directory = tempfile::tempdir().unwrap();
    bench.options.directory = Some(directory.path().to_owned());
    bench.options.writing = Duration::from_millis(200);
    // The store sends 20 pieces in a second, so that shorter steps differ by chance.
    bench.options.step = Duration::from_secs(1);
    bench.options.shape = Some("VM.GPU.A10.1".to_owned());
    let report = bench.measure().await;
    let what = &report.findings()[0].what;
    assert!(what.contains("of the 24 Gbit/s of VM.GPU.A10.1"), "{what}");
    assert_eq!(report.limit, SpeedLimit::Network, "{report:?}");
    assert_eq!(report.ended, RampEnd::Settled);
    // Any disk takes more, and nothing of the measurement is left on it.
    let disk = report.disk.unwrap();
    assert!(disk.bytes_per_second > 8 * RATE, "{disk:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(report.checksum_bytes_per_second.is_some_and(|rate| rate > 8 * RATE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_slows_down_with_more_connections_limits() {
    let faults = [
        Action::ConnectionBandwidth { bytes_per_sec: RATE },
        Action::Crowding { bytes_per_sec: 8 * RATE, bodies: 8 },
    ];
    let report = Bench::new(64 * MIB, &faults).measure().await;
    assert_eq!(report.limit, SpeedLimit::Service, "{report:?}");
    assert_eq!(report.best().unwrap().connections, 8);
    assert!(report.findings()[0].what.contains("slows down"), "{:?}", report.findings());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_resets_further_connections_limits() {
    let faults = [
        Action::ConnectionBandwidth { bytes_per_sec: RATE },
        Action::ConnectionLimit { connections: 6 },
    ];
    let bench = Bench::new(64 * MIB, &faults);
    let report = bench.measure().await;
    assert_eq!(report.limit, SpeedLimit::Service, "{report:?}");
    assert_eq!((report.ended, report.best().unwrap().connections), (RampEnd::Failing, 4));
    assert!(report.steps.last().unwrap().failures["connection"] >= 3, "{report:?}");
    assert!(bench.store.faults().list()[1].hits >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_throttles_limits() {
    for status in [429, 503] {
        let bench = Bench::new(5 * MIB, &[Action::Bandwidth { bytes_per_sec: 64 * MIB }]);
        let throttling = Rule::new(Action::status(status)).operation(Operation::Get).every(2);
        bench.store.faults().add(throttling);
        let report = bench.measure().await;
        assert_eq!(report.limit, SpeedLimit::Service, "{report:?}");
        let failures = format!("{status} (");
        assert!(report.findings()[0].what.contains(&failures), "{:?}", report.findings());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_it_at_once_with_the_answer_of_the_service() {
    for (status, kind) in
        [(401, ErrorKind::Unauthenticated), (403, ErrorKind::Denied), (404, ErrorKind::NotFound)]
    {
        let bench = Bench::new(64 * MIB, &[Action::status(status)]);
        let report = bench.measure().await;
        assert_eq!((report.ended, report.steps.len()), (RampEnd::Refused, 0), "{report:?}");
        let found = report.findings().remove(0);
        assert_eq!((found.severity, found.kind), (Severity::Fault, kind));
        assert!(found.what.contains(&status.to_string()), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_answers_no_request_is_a_fault_with_its_answer() {
    let report = Bench::new(64 * MIB, &[Action::status(503)]).measure().await;
    assert_eq!(report.limit, SpeedLimit::Unknown, "{report:?}");
    let found = report.findings().remove(0);
    assert_eq!((found.severity, found.kind), (Severity::Fault, ErrorKind::Unavailable));
    assert!(found.what.contains("503"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_objects_are_read_again_and_again_and_say_little() {
    let report = Bench::new(MIB, &[Action::Bandwidth { bytes_per_sec: 8 * RATE }]).measure().await;
    assert_eq!(report.limit, SpeedLimit::SmallObjects, "{report:?}");
    let bytes: u64 = report.steps.iter().map(|step| step.bytes).sum();
    assert!(bytes > 4 * MIB, "more than the model has: {bytes}");
    let found = report.findings().remove(0);
    assert_eq!(found.severity, Severity::Skipped);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_leaves_the_steps_so_far_and_nothing_on_the_disk() {
    let faults = [Action::ConnectionBandwidth { bytes_per_sec: RATE }];
    let mut bench = Bench::new(64 * MIB, &faults);
    bench.options.directory = Some(Path::new("/nowhere").to_owned());
    let report = bench.measure_until(2).await;
    assert_eq!((report.ended, report.steps.len()), (RampEnd::Interrupted, 2), "{report:?}");
    assert_eq!(report.disk_skipped, None, "the disk was not looked at any more");
    let found = report.findings().remove(0);
    assert_eq!(found.severity, Severity::Skipped);
    assert!(found.what.contains("interrupted"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_arrive_than_may() {
    let faults = [Action::ConnectionBandwidth { bytes_per_sec: RATE }];
    let mut bench = Bench::new(64 * MIB, &faults);
    bench.options.traffic = 3 * MIB;
    let report = bench.measure().await;
    assert_eq!(report.ended, RampEnd::Traffic, "{report:?}");
    let sent = bench.store.stats().body_bytes;
    assert!(sent < 8 * MIB, "{sent} bytes");
}
