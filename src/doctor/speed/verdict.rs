//! What limits, judged from what was seen.

use super::report::{RampEnd, SpeedLimit, SpeedReport, SpeedStep};

/// Below this size a request is more latency than bytes.
const SMALL_OBJECT: u64 = 4 << 20;

/// CPUs are busy beyond this.
const BUSY_PERCENT: u64 = 85;

/// A machine that is busy slows this process down only if it needs so much of it; with less, it
/// gets its turn whenever it has something to do.
const OWN_PART_PERCENT: u64 = 30;

/// A rate below so many percent of another one is really less.
const LESS_PERCENT: u64 = 90;

/// A rate that falls to less than that with more connections falls because of them.
const FALL_PERCENT: u64 = 85;

/// An interface is at its limit from here on: its speed includes what is no content.
const NIC_PERCENT: u64 = 80;

/// What keeps models from arriving faster: the least of disk, CPU and network, and if it is the
/// network, what of it.
pub(super) fn judge(seen: &SpeedReport) -> SpeedLimit {
    let (Some(best), Some(last)) = (seen.best(), seen.steps.last()) else {
        return SpeedLimit::Unknown;
    };
    if seen.ended == RampEnd::Refused {
        return SpeedLimit::Unknown;
    }
    if seen.largest_object < SMALL_OBJECT {
        return SpeedLimit::SmallObjects;
    }
    let cpu = cpu_ceiling(seen, best);
    let is_less = |rate: u64, than: u64| rate < than / 100 * LESS_PERCENT;
    if let Some(disk) = &seen.disk
        && is_less(disk.bytes_per_second, best.bytes_per_second)
        && cpu.is_none_or(|cpu| disk.bytes_per_second <= cpu)
    {
        return SpeedLimit::Disk;
    }
    if seen.steps.iter().any(SpeedStep::is_failing) {
        return SpeedLimit::Service;
    }
    let needs_cpu = |step: &SpeedStep| is_busy(seen, step);
    if needs_cpu(best)
        || needs_cpu(last)
        || cpu.is_some_and(|cpu| is_less(cpu, best.bytes_per_second))
    {
        return SpeedLimit::Cpu;
    }
    if last.bytes_per_second < best.bytes_per_second / 100 * FALL_PERCENT {
        return SpeedLimit::Service;
    }
    match () {
        () if is_at_nic(seen, best) => SpeedLimit::Nic,
        () if seen.steps.len() < 2 => SpeedLimit::Unknown,
        () if seen.still_grew() && seen.ended == RampEnd::Interrupted => SpeedLimit::Unknown,
        () if seen.still_grew() => SpeedLimit::Connections,
        () => SpeedLimit::Network,
    }
}

/// Bytes in a second for which the CPUs suffice: each one is received as in this step, gets a
/// checksum, and is written. `None` if the step used too little to say.
pub(super) fn cpu_ceiling(seen: &SpeedReport, step: &SpeedStep) -> Option<u64> {
    let of_rate = |millicpus: u64, rate: u64| {
        u128::from(millicpus) * 1_000_000 * (1 << 20) / u128::from(rate.max(1))
    };
    let receiving = of_rate(step.cpu.process_millicpus, step.bytes_per_second);
    let hashing = seen.checksum_bytes_per_second.map_or(0, |rate| of_rate(1000, rate));
    let writing = seen.disk.as_ref().map_or(0, |disk| u128::from(disk.cpu_nanos_per_mib));
    let nanos_per_mib = (receiving > 0).then_some(receiving + hashing + writing)?;
    let nanos = u128::from(seen.allowed_millicpus) * 1_000_000;
    u64::try_from(nanos * (1 << 20) / nanos_per_mib).ok()
}

/// Whether this process needs more CPU than it gets.
fn is_busy(seen: &SpeedReport, step: &SpeedStep) -> bool {
    let own_part = step.cpu.process_millicpus * 100 / seen.machine_millicpus.max(1);
    step.cpu.process_percent > BUSY_PERCENT
        || step.cpu.machine_percent > BUSY_PERCENT && own_part >= OWN_PART_PERCENT
}

fn is_at_nic(seen: &SpeedReport, best: &SpeedStep) -> bool {
    let nic = seen.nic.as_ref();
    nic.is_some_and(|nic| best.bytes_per_second >= nic.bytes_per_second() / 100 * NIC_PERCENT)
}
