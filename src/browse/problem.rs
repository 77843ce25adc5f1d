//! What can be wrong with a model in a bucket.

use crate::model::counted;
use crate::text::shown;

/// A kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// Objects in the archive tier, which cannot be read.
    Archived,
    /// Objects without a usable MD5 in the listing.
    NoChecksum,
    /// Names that no directory can show.
    UnsafeName,
    /// An object with the name of a directory of others.
    Collision,
    /// Names of one directory that differ only in case or Unicode form.
    NameTwins,
    /// More objects than the driver mounts by default.
    TooManyObjects,
    /// Shards that an index names and the model lacks.
    MissingShards,
    /// An index that no loader accepts.
    BrokenIndex,
    /// An index that could not be read.
    UnreadIndex,
}

impl ProblemKind {
    /// Whether the driver or the loaders refuse the model.
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::NoChecksum | Self::NameTwins | Self::UnreadIndex)
    }

    /// The name in JSON, which does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Archived => "archived",
            Self::NoChecksum => "noChecksum",
            Self::UnsafeName => "unsafeName",
            Self::Collision => "collision",
            Self::NameTwins => "nameTwins",
            Self::TooManyObjects => "tooManyObjects",
            Self::MissingShards => "missingShards",
            Self::BrokenIndex => "brokenIndex",
            Self::UnreadIndex => "unreadIndex",
        }
    }
}

/// A problem of a model: how many objects have it, and one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelProblem {
    /// Its kind.
    pub kind: ProblemKind,
    /// How many objects have it.
    pub objects: usize,
    /// The name of the first one.
    pub example: String,
}

impl ModelProblem {
    pub(super) fn new(kind: ProblemKind, example: String) -> Self {
        Self { kind, objects: 1, example }
    }

    /// The problem with one more object.
    pub(super) fn and(problem: Option<Self>, kind: ProblemKind, example: String) -> Self {
        match problem {
            Some(problem) => Self { objects: problem.objects + 1, ..problem },
            None => Self::new(kind, example),
        }
    }

    /// The problem in a few words, such as `2 objects archived`.
    pub fn summary(&self) -> String {
        let (one, objects) = (self.objects == 1, counted(self.objects, "object"));
        match self.kind {
            ProblemKind::Archived => format!("{objects} archived"),
            ProblemKind::NoChecksum => format!("{objects} without MD5"),
            ProblemKind::UnsafeName => format!("{objects} with unsafe names"),
            ProblemKind::Collision => format!("{objects} beside a directory of that name"),
            ProblemKind::NameTwins if one => {
                "1 name that differs from another only in case".to_owned()
            }
            ProblemKind::NameTwins => {
                format!("{} names that differ from others only in case", self.objects)
            }
            ProblemKind::TooManyObjects => format!("{objects}, more than limits.maxObjects"),
            ProblemKind::MissingShards => format!("{} missing", counted(self.objects, "shard")),
            ProblemKind::BrokenIndex if one => "a broken index".to_owned(),
            ProblemKind::BrokenIndex => format!("{} broken indexes", self.objects),
            ProblemKind::UnreadIndex => "an index that cannot be read".to_owned(),
        }
    }

    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self.kind {
            ProblemKind::Archived => "restore them with `oci os object restore`",
            ProblemKind::NoChecksum => {
                "if --objects shows no CRC-32C either, upload them again with a checksum"
            }
            ProblemKind::UnsafeName | ProblemKind::Collision => {
                "rename them, or leave them out with `exclude`: the driver refuses the model"
            }
            ProblemKind::NameTwins => {
                "rename it: some tools and file systems take both for one file"
            }
            ProblemKind::TooManyObjects => {
                "divide the model, or raise limits.maxObjects of the driver"
            }
            ProblemKind::MissingShards => "upload them: loaders refuse the model",
            ProblemKind::BrokenIndex => "upload it again: loaders refuse the model",
            ProblemKind::UnreadIndex => "check that this identity may read objects",
        }
    }

    /// What is wrong, with an example.
    pub fn described(&self) -> String {
        match self.kind {
            // All of them are.
            ProblemKind::TooManyObjects => self.summary(),
            _ => format!("{}, such as {}", self.summary(), shown(&self.example, 200)),
        }
    }

    /// The problem with an example and what to do.
    pub fn text(&self) -> String {
        format!("{}: {}", self.described(), self.fix())
    }
}
