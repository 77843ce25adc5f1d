//! How fast objects arrive, and what limits them.
//!
//! Ranges of the model's largest objects are read as downloads read them and thrown away, with
//! 1, 2, 4, … connections, until more of them are of no use. What the CPU needs for checksums and
//! how fast the disk of the cache writes is measured after that, so that nothing disturbs the other. The
//! smallest of them limits. No more is kept than the chunks under way.

mod checksum;
mod cpu;
mod disk;
mod findings;
mod nic;
mod ramp;
mod readers;
mod report;
mod verdict;
#[cfg(test)]
mod verdict_tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CheckId, Finding};
use crate::blocking::blocking;
use crate::source::ObjectSource;
use cpu::CpuCount;
use ramp::RampLimits;
pub use readers::SpeedObject;
use readers::{Readers, ranges_of};
pub use report::{
    CpuUse, DiskSpeed, NicSpeed, RampEnd, SpeedLimit, SpeedReport, SpeedStep, rate_text,
};

/// What a measurement may take, and what it looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeedOptions {
    /// How long each number of connections is measured.
    pub step: Duration,
    /// The most connections.
    pub connections: usize,
    /// Bytes that may arrive in all; the measurement ends with them.
    pub traffic: u64,
    /// How long all steps may take.
    pub ramp: Duration,
    /// The directory whose disk is measured too.
    pub directory: Option<PathBuf>,
    /// How long it is written to; the last sync comes after that.
    pub writing: Duration,
    /// The shape of the instance, which says how fast its network is.
    pub shape: Option<String>,
}

impl Default for SpeedOptions {
    /// As many connections as downloads open; half a minute in all, and 64 GiB at most.
    fn default() -> Self {
        Self {
            step: Duration::from_millis(1600),
            connections: 256,
            traffic: 64 << 30,
            ramp: Duration::from_secs(22),
            directory: None,
            writing: Duration::from_secs(4),
            shape: None,
        }
    }
}

/// Measures how fast these objects arrive, and reports each step. Never fails as a whole: the
/// report has what was seen until an error, or until it was cancelled. Dropping the future ends
/// it, too.
pub async fn measure(
    source: Arc<dyn ObjectSource>,
    objects: &[SpeedObject],
    options: &SpeedOptions,
    cancelled: &CancellationToken,
    progress: impl Fn(&SpeedStep),
) -> SpeedReport {
    let cpus = CpuCount::detect();
    let mut report = SpeedReport {
        steps: Vec::new(),
        ended: RampEnd::Empty,
        limit: SpeedLimit::Unknown,
        largest_object: objects.iter().map(|object| object.size).max().unwrap_or(0),
        allowed_millicpus: cpus.allowed,
        machine_millicpus: cpus.machine,
        checksum_bytes_per_second: None,
        disk: None,
        disk_skipped: None,
        nic: nic::speed(options.shape.as_deref()),
        error: None,
    };
    let ranges = ranges_of(objects);
    if ranges.is_empty() {
        return report;
    }
    let mut readers = Readers::new(source, ranges, options.traffic);
    let limits = RampLimits {
        step: options.step,
        connections: options.connections.max(1),
        until: Instant::now() + options.ramp,
    };
    (report.steps, report.ended) = ramp::run(&mut readers, limits, cpus, cancelled, progress).await;
    report.error = readers.stop().await;
    if report.best().is_some() && report.ended != RampEnd::Refused {
        measure_machine(&mut report, options, cancelled).await;
    }
    report.limit = verdict::judge(&report);
    report
}

/// Adds the speed of checksums and of the disk, one after the other.
async fn measure_machine(
    report: &mut SpeedReport,
    options: &SpeedOptions,
    cancelled: &CancellationToken,
) {
    if cancelled.is_cancelled() {
        return;
    }
    report.checksum_bytes_per_second = blocking(|| Ok(checksum::measure())).await.ok();
    let Some(directory) = options.directory.clone() else { return };
    let (time, stop) = (options.writing, cancelled.child_token());
    // Ends the writers if this future is dropped.
    let _stops = stop.clone().drop_guard();
    match blocking(move || disk::measure(&directory, time, &stop)).await {
        Ok(speed) => report.disk = Some(speed),
        Err(error) => report.disk_skipped = Some(error.message().to_owned()),
    }
}

/// The finding where there is nothing to measure with.
pub fn unmeasured() -> Vec<Finding> {
    vec![Finding::skipped(CheckId::Speed, "no object can be read")]
}

impl SpeedReport {
    /// The findings, what limits first.
    pub fn findings(&self) -> Vec<Finding> {
        findings::of(self)
    }
}
