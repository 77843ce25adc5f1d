//! The CPUs that this process may use, and how many are in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::report::CpuUse;

/// The CPUs of the machine and of this process, in thousandths of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuCount {
    pub(super) allowed: u64,
    pub(super) machine: u64,
}

impl CpuCount {
    /// Reads affinity and quotas. Blocks for a moment.
    pub(super) fn detect() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let machine = cpus_of(&stat).max(1) * 1000;
        // Whole CPUs, by affinity and by the quota, of which it is the lesser one.
        let whole = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let whole = u64::try_from(whole).unwrap_or(1);
        let allowed = match quota(Path::new("/")) {
            Some(quota) if (quota / 1000).max(1) == whole => quota,
            _ => whole * 1000,
        };
        Self { allowed: allowed.max(1), machine }
    }
}

/// What has been used up to an instant.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuClock {
    at: Instant,
    process: Duration,
    ticks: CpuTicks,
}

/// Ticks of all CPUs of the machine since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CpuTicks {
    busy: u64,
    all: u64,
}

impl CpuClock {
    /// Reads the clocks. Blocks for a moment.
    pub(super) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { at: Instant::now(), process: of_process(), ticks: ticks_of(&stat) }
    }

    /// What has been used since then.
    pub(super) fn elapsed(&self, cpus: CpuCount) -> CpuUse {
        let now = Self::now();
        let micros = (now.at - self.at).as_micros().max(1);
        let process = (now.process.saturating_sub(self.process)).as_micros() * 1000 / micros;
        let process = u64::try_from(process).unwrap_or(u64::MAX);
        let all = now.ticks.all.saturating_sub(self.ticks.all).max(1);
        CpuUse {
            process_millicpus: process,
            process_percent: process.saturating_mul(100) / cpus.allowed,
            machine_percent: now.ticks.busy.saturating_sub(self.ticks.busy) * 100 / all,
        }
    }
}

/// CPU time of all threads of this process.
pub(super) fn of_process() -> Duration {
    let time =
        |time: TimeVal| Duration::from_micros(time.num_microseconds().try_into().unwrap_or(0));
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; what
/// guests use is in the first two.
fn ticks_of(stat: &str) -> CpuTicks {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().take(8).map(|ticks| ticks.parse().unwrap_or(0)).collect();
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    CpuTicks { busy: all - idle, all }
}

/// The lines `cpu0`, `cpu1`, …
fn cpus_of(stat: &str) -> u64 {
    let is_one = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    u64::try_from(stat.lines().filter(is_one).count()).unwrap_or(1)
}

/// The least quota of this process's control group and of those above it, in thousandths of a
/// CPU. In a container the root of the group is what is mounted.
fn quota(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let two = directories(&root.join("sys/fs/cgroup"), &groups, "");
    let one = directories(&root.join("sys/fs/cgroup/cpu"), &groups, "cpu");
    let two = two.iter().filter_map(|group| quota_of(&read(&group.join("cpu.max"))?));
    let one = one.iter().filter_map(|group| {
        let (quota, period) = ("cpu.cfs_quota_us", "cpu.cfs_period_us");
        quota_of(&format!("{} {}", read(&group.join(quota))?, read(&group.join(period))?))
    });
    two.chain(one).min()
}

/// The directories of the process's group and of those above it; no controller in version 2.
fn directories(mounted: &Path, groups: &str, controller: &str) -> Vec<PathBuf> {
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|one| one == controller).then_some(path)
    });
    let own = mounted.join(own.unwrap_or_default().trim_start_matches('/'));
    own.ancestors().take_while(|group| group.starts_with(mounted)).map(Path::to_owned).collect()
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `150000 100000` are 1.5 CPUs; `max` or `-1` for the first is no quota.
fn quota_of(text: &str) -> Option<u64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    Some(quota.saturating_mul(1000) / period.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 800 40 5 5 0 90 0\ncpu0 50 0 25 400 20 2 3 0 45 0\n\
                        cpu1 50 0 25 400 20 3 2 0 45 0\nintr 5\n";

    #[test]
    fn ticks_without_idle_and_waiting_for_disks_are_busy() {
        assert_eq!(ticks_of(STAT), CpuTicks { busy: 160, all: 1000 });
        assert_eq!(cpus_of(STAT), 2);
        assert_eq!(ticks_of(""), CpuTicks::default());
    }

    #[test]
    fn the_least_quota_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(quota(root.path()), None);
        put("proc/self/cgroup", "0::/kubepods/pod1/c\n");
        put("sys/fs/cgroup/kubepods/pod1/c/cpu.max", "max 100000\n");
        assert_eq!(quota(root.path()), None);
        put("sys/fs/cgroup/kubepods/pod1/cpu.max", "150000 100000\n");
        assert_eq!(quota(root.path()), Some(1500));
        put("proc/self/cgroup", "4:cpu,cpuacct:/pod2\n");
        put("sys/fs/cgroup/cpu/pod2/cpu.cfs_quota_us", "50000\n");
        put("sys/fs/cgroup/cpu/pod2/cpu.cfs_period_us", "100000\n");
        put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
        put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota(root.path()), Some(500));
    }

    #[test]
    fn a_thread_that_computes_is_seen() {
        let (cpus, clock, started) = (CpuCount::detect(), CpuClock::now(), Instant::now());
        while started.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(started);
        }
        let used = clock.elapsed(cpus);
        assert!(used.process_millicpus > 50, "{used:?} of {cpus:?}");
        assert!(cpus.allowed >= 1 && cpus.machine >= 1000, "{cpus:?}");
    }
}
