//! A measurement as findings: one line with figures, and what to do.

use super::report::{DiskSpeed, RampEnd, SpeedLimit, SpeedReport, SpeedStep, rate_text};
use super::verdict::cpu_ceiling;
use crate::doctor::{CheckId, Finding};
use crate::error::ErrorKind;
use crate::model::{counted, size_text};

/// As many connections as downloads open at most, unless an administrator fixed a number.
const DRIVERS_MOST: usize = 256;

/// The findings of a measurement: what limits first.
pub(super) fn of(report: &SpeedReport) -> Vec<Finding> {
    let mut found = vec![limit(report)];
    let failed: u64 = report.steps.iter().map(SpeedStep::failed).sum();
    if failed > 0 && report.limit != SpeedLimit::Service && report.best().is_some() {
        let answers: u64 = report.steps.iter().map(|step| step.answers).sum();
        found.push(Finding::warning(
            CheckId::Speed,
            format!("{failed} of {} requests failed: {}", answers + failed, failures(&report.steps)),
            "downloads repeat such requests; if it is always so, look for a proxy or firewall in between",
        ));
    }
    if let Some(why) = &report.disk_skipped {
        let what = format!("the speed of the disk is not known: {why}");
        found.push(Finding::skipped(CheckId::Speed, what));
    }
    found
}

fn limit(report: &SpeedReport) -> Finding {
    if let (RampEnd::Refused, Some(error)) = (report.ended, &report.error) {
        return Finding::of_error(CheckId::Speed, error);
    }
    let Some(best) = report.best() else { return nothing_arrived(report) };
    let reached = reached(best);
    match (report.limit, &report.disk) {
        (SpeedLimit::Disk, Some(disk)) => of_disk(&reached, disk),
        (SpeedLimit::Cpu, _) => of_cpu(report, best),
        (SpeedLimit::Service, _) => of_service(report, best),
        (SpeedLimit::Connections, _) => of_connections(report, best),
        (SpeedLimit::Nic | SpeedLimit::Network, _) => of_network(report, best),
        (SpeedLimit::SmallObjects, _) => {
            let largest = size_text(report.largest_object);
            let what = format!(
                "{reached}, but the largest object has {largest}: too small to say what limits; \
                 measure with a model that has larger ones"
            );
            Finding::skipped(CheckId::Speed, what)
        }
        (SpeedLimit::Disk | SpeedLimit::Unknown, _) => unknown(report, &reached),
    }
}

/// `3.1 GB/s with 64 connections`
fn reached(step: &SpeedStep) -> String {
    format!("{} with {}", rate_text(step.bytes_per_second), counted(step.connections, "connection"))
}

fn of_disk(reached: &str, disk: &DiskSpeed) -> Finding {
    let (directory, rate) = (disk.directory.display(), rate_text(disk.bytes_per_second));
    Finding::warning(
        CheckId::Speed,
        format!("{reached}; the disk of {directory} writes {rate}: it limits"),
        "put the cache on local NVMe drives as RAID 0, or on a volume of a higher performance \
         level, see docs/nodes.md",
    )
}

fn of_cpu(report: &SpeedReport, best: &SpeedStep) -> Finding {
    let cpus = |millis: u64| format!("{}.{}", millis / 1000, millis % 1000 / 100);
    let ceiling = cpu_ceiling(report, best).filter(|ceiling| *ceiling < best.bytes_per_second);
    let enough = ceiling.map_or_else(String::new, |ceiling| {
        format!("; with checksums and writes they are enough for {}", rate_text(ceiling))
    });
    let what = format!(
        "{}; the CPUs limit: {} of {} were in use for it, and the machine was busy to {} %{enough}",
        reached(best),
        cpus(best.cpu.process_millicpus),
        cpus(report.allowed_millicpus),
        best.cpu.machine_percent,
    );
    let fix = if report.allowed_millicpus < report.machine_millicpus {
        "raise the CPU limit of the driver's container, or leave it out"
    } else {
        "give the node more CPUs, or move other work away from it"
    };
    Finding::warning(CheckId::Speed, what, fix)
}

fn of_service(report: &SpeedReport, best: &SpeedStep) -> Finding {
    let reached = reached(best);
    if let Some(failing) = report.steps.iter().find(|step| step.is_failing()) {
        let (failed, steps) = (failing.failed(), std::slice::from_ref(failing));
        let what = format!(
            "{reached}; with {} {failed} of {} requests failed ({}): the service or a proxy limits",
            counted(failing.connections, "connection"),
            failing.answers + failed,
            failures(steps),
        );
        let fix = "leave download.concurrency at auto, which opens fewer connections then; if it \
                   is always so, ask the operator of the proxy, or Oracle for a higher limit";
        return Finding::warning(CheckId::Speed, what, fix);
    }
    let last = report.steps.last().unwrap_or(best);
    let what = format!(
        "{reached}, but only {} with {}: the service or the path slows down",
        rate_text(last.bytes_per_second),
        last.connections,
    );
    let fix = format!(
        "leave download.concurrency at auto, or set it to {}, with which it was fastest",
        best.connections
    );
    Finding::warning(CheckId::Speed, what, fix)
}

fn of_connections(report: &SpeedReport, best: &SpeedStep) -> Finding {
    let each = best.bytes_per_second / u64::try_from(best.connections.max(1)).unwrap_or(u64::MAX);
    let latency = best.first_byte_millis.or(report.steps[0].first_byte_millis);
    let latency =
        latency.map_or_else(String::new, |millis| format!(", first bytes after {millis} ms"));
    let what = format!(
        "{}, and more connections would give more: about {} for each{latency}",
        reached(best),
        rate_text(each),
    );
    let fix = if best.connections >= DRIVERS_MOST {
        "read from a bucket of the node's region, through a service gateway: the driver opens no \
         more connections than that"
    } else {
        "leave download.concurrency at auto, which opens up to 256; this measurement ended before"
    };
    Finding::warning(CheckId::Speed, what, fix)
}

fn of_network(report: &SpeedReport, best: &SpeedStep) -> Finding {
    let last = report.steps.last().map_or(best.connections, |last| last.connections);
    let reached = reached(best);
    let nic = report.nic.as_ref().map(|nic| {
        let gigabits = nic.megabits_per_second / 1000;
        let percent = best.bytes_per_second * 100 / nic.bytes_per_second().max(1);
        (format!("{gigabits} Gbit/s of {}", nic.name), percent)
    });
    match (report.limit, nic) {
        (SpeedLimit::Nic, Some((nic, percent))) => Finding::fine(
            CheckId::Speed,
            format!("{reached}, {percent} % of the {nic}: the network interface limits"),
        ),
        (_, Some((nic, percent))) => Finding::warning(
            CheckId::Speed,
            format!(
                "{reached} and no more with {last}, {percent} % of the {nic}: the network or the \
                 service limits"
            ),
            "read from a bucket of the node's region, through a service gateway instead of a NAT \
             gateway or proxy",
        ),
        (_, None) => Finding::fine(
            CheckId::Speed,
            format!(
                "{reached} and no more with {last}: the network or the service limits; compare it \
                 with the network bandwidth of the node's shape"
            ),
        ),
    }
}

fn unknown(report: &SpeedReport, reached: &str) -> Finding {
    let why = match report.ended {
        RampEnd::Interrupted => "interrupted before it was known what limits",
        RampEnd::Traffic => "the limit of traffic was reached before it was known what limits",
        _ => "too few steps to say what limits",
    };
    Finding::skipped(CheckId::Speed, format!("{reached}; {why}"))
}

fn nothing_arrived(report: &SpeedReport) -> Finding {
    match (report.ended, &report.error) {
        (RampEnd::Empty, _) => Finding::skipped(
            CheckId::Speed,
            "the speed is not known: the model has no bytes to read",
        ),
        (RampEnd::Interrupted, _) => Finding::skipped(
            CheckId::Speed,
            "the speed is not known: interrupted before a byte arrived",
        ),
        (_, Some(error)) => Finding::of_error(CheckId::Speed, error),
        (_, None) => Finding::fault(
            CheckId::Speed,
            "no byte of an object arrived within 10 s",
            "look for a firewall or proxy between the node and Object Storage",
        )
        .meaning(ErrorKind::Unavailable),
    }
}

/// `429 (12), connection (3)`
fn failures(steps: &[SpeedStep]) -> String {
    let mut all = std::collections::BTreeMap::<&str, u64>::new();
    for (kind, count) in steps.iter().flat_map(|step| &step.failures) {
        *all.entry(kind).or_default() += count;
    }
    let parts: Vec<String> = all.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
    parts.join(", ")
}
