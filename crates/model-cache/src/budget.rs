//! Memory in bytes: work that may need much memory reserves its part before it
//! begins, or waits.
//!
//! Two rules protect the other tenants from one. No tenant holds more than half
//! of a budget, so another one finds the other half free or gets it in turn; and
//! among those that wait, the tenant that holds the least is next.

mod sys;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Tenant, size_text};
use crate::sync::lock;

/// The files with the limits of control groups, of version 2 and of version 1.
const LIMITS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes"),
];

/// The limit that is assumed where there is none.
const UNLIMITED: u64 = 4 << 30;

/// A permit of at least this many bytes returns freed memory to the system when it ends.
const LARGE: u64 = 1 << 20;

/// How long after the end of such a permit.
const TRIM_AFTER: Duration = Duration::from_millis(200);

/// A number of bytes that tenants share; cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<BudgetInner>);

#[derive(Debug)]
struct BudgetInner {
    what: &'static str,
    total: u64,
    state: Mutex<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    free: u64,
    held: HashMap<Tenant, u64>,
    waiting: VecDeque<PendingPermit>,
}

#[derive(Debug)]
struct PendingPermit {
    tenant: Tenant,
    bytes: u64,
    ready: oneshot::Sender<MemoryPermit>,
}

/// Reserved bytes; returned when dropped.
#[derive(Debug)]
pub struct MemoryPermit {
    budget: MemoryBudget,
    tenant: Tenant,
    bytes: u64,
}

impl MemoryBudget {
    /// Creates a budget of `total` bytes for `what`, which messages name.
    pub fn new(what: &'static str, total: u64) -> Self {
        let state = BudgetState { free: total, held: HashMap::new(), waiting: VecDeque::new() };
        Self(Arc::new(BudgetInner { what, total, state: Mutex::new(state) }))
    }

    /// The most bytes that one tenant may hold.
    pub fn most(&self) -> u64 {
        self.0.total / 2
    }

    /// Reserves bytes, as soon as they are free and it is this tenant's turn.
    /// Cancellation safe.
    ///
    /// # Errors
    /// `Precondition` when that is more than one tenant may hold.
    pub async fn take(&self, tenant: &Tenant, bytes: u64) -> Result<MemoryPermit> {
        let BudgetInner { what, total, .. } = &*self.0;
        if bytes > self.most() {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!(
                    "it needs {} of memory for {what}, and one namespace may use {} of the {} for \
                     that: use a longer prefix, leave files out with `exclude`, or ask \
                     the administrator to raise the driver's memory limit (--heap-limit, or that of \
                     its container)",
                    size_text(bytes),
                    size_text(self.most()),
                    size_text(*total)
                ),
            ));
        }
        let (ready, permit) = oneshot::channel();
        self.lock().waiting.push_back(PendingPermit { tenant: tenant.clone(), bytes, ready });
        self.grant();
        permit.await.map_err(|_| Error::internal("a place in the queue for memory was lost"))
    }

    /// Reserved bytes.
    pub fn taken(&self) -> u64 {
        self.0.total - self.lock().free
    }

    /// Grants free bytes to those that wait, for as long as the next one fits.
    fn grant(&self) {
        loop {
            let Some(PendingPermit { tenant, bytes, ready }) = self.next() else { return };
            let permit = MemoryPermit { budget: self.clone(), tenant, bytes };
            // The drop of a permit whose waiter has left takes the lock again: not under the lock.
            drop(ready.send(permit));
        }
    }

    fn next(&self) -> Option<PendingPermit> {
        let mut state = self.lock();
        state.waiting.retain(|waiter| !waiter.ready.is_closed());
        let held =
            |state: &BudgetState, tenant: &Tenant| state.held.get(tenant).copied().unwrap_or(0);
        let may = state.waiting.iter().enumerate().filter(|(_, waiter)| {
            held(&state, &waiter.tenant).saturating_add(waiter.bytes) <= self.most()
        });
        // Among those that hold equally little, the one that came first.
        let (at, _) = may.min_by_key(|(_, waiter)| held(&state, &waiter.tenant))?;
        let (bytes, tenant) = (state.waiting[at].bytes, state.waiting[at].tenant.clone());
        // Others do not pass it: small ones would starve a large one.
        state.free = state.free.checked_sub(bytes)?;
        *state.held.entry(tenant).or_default() += bytes;
        state.waiting.remove(at)
    }

    fn give_back(&self, tenant: &Tenant, bytes: u64) {
        let mut state = self.lock();
        state.free += bytes;
        if let Some(held) = state.held.get_mut(tenant) {
            *held -= bytes;
            if *held == 0 {
                state.held.remove(tenant);
            }
        }
        drop(state);
        self.grant();
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        lock(&self.0.state)
    }
}

impl MemoryPermit {
    /// Returns the bytes that turned out not to be needed.
    pub fn shrink(&mut self, bytes: u64) {
        let more = self.bytes.saturating_sub(bytes);
        self.bytes -= more;
        if more > 0 {
            self.budget.give_back(&self.tenant, more);
        }
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(&self.tenant, self.bytes);
        }
        if self.bytes >= LARGE {
            trim_soon();
        }
    }
}

/// Limits what the allocator keeps for itself. Call it before anything else.
pub fn limit_arenas() {
    sys::limit_arenas();
}

/// Returns memory that was freed in many small pieces to the system.
pub(crate) fn trim_soon() {
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);
    if UNDER_WAY.swap(true, Ordering::AcqRel) {
        return;
    }
    let trimming = std::thread::Builder::new().name("trim".to_owned()).spawn(|| {
        // The caller frees the memory right after the permit, and others may follow.
        std::thread::sleep(TRIM_AFTER);
        UNDER_WAY.store(false, Ordering::Release);
        sys::trim();
    });
    if trimming.is_err() {
        UNDER_WAY.store(false, Ordering::Release);
    }
}

/// The memory limit of this process: that of its control group, half of what it may
/// allocate (the other half is for the stacks of its threads), or `UNLIMITED`, whichever
/// is least. Blocks for a moment.
pub fn memory_limit() -> u64 {
    let allocated = getrlimit(Resource::RLIMIT_DATA).map_or(UNLIMITED, |(soft, _)| soft / 2);
    memory_limit_of_group().unwrap_or(UNLIMITED).min(allocated).min(UNLIMITED)
}

/// The memory limit of the process's control group, if there is one. Blocks for a moment.
pub fn memory_limit_of_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_group = LIMITS.iter().flat_map(|(root, controller, file)| {
        let own = group_of(&groups, controller).unwrap_or("/").trim_start_matches('/').to_owned();
        // In a container the root of the group is what is mounted.
        [Path::new(root).join(own).join(file), Path::new(root).join(file)]
    });
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    of_group.filter_map(read).min()
}

/// The path of the process's group: `id:controllers:path`; no controllers in version 2.
fn group_of<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|one| one == controller).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::of_namespace(name)
    }

    async fn is_waiting<T>(taking: &mut (impl Future<Output = T> + Unpin)) -> bool {
        futures_util::poll!(taking).is_pending()
    }

    #[tokio::test]
    async fn a_request_that_can_never_fit_is_refused_with_the_limit() {
        let budget = MemoryBudget::new("a test", 100 << 20);
        let error = budget.take(&tenant("a"), 51 << 20).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains("needs 51.0 MiB") || error.message().contains("51 MiB"));
        assert_eq!(budget.taken(), 0);
    }

    #[tokio::test]
    async fn one_tenant_has_half_at_most_and_another_need_not_wait_for_it() {
        let budget = MemoryBudget::new("a test", 100);
        let first = budget.take(&tenant("a"), 50).await.unwrap();
        let mut more = Box::pin(async { budget.take(&tenant("a"), 10).await });
        assert!(is_waiting(&mut more).await);
        let other = budget.take(&tenant("b"), 50).await.unwrap();
        drop(other);
        assert!(is_waiting(&mut more).await, "half is the most");
        drop(first);
        more.await.unwrap();
    }

    #[tokio::test]
    async fn of_those_that_wait_the_tenant_that_has_the_least_is_next() {
        let budget = MemoryBudget::new("a test", 100);
        let (a, b) = (tenant("a"), tenant("b"));
        let held = budget.take(&a, 40).await.unwrap();
        let blocker = budget.take(&tenant("c"), 50).await.unwrap();
        let mut greedy = Box::pin(async { budget.take(&a, 10).await });
        let mut late = Box::pin(async { budget.take(&b, 50).await });
        // The first request of the greedy tenant fits, and none passes it yet.
        let first = futures_util::poll!(&mut greedy);
        assert!(first.is_ready() && is_waiting(&mut late).await);
        drop((held, first));
        let mut again = Box::pin(async { budget.take(&a, 50).await });
        let granted = late.await.unwrap();
        assert!(is_waiting(&mut again).await);
        drop((blocker, granted));
    }

    #[tokio::test]
    async fn a_waiter_that_is_dropped_reserves_nothing() {
        let budget = MemoryBudget::new("a test", 100);
        let held = budget.take(&tenant("a"), 50).await.unwrap();
        let mut gone = Box::pin(async { budget.take(&tenant("a"), 50).await });
        assert!(is_waiting(&mut gone).await);
        drop(gone);
        drop(held);
        assert_eq!(budget.taken(), 0);
        let mut part = budget.take(&tenant("a"), 50).await.unwrap();
        part.shrink(20);
        assert_eq!(budget.taken(), 20);
        drop(part);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn the_group_of_the_process_is_found_in_both_versions() {
        assert_eq!(group_of("0::/pods/x\n", ""), Some("/pods/x"));
        let old = "5:cpu,cpuacct:/a\n4:memory:/pods/y\n";
        assert_eq!(group_of(old, "memory"), Some("/pods/y"));
        assert_eq!(group_of(old, ""), None);
        assert!(memory_limit() > 0);
    }
}
