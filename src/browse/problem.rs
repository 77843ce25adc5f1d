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
    /// Shards that an index names and the model lacks.
    MissingShards,
    /// An index that no loader accepts.
    BrokenIndex,
    /// An index that could not be read.
    UnreadIndex,
}

impl ProblemKind {
    /// The name in JSON, which does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Archived => "archived",
            Self::NoChecksum => "noChecksum",
            Self::UnsafeName => "unsafeName",
            Self::Collision => "collision",
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
            ProblemKind::MissingShards => format!("{} missing", counted(self.objects, "shard")),
            ProblemKind::BrokenIndex if one => "a broken index".to_owned(),
            ProblemKind::BrokenIndex => format!("{} broken indexes", self.objects),
            ProblemKind::UnreadIndex => "an index that cannot be read".to_owned(),
        }
    }

    /// The problem with an example and what to do.
    pub fn text(&self) -> String {
        let example = shown(&self.example, 200);
        let remedy = match self.kind {
            ProblemKind::Archived => "restore them with `oci os object restore`",
            ProblemKind::NoChecksum => {
                "if --objects shows no CRC-32C either, upload them again with a checksum"
            }
            ProblemKind::UnsafeName | ProblemKind::Collision => {
                "rename them, or leave them out with `exclude`: the driver refuses the model"
            }
            ProblemKind::MissingShards => "upload them: loaders refuse the model",
            ProblemKind::BrokenIndex => "upload it again: loaders refuse the model",
            ProblemKind::UnreadIndex => "check that this identity may read objects",
        };
        format!("{}, such as {example}: {remedy}", self.summary())
    }
}
