//! Warnings about a model that is mounted anyway.

/// Why a model is suspect: the label of `model_suspect_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarningKind {
    /// Weights that could not be loaded, but that loaders do not open or
    /// `checkSafetensors: warn` allows.
    Weights,
    /// A pattern of `include` or `exclude` that matched nothing.
    Pattern,
    /// Two names that some file systems and tools take for one.
    Names,
}

impl WarningKind {
    /// The value of the label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Pattern => "pattern",
            Self::Names => "names",
        }
    }
}

/// A warning about a model, found when it was resolved or checked. The code that
/// mounts or fetches the model passes it on: as an event, in the log, in a metric,
/// in the output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The kind.
    pub kind: WarningKind,
    /// What was found, and what to do. Text from elsewhere is quoted with
    /// [`crate::text::shown`].
    pub text: String,
}

impl Warning {
    /// Creates a warning of this kind.
    pub fn new(kind: WarningKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}
