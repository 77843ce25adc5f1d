//! Mounts and unmounts at a target: a lease and a mount together, or neither.
//!
//! All operations at a target go through an [`OpenTarget`], so a directory that is
//! replaced meanwhile cannot lead to another volume. A mount belongs to this volume
//! if it was made for it, in the directory in which it was made.

use std::path::Path;

use tracing::Span;

use super::publish::{PublishAttempt, VolumesInner};
use super::targets::TargetGuard;
use crate::abort_point;
use crate::cache::{CachedModel, LeaseHolder, LeaseRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{self, Mounted, OpenTarget, TargetState};
use crate::trace;

impl VolumesInner {
    /// Takes a lease and binds the model; a failure leaves neither. Blocks.
    pub(super) fn mount(
        &self,
        _guard: TargetGuard,
        attempt: &PublishAttempt,
        model: CachedModel,
    ) -> Result<()> {
        let target = &attempt.key.target;
        let place = self.place(target)?.ok_or_else(|| {
            Error::invalid(format!(
                "target {} cannot be created: its parent directory does not exist; kubelet creates \
                 it before the call",
                target.display()
            ))
        })?;
        let existing = self.prepare(&place, &model.tree)?;
        attempt.steps.ended("mountpoint");
        let holder = LeaseHolder {
            volume_id: attempt.key.volume_id.clone(),
            target: target.clone(),
            directory: place.directory(),
            request: attempt.key.digest.clone(),
            pod: attempt.pod.clone(),
        };
        let leasing = tracing::info_span!(target: trace::STEP, "lease");
        let lease = match leasing.in_scope(|| self.parts.cache.lease(model, holder)) {
            Ok(lease) => lease,
            // This call has left nothing but an empty directory.
            Err(error) if existing.is_some() => return Err(error),
            Err(error) => return self.undo(&place, false, error),
        };
        attempt.steps.ended("lease");
        if let Some(mounted) = existing {
            self.parts.cache.record_mount(target, mounted.id);
            return Ok(());
        }
        abort_point::reach("bind-2");
        // Only a leased model can be bound.
        let binding = tracing::info_span!(target: trace::STEP, "bind");
        let options = attempt.request.options;
        match binding.in_scope(|| place.bind_read_only(&lease.model.tree, options)) {
            Ok(mounted) => {
                self.parts.cache.record_mount(target, mounted.id);
                abort_point::reach("bind-3");
                Ok(())
            }
            Err(error) => self.undo(&place, true, error),
        }
    }

    /// Makes the target ready for the mount of a tree. Returns the mount if it exists: a
    /// process that was killed between bind and answer left it.
    fn prepare(&self, place: &OpenTarget, tree: &Path) -> Result<Option<Mounted>> {
        let Some(mounted) = place.mounted()? else {
            place.make()?;
            abort_point::reach("bind-1");
            return Ok(None);
        };
        self.check_is_expected(place, &mounted, tree)?;
        if mounted.hardened {
            return Ok(Some(mounted));
        }
        place.unmount(&mounted)?;
        Ok(None)
    }

    /// Undoes a failed publish. If that fails too, the answer is not final: kubelet
    /// retries, or unpublishes.
    fn undo(&self, place: &OpenTarget, leased: bool, cause: Error) -> Result<()> {
        // A failed bind has unmounted what it mounted; only the mount point remains.
        let removed = place.remove();
        let undone = removed
            .and_then(|()| if leased { self.parts.cache.release(place.path()) } else { Ok(()) });
        Err(match undone {
            Ok(()) => cause,
            Err(error) => {
                let text = format!("{cause}; the cleanup failed too: {error}");
                Error::new(ErrorKind::InProgress, text)
            }
        })
    }

    /// Unmounts the volume, removes the empty directory, ends the lease. Succeeds if
    /// they are gone already. Blocks.
    pub(super) fn unmount(&self, volume_id: &str, target: &Path) -> Result<()> {
        let lease = self.parts.cache.lease_of(target);
        if let Some(lease) = &lease {
            self.record_in_span(lease);
        }
        if let Some(other) = lease.as_ref().filter(|lease| lease.volume_id != volume_id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "volume {} is mounted at {}, not {volume_id}; it was not changed",
                    other.volume_id,
                    target.display()
                ),
            ));
        }
        let Some(place) = self.place(target)? else {
            check_is_nowhere(lease.as_ref())?;
            return self.parts.cache.release(target);
        };
        let found = place.inspect()?;
        let was_published = lease.is_some() || matches!(found, TargetState::Mount(_));
        if let TargetState::Mount(mounted) = &found {
            self.check_is_ours(&place, mounted, lease.as_ref())?;
            place.unmount(mounted)?;
            abort_point::reach("unbind-1");
        } else {
            check_is_nowhere(lease.as_ref())?;
        }
        place.remove()?;
        abort_point::reach("unbind-2");
        self.parts.cache.release(target)?;
        abort_point::reach("unbind-3");
        // Do not log a volume that was gone already: kubelet may repeat the call any number of times.
        if was_published {
            tracing::info!(target = %target.display(), "unpublished");
        }
        Ok(())
    }

    /// Whether the mount of this lease is in place at its target, and hardened. Blocks.
    pub(super) fn is_mounted_as_leased(&self, lease: &LeaseRecord) -> Result<bool> {
        let Some(place) = self.place(&lease.target)? else { return Ok(false) };
        let Some(mounted) = place.mounted()? else { return Ok(false) };
        Ok(mounted.hardened && is_of(lease, &place, &mounted))
    }

    /// Whether anything is mounted at a target. Blocks.
    pub(super) fn is_mounted(&self, target: &Path) -> Result<bool> {
        match self.place(target)? {
            Some(place) => Ok(place.mounted()?.is_some()),
            None => Ok(false),
        }
    }

    fn place(&self, target: &Path) -> Result<Option<OpenTarget>> {
        OpenTarget::open(&self.parts.kubelet, target)
    }

    /// Adds the volume's pod and model to the log lines of this call.
    fn record_in_span(&self, lease: &LeaseRecord) {
        let span = Span::current();
        span.record("pod", lease.pod.as_deref());
        if let Ok(Some(summary)) = self.parts.cache.summary(&lease.model) {
            span.record("model", summary.source.title());
        }
    }

    /// Checks that an existing mount is of the tree that is to be mounted.
    fn check_is_expected(&self, place: &OpenTarget, mounted: &Mounted, tree: &Path) -> Result<()> {
        if self.belongs_to_another(place, mounted) {
            return Err(replaced(place));
        }
        if mount::identity(tree) == Ok(mounted.root) {
            return Ok(());
        }
        let path = place.path().display();
        let text = if self.is_covered(mounted, None)? {
            format!("something else is mounted on top of this volume at {path}; unmount it")
        } else {
            format!("something else is mounted at {path} already; unpublish it first")
        };
        Err(Error::new(ErrorKind::Conflict, text))
    }

    /// Checks that this driver may remove a mount: with a lease only the mount of the
    /// lease, without one only a tree of the cache.
    fn check_is_ours(
        &self,
        place: &OpenTarget,
        mounted: &Mounted,
        lease: Option<&LeaseRecord>,
    ) -> Result<()> {
        let is_tree = self.parts.cache.is_tree(mounted)?;
        let is_ours = match lease {
            Some(lease) => {
                let is_known = lease.mount.is_some() || lease.directory.is_some();
                is_of(lease, place, mounted)
                    && (is_known || !self.belongs_to_another(place, mounted))
            }
            None => is_tree && !self.belongs_to_another(place, mounted),
        };
        if is_ours {
            return Ok(());
        }
        let path = place.path().display();
        let text = if self.is_covered(mounted, lease)? {
            format!(
                "something else is mounted on top of the volume at {path}; neither was changed: \
                 unmount what is on top, then the volume is unpublished"
            )
        } else if is_tree {
            return Err(replaced(place));
        } else {
            format!("the mount at {path} is not this driver's; it was not changed")
        };
        Err(Error::new(ErrorKind::Precondition, text))
    }

    /// Whether this mount belongs to the lease of another target.
    fn belongs_to_another(&self, place: &OpenTarget, mounted: &Mounted) -> bool {
        let leases = self.parts.cache.leases();
        let mut others = leases.iter().filter(|lease| lease.target != place.path());
        others.any(|other| {
            let here = other.directory == Some(place.directory())
                && other.target.file_name() == place.path().file_name();
            other.mount == Some(mounted.id) || here && other.root == mounted.root
        })
    }

    /// Whether a mount of this driver is below this one, at the same path.
    fn is_covered(&self, mounted: &Mounted, lease: Option<&LeaseRecord>) -> Result<bool> {
        for below in mount::stack_below(mounted)? {
            let is_leased = lease.is_some_and(|lease| lease.mount == Some(below.id));
            if is_leased || self.parts.cache.is_tree(&below)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether this mount was made for the lease. After a restart only its root and its
/// directory are known.
fn is_of(lease: &LeaseRecord, place: &OpenTarget, mounted: &Mounted) -> bool {
    lease.root == mounted.root
        && lease.directory.is_none_or(|directory| directory == place.directory())
        && lease.mount.is_none_or(|id| id == mounted.id)
}

/// Checks that the mount of a lease does not exist elsewhere, which happens when a
/// parent directory is renamed: the lease must not end then.
fn check_is_nowhere(lease: Option<&LeaseRecord>) -> Result<()> {
    let Some(lease) = lease else { return Ok(()) };
    let Some(id) = lease.mount else { return Ok(()) };
    match mount::mounted_with_id(id)? {
        Some(mounted) if mounted.root == lease.root => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the volume at {} is now mounted at {}, because a parent directory was renamed; it \
                 was not changed, and the call will be retried",
                lease.target.display(),
                mounted.target.display()
            ),
        )),
        _ => Ok(()),
    }
}

fn replaced(place: &OpenTarget) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "{} leads to the volume of another pod, because a parent directory was replaced; it was \
             not changed, and the call will be retried",
            place.path().display()
        ),
    )
}
