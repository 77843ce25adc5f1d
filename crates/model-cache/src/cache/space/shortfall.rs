//! The shortfall: what is missing when a model does not fit, and who holds the rest.

use std::path::PathBuf;

use tokio::time::Instant;

use crate::cache::store::disk_space::Space;
use crate::error::{Error, ErrorKind};
use crate::model::{counted, size_text};

/// Pods named in one message.
const NAMED: usize = 3;

/// The space that is missing for a model, and who holds the rest.
#[derive(Debug, Clone)]
pub struct Shortfall {
    /// What the space is for: a model or a file.
    pub(in crate::cache) subject: String,
    /// Space that the model still needs.
    pub(in crate::cache) needs: Space,
    /// Space that its missing files take in all.
    pub(in crate::cache) whole: Space,
    /// The most that the cache's limits allow on this disk.
    pub(in crate::cache) capacity: Space,
    /// Space that would be available after evicting everything evictable.
    pub(in crate::cache) available: Space,
    /// The evictable part of that.
    pub(in crate::cache) evictable: Space,
    /// Bytes that running downloads will still take. They are not available.
    pub(in crate::cache) running: u64,
    /// The limit that is exhausted: the reserve, or the cache's own limit.
    pub(in crate::cache) bound: ExhaustedLimit,
    /// The pods that hold the rest.
    pub(in crate::cache) holders: Vec<SpaceHolder>,
    /// Bytes of pinned models that are not in use.
    pub(in crate::cache) pinned: u64,
    /// The cache directory.
    pub(in crate::cache) dir: PathBuf,
    /// If the disk ran full in the middle of the download: the error, and what was
    /// kept.
    pub(in crate::cache) cut_short: Option<String>,
    /// When the shortfall was found.
    pub(in crate::cache) at: Instant,
}

/// The limit that keeps the cache from taking more space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum ExhaustedLimit {
    /// `cache.minFree`: `bytes` of `of` stay free.
    Reserve { bytes: u64, of: u64 },
    /// `cache.minFreeInodes`.
    Inodes { inodes: u64 },
    /// `cache.maxSize`.
    Limit { bytes: u64 },
}

/// Which holders a message names; the others are counted.
#[derive(Debug, Clone, Copy)]
enum HolderNames<'a> {
    /// Pods of this Kubernetes namespace, if there is one.
    Namespace(Option<&'a str>),
    /// All pods.
    All,
}

/// A pod, or a volume whose pod is unknown, and the size of its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cache) struct SpaceHolder {
    /// `namespace/name`.
    pub(in crate::cache) pod: Option<String>,
    pub(in crate::cache) bytes: u64,
}

impl Shortfall {
    /// Returns the error for a pod in this Kubernetes namespace, whose download starts
    /// when there is space. Pods of other namespaces are counted, but not named.
    pub fn error_of_pod(&self, namespace: Option<&str>) -> Error {
        let remedy = match self.holders.is_empty() {
            true => {
                "it starts by itself when there is space: no pod holds a model, so remove other \
                 files from the disk, or give the cache a larger disk"
            }
            false => {
                "it starts by itself when there is space: end pods that hold models, or give the \
                 cache a larger disk"
            }
        };
        self.with_remedy(HolderNames::Namespace(namespace), remedy)
    }

    /// Returns the error for callers that do not wait for space, and may be anyone:
    /// prefetches, repairs.
    pub fn error(&self) -> Error {
        self.with_remedy(HolderNames::Namespace(None), self.remedy_without_waiting())
    }

    /// As [`error`](Self::error), for the node's administrator: it names the pods of all
    /// namespaces.
    pub fn error_of_administrator(&self) -> Error {
        self.with_remedy(HolderNames::All, self.remedy_without_waiting())
    }

    fn remedy_without_waiting(&self) -> &'static str {
        match self.holders.is_empty() {
            true => {
                "only pods wait for space: no pod holds a model, so remove other files from the \
                 disk, or give the cache a larger disk, and try again"
            }
            false => {
                "only pods wait for space: end pods that hold models, or give the cache a larger \
                 disk, and try again"
            }
        }
    }

    /// What to change for a model that does not fit into the cache even if nothing else is
    /// on the disk; `None` for one that may fit later.
    fn never(&self) -> Option<String> {
        let (whole, most) = (self.whole, self.capacity);
        if most.covers(whole) {
            return None;
        }
        Some(match whole.bytes > most.bytes {
            true => format!(
                "it can never fit: it takes {}, and this cache can have {} at most: give the cache \
                 a larger disk, change its limits (cache.maxSize, cache.minFree), or leave files \
                 out with exclude",
                size_text(whole.bytes),
                size_text(most.bytes)
            ),
            false => format!(
                "it can never fit: it takes {} inodes, and this cache can have {} at most: make a \
                 file system with more inodes, lower cache.minFreeInodes, or leave files out with \
                 exclude",
                whole.inodes, most.inodes
            ),
        })
    }

    fn with_remedy(&self, names: HolderNames<'_>, remedy: &str) -> Error {
        let subject = &self.subject;
        let needs = match self.bound {
            ExhaustedLimit::Inodes { .. } => format!(
                "{subject} needs {} inodes; {} available",
                self.needs.inodes, self.available.inodes
            ),
            _ => format!(
                "{subject} needs {}; {} available",
                size_text(self.needs.bytes),
                size_text(self.available.bytes)
            ),
        };
        let mut clauses = vec![format!("{needs} in {} ({})", self.dir.display(), self.parts())];
        clauses.extend(self.held(names).map(|held| format!("held by {held}")));
        clauses.extend((self.pinned > 0).then(|| format!("{} pinned", size_text(self.pinned))));
        clauses.extend(self.cut_short.clone());
        clauses.push(self.never().unwrap_or_else(|| remedy.to_owned()));
        Error::new(ErrorKind::NoSpace, clauses.join("; "))
    }

    fn parts(&self) -> String {
        let evictable = match self.bound {
            ExhaustedLimit::Inodes { .. } => format!("{} evictable", self.evictable.inodes),
            _ => format!("{} evictable", size_text(self.evictable.bytes)),
        };
        let free = self.available.saturating_sub(self.evictable);
        let running = match self.running {
            0 => String::new(),
            bytes => format!(", running downloads take {} more", size_text(bytes)),
        };
        match self.bound {
            ExhaustedLimit::Reserve { bytes, of } => {
                // Rounded: a fifth of an odd number of bytes is 20 %.
                let percent = bytes.saturating_mul(100).saturating_add(of / 2).checked_div(of);
                let reserve = match percent {
                    Some(percent) if percent > 0 => format!("{percent} %"),
                    _ => size_text(bytes),
                };
                let free = size_text(free.bytes);
                format!("{free} free above the {reserve} reserve, {evictable}{running}")
            }
            ExhaustedLimit::Inodes { inodes } => format!(
                "{} free above the reserve of {inodes} inodes, {evictable}{running}",
                free.inodes
            ),
            ExhaustedLimit::Limit { bytes } => format!(
                "{} left of cache.maxSize {}, {evictable}{running}",
                size_text(free.bytes),
                size_text(bytes)
            ),
        }
    }

    fn held(&self, names: HolderNames<'_>) -> Option<String> {
        let own = |held: &&SpaceHolder| {
            let pod = held.pod.as_deref().and_then(|pod| pod.split_once('/'));
            match names {
                HolderNames::Namespace(own) => pod.is_some_and(|(its, _)| Some(its) == own),
                HolderNames::All => pod.is_some(),
            }
        };
        let mut named: Vec<&SpaceHolder> = self.holders.iter().filter(own).collect();
        named.sort_by(|a, b| (b.bytes, &a.pod).cmp(&(a.bytes, &b.pod)));
        let mut parts: Vec<String> = named
            .iter()
            .take(NAMED)
            .map(|held| {
                format!("{} ({})", held.pod.as_deref().unwrap_or_default(), size_text(held.bytes))
            })
            .collect();
        if named.len() > NAMED {
            let more = named.len() - NAMED;
            parts.push(match names {
                HolderNames::Namespace(_) => format!("{more} more of this namespace"),
                HolderNames::All => format!("{more} more, which cache ls names"),
            });
        }
        match self.holders.len() - named.len() {
            n if n > 0 && matches!(names, HolderNames::All) => {
                parts.push(format!("{} of unknown pods", counted(n, "volume")));
            }
            0 => {}
            1 => parts.push("1 pod of another namespace".to_owned()),
            n => parts.push(format!("{n} pods of other namespaces")),
        }
        (!parts.is_empty()).then(|| parts.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn shortfall() -> Shortfall {
        let held = |pod: &str, gib| SpaceHolder { pod: Some(pod.to_owned()), bytes: gib * GIB };
        Shortfall {
            subject: "models/llama3-70b/".to_owned(),
            needs: Space { bytes: 140 * GIB, inodes: 30 },
            whole: Space { bytes: 150 * GIB, inodes: 30 },
            capacity: Space { bytes: 800 * GIB, inodes: 100_000 },
            available: Space { bytes: 96 * GIB, inodes: 1000 },
            evictable: Space { bytes: 65 * GIB, inodes: 40 },
            running: 0,
            bound: ExhaustedLimit::Reserve { bytes: 200 * GIB, of: 1000 * GIB },
            holders: vec![
                held("team-a/vllm-0", 52),
                held("b/x", 1),
                held("b/y", 1),
                held("c/z", 1),
            ],
            pinned: 0,
            dir: "/var/lib/oci-model-csi".into(),
            cut_short: None,
            at: Instant::now(),
        }
    }

    #[test]
    fn the_message_has_the_numbers_and_the_holders() {
        let error = shortfall().error_of_pod(Some("team-a"));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(
            error.message().starts_with(
                "models/llama3-70b/ needs 140 GiB; 96 GiB available in /var/lib/oci-model-csi \
                 (31 GiB free above the 20 % reserve, 65 GiB evictable); held by team-a/vllm-0 \
                 (52 GiB) and 3 pods of other namespaces"
            ),
            "{error}"
        );
    }

    #[test]
    fn pods_of_other_namespaces_are_not_named() {
        for namespace in [None, Some("d"), Some("team")] {
            let text = shortfall().error_of_pod(namespace).message().to_owned();
            assert!(text.contains("held by 4 pods of other namespaces"), "{text}");
        }
    }

    #[test]
    fn the_exhausted_limit_is_named_with_its_setting() {
        let mut short = shortfall();
        short.bound = ExhaustedLimit::Limit { bytes: 100 * GIB };
        short.running = GIB;
        let text = short.error_of_pod(None).message().to_owned();
        assert!(text.contains("31 GiB left of cache.maxSize 100 GiB, 65 GiB evictable"), "{text}");
        assert!(text.contains("running downloads take 1 GiB more"), "{text}");
        short.bound = ExhaustedLimit::Inodes { inodes: 10 };
        let text = short.error_of_pod(None).message().to_owned();
        assert!(text.contains("needs 30 inodes; 1000 available"), "{text}");
    }

    #[test]
    fn the_reserve_is_rounded_to_whole_percents() {
        let mut short = shortfall();
        // 20 % of this, in whole bytes, is a little less than a fifth.
        short.bound = ExhaustedLimit::Reserve { bytes: 1003 / 5, of: 1003 };
        let text = short.error().message().to_owned();
        assert!(text.contains("free above the 20 % reserve"), "{text}");
    }

    #[test]
    fn only_the_error_for_a_pod_says_that_its_download_starts_by_itself() {
        let starts = |error: Error| error.message().contains("it starts by itself");
        assert!(starts(shortfall().error_of_pod(None)));
        assert!(!starts(shortfall().error()));
    }

    #[test]
    fn a_model_that_can_never_fit_does_not_promise_to_start() {
        let mut short = shortfall();
        short.capacity.bytes = 149 * GIB;
        for error in [short.error_of_pod(Some("team-a")), short.error()] {
            let text = error.message();
            assert!(
                text.ends_with(
                    "it can never fit: it takes 150 GiB, and this cache can have 149 GiB at most: \
                     give the cache a larger disk, change its limits (cache.maxSize, \
                     cache.minFree), or leave files out with exclude"
                ),
                "{text}"
            );
            assert!(!text.contains("starts by itself") && !text.contains("try again"), "{text}");
        }
        short.capacity = Space { bytes: 150 * GIB, inodes: 29 };
        let text = short.error().message().to_owned();
        assert!(text.contains("it takes 30 inodes, and this cache can have 29 at most"), "{text}");
    }

    #[test]
    fn without_holders_no_message_asks_to_end_pods() {
        let mut short = shortfall();
        short.holders.clear();
        for error in [short.error_of_pod(None), short.error(), short.error_of_administrator()] {
            let text = error.message();
            assert!(text.contains("no pod holds a model") && !text.contains("end pods"), "{text}");
        }
    }

    #[test]
    fn the_administrator_sees_the_names_of_all_holders() {
        let mut short = shortfall();
        short.holders.push(SpaceHolder { pod: None, bytes: GIB });
        let text = short.error_of_administrator().message().to_owned();
        let held = "held by team-a/vllm-0 (52 GiB) and b/x (1 GiB) and b/y (1 GiB) and 1 more, \
                    which cache ls names and 1 volume of unknown pods";
        assert!(text.contains(held), "{text}");
    }

    #[test]
    fn a_message_stays_short_however_many_pods_hold() {
        let mut short = shortfall();
        let held = |n| SpaceHolder { pod: Some(format!("{}/{n:063}", "n".repeat(40))), bytes: GIB };
        short.holders = (0..200).map(held).collect();
        let text = short.error_of_pod(Some(&"n".repeat(40))).message().to_owned();
        assert!(text.contains("197 more of this namespace"), "{text}");
        assert!(text.chars().count() < 800, "{}", text.len());
    }
}
