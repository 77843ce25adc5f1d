//! The effects at a target: a lease and a mount together, or neither.
//!
//! Everything at a target goes through a [`OpenTarget`], so that a name that is
//! exchanged meanwhile leads to no other volume. A mount is this volume's if
//! it is the one that was made for it, in the directory that it was made in.

use std::path::Path;

use tracing::Span;

use super::publish::VolumesInner;
use super::targets::TargetGuard;
use super::{PublishKey, PublishRequest};
use crate::abort_point;
use crate::cache::{CachedModel, LeaseHolder, LeaseRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{self, Mounted, OpenTarget, TargetState};

impl VolumesInner {
    /// Lease, then bind; a failure leaves neither. Blocks.
    pub(super) fn show(
        &self,
        _guard: TargetGuard,
        request: PublishRequest,
        model: CachedModel,
    ) -> Result<()> {
        let PublishKey { volume_id, target, digest, .. } = request.key;
        let place = self.place(&target)?.ok_or_else(|| {
            Error::invalid(format!(
                "target {} cannot be made: its parent directory does not exist; kubelet makes it \
                 before it asks",
                target.display()
            ))
        })?;
        // A process that was killed between bind and answer left a mount that
        // may be just what is wanted.
        let before = place.mounted()?;
        match &before {
            Some(mounted) => {
                self.check_is_wanted(&place, mounted, &model.tree)?;
                if !mounted.hardened {
                    place.unmount(mounted)?;
                }
            }
            None => {
                place.make()?;
                abort_point::reach("bind-1");
            }
        }
        let standing = before.filter(|mounted| mounted.hardened);
        let holder = LeaseHolder {
            volume_id,
            target: target.clone(),
            directory: place.directory(),
            request: digest,
            pod: request.pod,
        };
        let lease = match self.cache.lease(model, holder) {
            Ok(lease) => lease,
            // Nothing of this call is there but an empty directory.
            Err(error) if standing.is_some() => return Err(error),
            Err(error) => return self.undo(&place, false, error),
        };
        if let Some(mounted) = standing {
            self.cache.record_mount(&target, mounted.id);
            return Ok(());
        }
        abort_point::reach("bind-2");
        // Only what is leased can be bound.
        match place.bind_read_only(&lease.model.tree, request.options) {
            Ok(mounted) => {
                self.cache.record_mount(&target, mounted.id);
                abort_point::reach("bind-3");
                Ok(())
            }
            Err(error) => self.undo(&place, true, error),
        }
    }

    /// Takes back what a failed publish made. While that is not possible, the
    /// answer is not final: kubelet comes again, or unpublishes.
    fn undo(&self, place: &OpenTarget, leased: bool, cause: Error) -> Result<()> {
        // A failed bind has unmounted what it mounted; a mount point stays.
        let removed = place.remove();
        let undone =
            removed.and_then(|()| if leased { self.cache.release(place.path()) } else { Ok(()) });
        Err(match undone {
            Ok(()) => cause,
            Err(error) => {
                let text = format!("{cause}; taking it back failed too: {error}");
                Error::new(ErrorKind::InProgress, text)
            }
        })
    }

    /// Unmounts, removes the empty directory, ends the lease. What is gone
    /// already is fine. Blocks.
    pub(super) fn take_away(&self, volume_id: &str, target: &Path) -> Result<()> {
        let lease = self.cache.lease_of(target);
        if let Some(lease) = &lease {
            self.note(lease);
        }
        if let Some(other) = lease.as_ref().filter(|lease| lease.volume_id != volume_id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{} shows the volume {}, not {volume_id}; it was left as it is",
                    target.display(),
                    other.volume_id
                ),
            ));
        }
        let Some(place) = self.place(target)? else {
            check_is_nowhere(lease.as_ref())?;
            return self.cache.release(target);
        };
        let found = place.inspect()?;
        let stood = lease.is_some() || matches!(found, TargetState::Mount(_));
        if let TargetState::Mount(mounted) = &found {
            self.check_is_ours(&place, mounted, lease.as_ref())?;
            place.unmount(mounted)?;
            abort_point::reach("unbind-1");
        } else {
            check_is_nowhere(lease.as_ref())?;
        }
        place.remove()?;
        abort_point::reach("unbind-2");
        self.cache.release(target)?;
        abort_point::reach("unbind-3");
        // Not again for a volume that was gone already: kubelet asks as often as it likes.
        if stood {
            tracing::info!(target = %target.display(), "unpublished");
        }
        Ok(())
    }

    /// Whether this lease's mount is at its target as it should be. Blocks.
    pub(super) fn shows(&self, lease: &LeaseRecord) -> Result<bool> {
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
        OpenTarget::open(&self.kubelet, target)
    }

    /// Says in the lines of this call whose volume it is.
    fn note(&self, lease: &LeaseRecord) {
        let span = Span::current();
        span.record("pod", lease.pod.as_deref());
        if let Ok(Some(summary)) = self.cache.summary(&lease.model) {
            span.record("model", summary.source.title());
        }
    }

    /// Whether a mount that is there already is of the tree that is to be shown.
    fn check_is_wanted(&self, place: &OpenTarget, mounted: &Mounted, tree: &Path) -> Result<()> {
        if self.is_anothers(place, mounted) {
            return Err(exchanged(place));
        }
        if mount::identity(tree) == Ok(mounted.root) {
            return Ok(());
        }
        let shown = place.path().display();
        let text = match self.is_covered(mounted, None)? {
            true => {
                format!("something else was mounted on top of this volume at {shown}; unmount it")
            }
            false => format!("something else is mounted at {shown} already; unpublish it first"),
        };
        Err(Error::new(ErrorKind::Conflict, text))
    }

    /// Whether a mount may be taken off this place: with a lease only the one
    /// that it is of, without one only a tree of the cache.
    fn check_is_ours(
        &self,
        place: &OpenTarget,
        mounted: &Mounted,
        lease: Option<&LeaseRecord>,
    ) -> Result<()> {
        let is_tree = self.cache.is_tree(mounted)?;
        let is_ours = match lease {
            Some(lease) => {
                let is_known = lease.mount.is_some() || lease.directory.is_some();
                is_of(lease, place, mounted) && (is_known || !self.is_anothers(place, mounted))
            }
            None => is_tree && !self.is_anothers(place, mounted),
        };
        if is_ours {
            return Ok(());
        }
        let shown = place.path().display();
        let text = if self.is_covered(mounted, lease)? {
            format!(
                "something else was mounted on top of the volume at {shown}; both were left as they \
                 are: unmount what is on top, then the volume is unpublished"
            )
        } else if is_tree {
            return Err(exchanged(place));
        } else {
            format!("what is mounted at {shown} is not this driver's; it was left as it is")
        };
        Err(Error::new(ErrorKind::Precondition, text))
    }

    /// Whether this is the mount of a lease of another target.
    fn is_anothers(&self, place: &OpenTarget, mounted: &Mounted) -> bool {
        let leases = self.cache.leases();
        let mut others = leases.iter().filter(|lease| lease.target != place.path());
        others.any(|other| {
            let here = other.directory == Some(place.directory())
                && other.target.file_name() == place.path().file_name();
            other.mount == Some(mounted.id) || here && other.root == mounted.root
        })
    }

    /// Whether a mount of ours is below this one, at the same place.
    fn is_covered(&self, mounted: &Mounted, lease: Option<&LeaseRecord>) -> Result<bool> {
        for below in mount::stack_below(mounted)? {
            let is_leased = lease.is_some_and(|lease| lease.mount == Some(below.id));
            if is_leased || self.cache.is_tree(&below)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether this is the mount that was made for a lease, as far as that is
/// known: after a restart only by its root and by the directory that it is in.
fn is_of(lease: &LeaseRecord, place: &OpenTarget, mounted: &Mounted) -> bool {
    lease.root == mounted.root
        && lease.directory.is_none_or(|directory| directory == place.directory())
        && lease.mount.is_none_or(|id| id == mounted.id)
}

/// A lease whose mount is not at its target must not end while the mount is
/// somewhere else: a directory around it was renamed.
fn check_is_nowhere(lease: Option<&LeaseRecord>) -> Result<()> {
    let Some(lease) = lease else { return Ok(()) };
    let Some(id) = lease.mount else { return Ok(()) };
    match mount::mounted_with_id(id)? {
        Some(mounted) if mounted.root == lease.root => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the volume at {} is mounted at {} now, since a directory around it was renamed; \
                 it was left as it is and is tried again",
                lease.target.display(),
                mounted.target.display()
            ),
        )),
        _ => Ok(()),
    }
}

fn exchanged(place: &OpenTarget) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "{} leads to the volume of another pod, since a directory around it was exchanged; it \
             was left as it is and is tried again",
            place.path().display()
        ),
    )
}
