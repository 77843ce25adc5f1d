//! What a measurement found. As JSON it is a part of the report of `doctor`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::error::Error;

/// A step is a gain if it has so many percent of the best rate before it.
const GAIN_PERCENT: u64 = 110;

/// A step fails if at least so many requests do, and so many percent of all.
const FAILURES: u64 = 3;
const FAILED_PERCENT: u64 = 5;

/// The CPUs in use during a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuUse {
    /// Thousandths of a CPU that this process used.
    pub process_millicpus: u64,
    /// The same in percent of what it may use.
    pub process_percent: u64,
    /// Percent of the machine's CPUs that were busy, with whatever.
    pub machine_percent: u64,
}

/// What one number of connections gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpeedStep {
    /// Requests at once, each on a connection of its own.
    pub connections: usize,
    /// How long was measured, in milliseconds.
    pub millis: u64,
    /// Bytes that arrived in this time, of all connections together.
    pub bytes: u64,
    /// The same in a second.
    pub bytes_per_second: u64,
    /// The median time from a request to its first byte, of the requests whose first byte arrived
    /// in this step, in milliseconds; `None` if there were none.
    pub first_byte_millis: Option<u64>,
    /// Requests whose first byte arrived in this step.
    pub answers: u64,
    /// Requests that failed in this step, by HTTP status, or as `connection` if there was no
    /// answer.
    pub failures: BTreeMap<String, u64>,
    /// The CPUs in use.
    pub cpu: CpuUse,
}

impl SpeedStep {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Whether so many requests failed that more connections would be of no use.
    pub fn is_failing(&self) -> bool {
        let failed = self.failed();
        failed >= FAILURES && failed * 100 >= FAILED_PERCENT * (self.answers + failed)
    }
}

/// Why the number of connections was not raised any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RampEnd {
    /// Two steps in a row gained less than 10 %.
    Settled,
    /// Requests failed, and would with more connections.
    Failing,
    /// The largest number was reached.
    MostConnections,
    /// As many bytes arrived as may.
    Traffic,
    /// The time was over.
    Time,
    /// The caller cancelled it.
    Interrupted,
    /// The service refused a request: the same one would be refused again.
    Refused,
    /// No byte arrived.
    Silent,
    /// There are no bytes to read.
    Empty,
}

/// What keeps models from arriving faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpeedLimit {
    /// The disk of the cache writes less than arrives.
    Disk,
    /// The CPUs that this process may use.
    Cpu,
    /// The service throttles, resets, or slows down with more connections.
    Service,
    /// Each connection is slow, and more of them give more.
    Connections,
    /// The network interface is at its speed.
    Nic,
    /// The sum does not grow with more connections, and nothing on this machine is busy.
    Network,
    /// The objects are too small to say.
    SmallObjects,
    /// Too little was seen.
    Unknown,
}

/// How fast the disk of a directory writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSpeed {
    /// The directory.
    #[serde(serialize_with = "as_shown")]
    pub directory: PathBuf,
    /// Bytes in a second, until they are on the disk.
    pub bytes_per_second: u64,
    /// CPU time for it, in nanoseconds per MiB.
    pub cpu_nanos_per_mib: u64,
}

/// A path as text, whatever its bytes are.
fn as_shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The speed of the network interface, by what it or the data sheet says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NicSpeed {
    /// The interface, or the shape of the instance.
    pub name: String,
    /// Mbit in a second.
    pub megabits_per_second: u64,
}

impl NicSpeed {
    /// Bytes in a second.
    pub fn bytes_per_second(&self) -> u64 {
        self.megabits_per_second.saturating_mul(125_000)
    }
}

/// How fast objects arrive, and what limits them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpeedReport {
    /// One for each number of connections, in ascending order.
    pub steps: Vec<SpeedStep>,
    /// Why there are no more.
    pub ended: RampEnd,
    /// What limits.
    pub limit: SpeedLimit,
    /// Size of the largest object in bytes.
    pub largest_object: u64,
    /// Thousandths of a CPU that this process may use.
    pub allowed_millicpus: u64,
    /// Thousandths of all CPUs of the machine.
    pub machine_millicpus: u64,
    /// Bytes in a second whose CRC-32C one CPU computes.
    pub checksum_bytes_per_second: Option<u64>,
    /// The disk of the cache, if it was measured.
    pub disk: Option<DiskSpeed>,
    /// Why it was not, where it was to be.
    pub disk_skipped: Option<String>,
    /// The network interface, where its speed is known.
    pub nic: Option<NicSpeed>,
    /// The last error of a request.
    #[serde(skip)]
    pub error: Option<Error>,
}

impl SpeedReport {
    /// The fastest step, without those whose requests failed if there are others.
    pub fn best(&self) -> Option<&SpeedStep> {
        let arrived = || self.steps.iter().filter(|step| step.bytes > 0);
        fastest(arrived().filter(|step| !step.is_failing())).or_else(|| fastest(arrived()))
    }

    /// Whether the last step was a gain over those before it.
    pub fn still_grew(&self) -> bool {
        self.steps.len() > 1 && steps_without_gain(&self.steps) == 0
    }
}

/// The fastest step; of equals the one with fewer connections.
fn fastest<'a>(steps: impl Iterator<Item = &'a SpeedStep>) -> Option<&'a SpeedStep> {
    steps.reduce(|best, step| match step.bytes_per_second > best.bytes_per_second {
        true => step,
        false => best,
    })
}

/// How many steps at the end gained nothing over the best one before them.
pub(super) fn steps_without_gain(steps: &[SpeedStep]) -> usize {
    let (mut best, mut without) = (0, 0);
    for step in steps {
        let is_gain = step.bytes_per_second * 100 >= best * GAIN_PERCENT;
        without = if is_gain && step.bytes_per_second > 0 { 0 } else { without + 1 };
        best = best.max(step.bytes_per_second);
    }
    without
}

/// `3.1 GB/s`, `480 MB/s`: decimal, as in the data sheets of networks and volumes.
pub fn rate_text(bytes_per_second: u64) -> String {
    let (unit, scale) = match bytes_per_second {
        1_000_000_000.. => ("GB/s", 1_000_000_000),
        1_000_000.. => ("MB/s", 1_000_000),
        _ => ("kB/s", 1000),
    };
    let tenths = bytes_per_second / (scale / 10);
    match tenths {
        0..100 => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        _ => format!("{} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(rates: &[u64]) -> Vec<SpeedStep> {
        let step = |rate: &u64| SpeedStep { bytes_per_second: *rate, ..SpeedStep::default() };
        rates.iter().map(step).collect()
    }

    #[test]
    fn gains_are_counted_against_the_best_step_before() {
        for (rates, without) in [
            (&[100][..], 0),
            (&[100, 200, 400], 0),
            (&[100, 200, 215], 1),
            (&[100, 200, 215, 219], 2),
            (&[100, 200, 150, 210], 2),
            (&[100, 200, 150, 300], 0),
            (&[0], 1),
        ] {
            assert_eq!(steps_without_gain(&steps(rates)), without, "{rates:?}");
        }
    }

    #[test]
    fn one_failure_among_many_answers_is_no_failing_step() {
        let step = |failed: u64, answers| SpeedStep {
            failures: BTreeMap::from([("503".to_owned(), failed)]),
            answers,
            ..SpeedStep::default()
        };
        assert!(!step(2, 0).is_failing() && !step(3, 100).is_failing());
        assert!(step(3, 0).is_failing() && step(10, 100).is_failing());
    }

    #[test]
    fn rates_read_as_data_sheets_write_them() {
        for (rate, text) in [
            (3_149_000_000, "3.1 GB/s"),
            (12_500_000_000, "12 GB/s"),
            (480_000_000, "480 MB/s"),
            (1_500_000, "1.5 MB/s"),
            (900, "0.9 kB/s"),
        ] {
            assert_eq!(rate_text(rate), text);
        }
    }
}
