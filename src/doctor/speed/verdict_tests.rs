use std::collections::BTreeMap;
use std::path::PathBuf;

use super::report::{CpuUse, DiskSpeed, NicSpeed, RampEnd, SpeedLimit, SpeedReport, SpeedStep};
use super::verdict::{cpu_ceiling, judge};
use crate::doctor::Severity;
use crate::error::{Error, ErrorKind};

const MB: u64 = 1_000_000;

/// Steps of these numbers of connections and rates in MB/s, on a machine of 8 CPUs that is idle.
fn seen(rates: &[(usize, u64)], ended: RampEnd) -> SpeedReport {
    let step = |(connections, rate): &(usize, u64)| SpeedStep {
        connections: *connections,
        bytes: rate * MB,
        bytes_per_second: rate * MB,
        first_byte_millis: Some(12),
        answers: 100,
        cpu: cpu(2 * rate / 10, 10),
        ..SpeedStep::default()
    };
    SpeedReport {
        steps: rates.iter().map(step).collect(),
        ended,
        limit: SpeedLimit::Unknown,
        largest_object: 1 << 30,
        allowed_millicpus: 8000,
        machine_millicpus: 8000,
        checksum_bytes_per_second: Some(20_000 * MB),
        disk: None,
        disk_skipped: None,
        nic: None,
        error: None,
    }
}

/// A use by this process, of 8 CPUs, and by all processes.
fn cpu(process_millicpus: u64, machine_percent: u64) -> CpuUse {
    CpuUse { process_millicpus, process_percent: process_millicpus / 80, machine_percent }
}

fn settled() -> SpeedReport {
    let rates = [(1, 200), (2, 400), (4, 800), (8, 1500), (16, 3100), (32, 3150), (64, 3120)];
    seen(&rates, RampEnd::Settled)
}

/// The last step with these failures.
fn failing(mut report: SpeedReport, kind: &str, count: u64) -> SpeedReport {
    let last = report.steps.last_mut().unwrap();
    last.failures = BTreeMap::from([(kind.to_owned(), count)]);
    report
}

fn disk(rate: u64) -> DiskSpeed {
    let (directory, bytes_per_second) = (PathBuf::from("/var/lib/oci-model-csi"), rate * MB);
    DiskSpeed { directory, bytes_per_second, cpu_nanos_per_mib: 400_000 }
}

/// The verdict, and the one line with it.
#[track_caller]
fn verdict(report: SpeedReport, severity: Severity) -> (SpeedLimit, String) {
    let report = SpeedReport { limit: judge(&report), ..report };
    let found = report.findings().remove(0);
    assert_eq!(found.severity, severity, "{found:?}");
    assert_eq!(found.fix.is_some(), severity == Severity::Warning, "{found:?}");
    (report.limit, found.what)
}

#[test]
fn a_disk_that_writes_less_than_arrives_limits() {
    let report = SpeedReport { disk: Some(disk(1200)), ..settled() };
    let (limit, line) = verdict(report, Severity::Warning);
    assert_eq!(limit, SpeedLimit::Disk);
    assert_eq!(
        line,
        "3.1 GB/s with 32 connections; the disk of /var/lib/oci-model-csi writes 1.2 GB/s: it limits"
    );
    let fast = SpeedReport { disk: Some(disk(3100)), ..settled() };
    assert_eq!(judge(&fast), SpeedLimit::Network);
    // Even a service that throttles gives more than this disk takes.
    let slow = failing(SpeedReport { disk: Some(disk(300)), ..settled() }, "429", 50);
    assert_eq!(judge(&slow), SpeedLimit::Disk);
}

#[test]
fn a_sum_that_stays_while_cpus_are_idle_is_the_network_or_its_interface() {
    let (limit, line) = verdict(settled(), Severity::Fine);
    assert_eq!(limit, SpeedLimit::Network);
    assert!(line.starts_with("3.1 GB/s with 32 connections and no more with 64: "), "{line}");
    let nic = |megabits_per_second| Some(NicSpeed { name: "ens3".to_owned(), megabits_per_second });
    let (limit, line) = verdict(SpeedReport { nic: nic(25_000), ..settled() }, Severity::Fine);
    assert_eq!(limit, SpeedLimit::Nic);
    assert!(line.contains("100 % of the 25 Gbit/s of ens3"), "{line}");
    let (limit, line) = verdict(SpeedReport { nic: nic(100_000), ..settled() }, Severity::Warning);
    assert_eq!(limit, SpeedLimit::Network);
    assert!(line.contains("25 % of the 100 Gbit/s of ens3"), "{line}");
}

#[test]
fn a_sum_that_grows_with_the_connections_is_limited_by_each_of_them() {
    let rates = [(1, 10), (2, 20), (4, 40), (8, 80), (16, 161)];
    for ended in [RampEnd::MostConnections, RampEnd::Time, RampEnd::Traffic] {
        let (limit, line) = verdict(seen(&rates, ended), Severity::Warning);
        assert_eq!(limit, SpeedLimit::Connections);
        assert_eq!(
            line,
            "161 MB/s with 16 connections, and more connections would give more: about 10 MB/s \
             for each, first bytes after 12 ms"
        );
    }
    let (limit, line) = verdict(seen(&rates, RampEnd::Interrupted), Severity::Skipped);
    assert_eq!(limit, SpeedLimit::Unknown);
    assert!(line.ends_with("interrupted before it was known what limits"), "{line}");
}

#[test]
fn a_cpu_is_the_limit_only_if_this_process_needs_it() {
    let with_cpu = |use_at_end: CpuUse| {
        let mut report = settled();
        report.steps[5].cpu = use_at_end;
        report.steps[6].cpu = use_at_end;
        report
    };
    let (limit, line) = verdict(with_cpu(cpu(7200, 92)), Severity::Warning);
    assert_eq!(limit, SpeedLimit::Cpu);
    assert!(line.contains("7.2 of 8.0 were in use for it, and the machine was busy to 92 %"));
    assert_eq!(judge(&with_cpu(cpu(3000, 95))), SpeedLimit::Cpu, "it shares the machine");
    assert_eq!(judge(&with_cpu(cpu(500, 99))), SpeedLimit::Network, "others use the machine");
    // A quota of one CPU: 3 GB/s come in with 0.6 of it, and not with checksums.
    let report = SpeedReport { allowed_millicpus: 700, ..settled() };
    let (limit, line) = verdict(report.clone(), Severity::Warning);
    assert_eq!(limit, SpeedLimit::Cpu);
    assert!(line.contains("they are enough for 2.8 GB/s"), "{line}");
    let fix = SpeedReport { limit, ..report }.findings().remove(0).fix;
    assert!(fix.unwrap().starts_with("raise the CPU limit of the driver's container"));
}

#[test]
fn the_cpus_are_enough_for_what_receiving_hashing_and_writing_cost() {
    let mut report = settled();
    report.checksum_bytes_per_second = Some(1 << 30);
    report.disk = Some(disk(10_000));
    let step = SpeedStep {
        bytes_per_second: 1 << 30,
        cpu: CpuUse { process_millicpus: 1000, ..CpuUse::default() },
        ..SpeedStep::default()
    };
    // A GiB needs 1 s, 1 s, and 0.41 s.
    let ceiling = cpu_ceiling(&report, &step).unwrap();
    assert!((3_300 << 20..3_450 << 20).contains(&ceiling), "{ceiling}");
    let idle = SpeedStep { cpu: CpuUse::default(), ..step };
    assert_eq!(cpu_ceiling(&report, &idle), None);
}

#[test]
fn a_service_that_throttles_or_resets_or_slows_down_limits() {
    let rates = [(1, 100), (2, 200), (4, 400), (8, 390)];
    for kind in ["429", "503", "connection"] {
        let report = failing(seen(&rates, RampEnd::Failing), kind, 40);
        let (limit, line) = verdict(report, Severity::Warning);
        assert_eq!(limit, SpeedLimit::Service);
        assert_eq!(
            line,
            format!(
                "400 MB/s with 4 connections; with 8 connections 40 of 140 requests failed \
                 ({kind} (40)): the service or a proxy limits"
            )
        );
    }
    let rates = [(1, 100), (2, 200), (4, 400), (8, 420), (16, 210)];
    let (limit, line) = verdict(seen(&rates, RampEnd::Settled), Severity::Warning);
    assert_eq!(limit, SpeedLimit::Service);
    assert!(line.starts_with("420 MB/s with 8 connections, but only 210 MB/s with 16"), "{line}");
}

#[test]
fn a_few_failures_are_a_finding_of_their_own() {
    let report = failing(settled(), "503", 2);
    let report = SpeedReport { limit: judge(&report), ..report };
    assert_eq!(report.limit, SpeedLimit::Network);
    let found = report.findings();
    assert_eq!(found[1].severity, Severity::Warning);
    assert_eq!(found[1].what, "2 of 702 requests failed: 503 (2)");
    assert_eq!(found.len(), 2);
}

#[test]
fn small_objects_and_single_steps_say_nothing() {
    let small = SpeedReport { largest_object: 3 << 20, ..settled() };
    let (limit, line) = verdict(small, Severity::Skipped);
    assert_eq!(limit, SpeedLimit::SmallObjects);
    assert!(line.contains("the largest object has 3 MiB: too small to say"), "{line}");
    let (limit, line) = verdict(seen(&[(1, 50)], RampEnd::MostConnections), Severity::Skipped);
    assert_eq!(limit, SpeedLimit::Unknown);
    assert_eq!(line, "50 MB/s with 1 connection; too few steps to say what limits");
}

#[test]
fn an_error_that_ends_it_is_the_finding() {
    let error = Error::new(ErrorKind::Denied, "403 NotAllowed");
    for steps in [&[][..], &[(1, 50)]] {
        let report = SpeedReport { error: Some(error.clone()), ..seen(steps, RampEnd::Refused) };
        assert_eq!(judge(&report), SpeedLimit::Unknown);
        let found = report.findings().remove(0);
        assert_eq!((found.severity, found.kind), (Severity::Fault, ErrorKind::Denied));
        assert_eq!(found.what, "403 NotAllowed");
    }
    let silent = seen(&[(1, 0)], RampEnd::Silent);
    let found = silent.findings().remove(0);
    assert_eq!((found.severity, found.kind), (Severity::Fault, ErrorKind::Unavailable));
}

#[test]
fn the_json_of_a_report_has_the_documented_keys() {
    let report = SpeedReport { disk: Some(disk(1200)), ..failing(settled(), "429", 2) };
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["ended"], "settled");
    assert_eq!(json["disk"]["bytesPerSecond"], 1_200_000_000);
    let step = &json["steps"][6];
    assert_eq!(step["connections"], 64);
    assert_eq!(step["failures"]["429"], 2);
    assert_eq!(step["firstByteMillis"], 12);
    assert_eq!(step["cpu"]["machinePercent"], 10);
}
