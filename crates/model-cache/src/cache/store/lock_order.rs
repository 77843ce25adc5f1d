//! The order of the cache's locks. A thread that holds one of them takes only those that
//! follow it here; debug builds assert that (see [`OrderedMutex`](crate::sync::OrderedMutex)).
//!
//! The first five are held during access to the disk, and only by blocking code. The others
//! are held for a moment, and by async code too. Other mutexes of the cache (flights, slots,
//! progress) have no rank: no lock is taken while one of them is held, except `HOLDS`, when
//! an entry that holds a model is dropped.

use crate::sync::Rank;

/// Held by the admission that may evict: two would each evict for themselves.
pub(in crate::cache) const ADMISSION: Rank = Rank::new(1, "admission");

/// Held while a large manifest is in memory.
pub(in crate::cache) const LARGE_MANIFEST: Rank = Rank::new(2, "large manifest");

/// Held while a verified file becomes a blob: a download and an import may add the same one.
pub(in crate::cache) const PLACEMENT: Rank = Rank::new(3, "placement");

/// Held by an eviction from its scan of the cache to its last rename, and briefly to create a
/// hold on blobs. So blobs that an eviction found idle stay idle until it ends.
pub(in crate::cache) const EVICTION: Rank = Rank::new(4, "eviction");

/// Held while an entry of the trash is deleted.
pub(in crate::cache) const DELETION: Rank = Rank::new(5, "deletion");

/// Protects the completed models whose pods have not asked again yet, which end their holds.
pub(in crate::cache) const ARRIVALS: Rank = Rank::new(6, "arrivals");

/// Protects the leases by target.
pub(in crate::cache) const LEASES: Rank = Rank::new(7, "lease records");

/// Protects the counts of holds.
pub(in crate::cache) const HOLDS: Rank = Rank::new(8, "holds");

/// Protects the models that this process knows.
pub(in crate::cache) const MODELS: Rank = Rank::new(9, "known models");

/// Protects the blobs that this process knows; held while a record becomes durable.
pub(in crate::cache) const BLOBS: Rank = Rank::new(10, "known blobs");

/// Protects the blobs whose bytes in memory may not be those on the disk.
pub(in crate::cache) const DISTRUSTED: Rank = Rank::new(11, "distrusted blobs");

/// Protects the totals of the reservations.
pub(in crate::cache) const RESERVATIONS: Rank = Rank::new(12, "reservations");

/// Protects the rules that keep older revisions.
pub(in crate::cache) const KEEP: Rank = Rank::new(13, "kept revisions");
