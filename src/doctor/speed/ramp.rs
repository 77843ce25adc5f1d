//! More and more connections, until they are of no use.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cpu::{CpuClock, CpuCount};
use super::readers::Readers;
use super::report::{RampEnd, SpeedStep, steps_without_gain};

/// Steps without a gain after which the rate is known: the second one shows whether it only
/// stays, or falls.
const STEPS_WITHOUT_GAIN: usize = 2;

/// How long the first byte of all may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The limits of a ramp.
#[derive(Debug, Clone, Copy)]
pub(super) struct RampLimits {
    /// How long each number of connections is measured.
    pub(super) step: Duration,
    /// The most connections.
    pub(super) connections: usize,
    /// No step begins that would end later.
    pub(super) until: Instant,
}

/// Measures 1, 2, 4, … connections, and reports each step.
pub(super) async fn run(
    readers: &mut Readers,
    limits: RampLimits,
    cpus: CpuCount,
    cancelled: &CancellationToken,
    progress: impl Fn(&SpeedStep),
) -> (Vec<SpeedStep>, RampEnd) {
    let (mut steps, mut connections) = (Vec::new(), 1);
    loop {
        readers.grow_to(connections);
        let first = steps.is_empty();
        let step = tokio::select! {
            biased;
            () = cancelled.cancelled() => return (steps, RampEnd::Interrupted),
            end = readers.ended() => return (steps, end),
            step = measure(readers, connections, limits.step, first, cpus) => step,
        };
        progress(&step);
        steps.push(step);
        if let Some(end) = end_after(&steps, limits) {
            return (steps, end);
        }
        connections = (connections * 2).min(limits.connections);
    }
}

/// Lets the connections begin, then counts for as long as a step takes.
async fn measure(
    readers: &Readers,
    connections: usize,
    time: Duration,
    first: bool,
    cpus: CpuCount,
) -> SpeedStep {
    let patience = if first { PATIENCE.max(time) } else { time };
    let begun = tokio::time::timeout(patience, readers.begun());
    // Connections need a moment to get as fast as they will be.
    let _ = tokio::join!(begun, tokio::time::sleep(time / 4));
    let (clock, started, before) = (CpuClock::now(), Instant::now(), readers.bytes());
    tokio::time::sleep(time).await;
    let (bytes, elapsed) = (readers.bytes() - before, started.elapsed());
    let cpu = clock.elapsed(cpus);
    // Those of the beginning are this step's, too: there are no others if a request takes longer
    // than a step.
    let mut counts = readers.take_counts();
    counts.first_bytes.sort_unstable();
    let median = counts.first_bytes.get(counts.first_bytes.len() / 2);
    let per_second = u128::from(bytes) * 1_000_000 / elapsed.as_micros().max(1);
    SpeedStep {
        connections,
        millis: whole(elapsed.as_millis()),
        bytes,
        bytes_per_second: whole(per_second),
        first_byte_millis: median.map(|median| whole(median.as_millis())),
        answers: counts.first_bytes.len() as u64,
        failures: counts.failures,
        cpu,
    }
}

fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Why no more connections are tried.
fn end_after(steps: &[SpeedStep], limits: RampLimits) -> Option<RampEnd> {
    let last = steps.last()?;
    if last.is_failing() {
        Some(RampEnd::Failing)
    } else if steps.iter().all(|step| step.bytes == 0) {
        Some(RampEnd::Silent)
    } else if steps_without_gain(steps) >= STEPS_WITHOUT_GAIN {
        Some(RampEnd::Settled)
    } else if last.connections >= limits.connections {
        Some(RampEnd::MostConnections)
    } else {
        (Instant::now() + limits.step > limits.until).then_some(RampEnd::Time)
    }
}
