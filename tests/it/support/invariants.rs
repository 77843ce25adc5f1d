//! The invariants of a driver that is ready, whatever happened to it before: one
//! check for all tests that kill it, cut its power or fill its disk.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_model_csi::csi::proto::ProbeRequest;
use serde_json::Value;

use super::driver::Driver;
use super::kubelet::{Volume, connect_identity};
use super::loopfs::mounts_below;
use super::pods::{Model, Pod};

/// The kind of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A pod reads other bytes than those that were uploaded.
    WrongBytes,
    /// Something of a mounted volume is gone.
    Vanished,
    /// The driver does not serve a request.
    Refused,
    /// An extra mount, or a missing one.
    Mount,
    /// An extra lease, or a missing one.
    Lease,
    /// A file that nothing needs, or space that nothing uses.
    Space,
    /// Too many open files.
    Descriptor,
}

#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

/// Descriptors of an idle driver.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Descriptors {
    files: usize,
    sockets: usize,
    others: usize,
}

/// The totals of all checks, and the violations found.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    checks: usize,
    volumes: usize,
    bytes: u64,
    pub(crate) violations: Vec<Violation>,
}

/// Pods that are started for the check and stopped by it.
const FIRST_POD: u64 = 900_000;

/// How long a publish may take, with all its tries.
const PUBLISH: Duration = Duration::from_secs(60);

/// How long a driver that is ready may take to clean up.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// The connections to Object Storage that the driver keeps for the next request.
const IDLE_CONNECTIONS: usize = 64;

/// Checks a driver that was just started, or is idle.
///
/// `running` are the pods that kubelet believes to be published, and no others
/// are; `models` are published and unpublished once more. What is compared:
/// all bytes that pods see or hold open, mounts with leases, leftovers in the
/// cache, and open files with those of `idle`.
pub(crate) async fn check_invariants(
    driver: &Driver,
    running: &[Pod],
    models: &[&Model],
    idle: Descriptors,
    tally: &mut Tally,
) {
    let mut found = Vec::new();
    if !is_ready(driver).await {
        found.push(violation(Kind::Refused, "the driver is not ready"));
    }
    for pod in running {
        found.extend(pod.look());
    }
    settled(&mut found, Kind::Space, async || trash(driver)).await;
    for (pod, model) in (FIRST_POD..).zip(models) {
        let volume = model.volume(&driver.kubelet(), pod);
        if tokio::time::timeout(PUBLISH, volume.mount()).await.is_err() {
            let last = volume.calls().pop().map_or_else(String::new, |call| call.message);
            found.push(violation(Kind::Refused, format!("not published in {PUBLISH:?}: {last}")));
            continue;
        }
        let pod = Pod::start(volume, model);
        found.extend(pod.look());
        found.extend(unpublished(pod.end()).await);
    }
    found.extend(mounts_and_leases(driver, running));
    found.extend(leftovers(driver));
    settled(&mut found, Kind::Descriptor, async || idle.exceeded_by(driver)).await;
    tally.checks += 1;
    tally.volumes += running.len() + models.len();
    let looked_at = running.iter().map(|pod| &pod.model).chain(models.iter().copied());
    tally.bytes += looked_at.map(Model::bytes).sum::<u64>();
    tally.violations.extend(found);
}

impl Tally {
    /// How many violations there are of each kind.
    pub(crate) fn by_kind(&self) -> [(Kind, usize); 7] {
        const KINDS: [Kind; 7] = [
            Kind::WrongBytes,
            Kind::Vanished,
            Kind::Refused,
            Kind::Mount,
            Kind::Lease,
            Kind::Space,
            Kind::Descriptor,
        ];
        KINDS.map(|kind| (kind, self.violations.iter().filter(|one| one.kind == kind).count()))
    }

    /// Fails if there were violations, and lists them; `when` says after which event.
    #[track_caller]
    pub(crate) fn assert_clean(&self, when: &str) {
        let all: Vec<String> = self.violations.iter().map(ToString::to_string).collect();
        assert!(all.is_empty(), "{when}:\n{}", all.join("\n"));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checks, volumes, bytes, violations } = self;
        let (mib, violations) = (bytes >> 20, violations.len());
        write!(
            out,
            "{checks} checks, {volumes} volumes, {mib} MiB compared, {violations} violations"
        )
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {}", self.kind, self.what)
    }
}

fn violation(kind: Kind, what: impl Into<String>) -> Violation {
    Violation { kind, what: what.into() }
}

async fn is_ready(driver: &Driver) -> bool {
    let Ok(mut identity) = connect_identity(&driver.setup.socket).await else { return false };
    let probe = identity.probe(ProbeRequest {}).await;
    probe.is_ok_and(|answer| answer.into_inner().ready.unwrap_or(true))
}

/// The leftovers of an unpublished volume.
async fn unpublished(volume: Volume) -> Vec<Violation> {
    let target = volume.target();
    let mut found = Vec::new();
    if let Err(status) = volume.unpublish().await {
        found.push(violation(Kind::Refused, format!("unpublish: {status}")));
    }
    if target.exists() {
        found.push(violation(Kind::Mount, format!("{} is left", target.display())));
    }
    found
}

/// Waits until there are no violations; returns those that stay.
async fn settled(found: &mut Vec<Violation>, kind: Kind, look: impl AsyncFn() -> Option<String>) {
    let looking = async {
        while look().await.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(CLEAN_UP, looking).await.is_err()
        && let Some(what) = look().await
    {
        found.push(violation(kind, what));
    }
}

fn trash(driver: &Driver) -> Option<String> {
    let names = driver.in_cache("trash");
    (!names.is_empty()).then(|| format!("the trash is not emptied: {names:?}"))
}

/// Each running pod has one mount and one lease, and there are no others.
fn mounts_and_leases(driver: &Driver, running: &[Pod]) -> Vec<Violation> {
    let mut expected: Vec<PathBuf> = running.iter().map(|pod| pod.volume.target()).collect();
    expected.sort();
    let mut mounts = mounts_below(&driver.setup.scratch.join("kubelet"));
    mounts.sort();
    let leases = driver.setup.cache.join("leases");
    let mut leased: Vec<PathBuf> =
        driver.in_cache("leases").iter().map(|name| target_of(&leases.join(name))).collect();
    leased.sort();
    let mut found = Vec::new();
    if mounts != expected {
        found.push(violation(
            Kind::Mount,
            format!("{mounts:?} are mounted, and {expected:?} published"),
        ));
    }
    if leased != expected {
        found.push(violation(
            Kind::Lease,
            format!("{leased:?} are leased, and {expected:?} published"),
        ));
    }
    found
}

/// The target of a lease, or the path of the file where it names none.
fn target_of(lease: &Path) -> PathBuf {
    let json = fs::read(lease).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let target = json.and_then(|json| Some(PathBuf::from(json.get("target")?.as_str()?)));
    target.unwrap_or_else(|| lease.to_owned())
}

/// Staging has only interrupted downloads that can be resumed.
fn leftovers(driver: &Driver) -> Vec<Violation> {
    let names: BTreeSet<String> = driver.in_cache("staging").into_iter().collect();
    let partner = |name: &str| {
        let (stem, extension) = name.rsplit_once('.')?;
        match extension {
            "part" => Some(format!("{stem}.journal")),
            "journal" => Some(format!("{stem}.part")),
            _ => None,
        }
    };
    let alone =
        names.iter().filter(|name| partner(name).is_none_or(|other| !names.contains(&other)));
    alone.map(|name| violation(Kind::Space, format!("staging/{name} is left"))).collect()
}

/// What is in a directory takes on its disk, in bytes, each inode once, as far
/// as it is counted.
pub(crate) fn allocated(directory: &Path, counts: impl Fn(&Path, &Metadata) -> bool) -> u64 {
    let (mut open, mut seen, mut blocks) = (vec![directory.to_owned()], HashSet::new(), 0);
    while let Some(path) = open.pop() {
        // A file that is removed meanwhile takes no space.
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if counts(&entry.path(), &metadata) && seen.insert(metadata.ino()) {
                blocks += metadata.blocks();
            }
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    blocks * 512
}

impl Descriptors {
    /// The descriptors of an idle driver: the lowest of several counts.
    pub(crate) async fn of_idle(driver: &Driver) -> Self {
        let mut fewest = Self::of(driver);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = Self::of(driver);
            fewest = Self {
                files: fewest.files.min(now.files),
                sockets: fewest.sockets.min(now.sockets),
                others: fewest.others.min(now.others),
            };
        }
        fewest
    }

    fn of(driver: &Driver) -> Self {
        let mut found = Self { files: 0, sockets: 0, others: 0 };
        for path in open_by(driver.pid()) {
            match path.to_str() {
                Some(path) if path.starts_with('/') => found.files += 1,
                Some(path) if path.starts_with("socket:") => found.sockets += 1,
                _ => found.others += 1,
            }
        }
        found
    }

    fn exceeded_by(self, driver: &Driver) -> Option<String> {
        let now = Self::of(driver);
        let more = now.files > self.files
            || now.others > self.others
            || now.sockets > self.sockets + IDLE_CONNECTIONS;
        more.then(|| format!("{now:?}, and {self:?} when idle: {:?}", open_by(driver.pid())))
    }
}

/// The files that the descriptors of a process are open on.
fn open_by(pid: u32) -> Vec<PathBuf> {
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).expect("a running driver");
    listed.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}
