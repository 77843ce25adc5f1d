//! The flaws of a model's weights, and what they mean for one request.

use std::sync::Arc;

use super::SafetensorsCheck;
use super::loaders::Role;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelRequest, Warning, WarningKind};
use crate::text::shown;

/// Flaws named in one message.
const NAMED: usize = 2;

/// The flaws of one model.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WeightsReport {
    /// Broken files that loaders open.
    pub(super) broken: Flaws,
    /// Broken files that no loader opens.
    pub(super) suspect: Flaws,
    /// Shards that indexes name but the tree lacks.
    pub(super) missing: Vec<Missing>,
}

/// The first flaws of a kind, as text, and the number of further ones.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Flaws {
    pub(super) named: Vec<String>,
    pub(super) more: usize,
}

/// A missing shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// The index that names it, as text.
    index: Arc<str>,
    shard: String,
    /// How loaders use the index.
    role: Role,
}

impl Flaws {
    fn record(&mut self, flaw: impl FnOnce() -> String) {
        if self.named.len() < NAMED {
            self.named.push(flaw());
        } else {
            self.more += 1;
        }
    }

    /// Returns the flaws as text; `None` when there are none.
    fn text(&self) -> Option<String> {
        let more = match self.more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (!self.named.is_empty()).then(|| format!("{}{more}", self.named.join("; ")))
    }
}

impl WeightsReport {
    pub(super) fn record(&mut self, path: &str, role: Role, why: &str) {
        self.flaws(role).record(|| format!("{}: {why}{}", shown(path, 60), reason(role)));
    }

    fn flaws(&mut self, role: Role) -> &mut Flaws {
        if role == Role::Opened { &mut self.broken } else { &mut self.suspect }
    }

    pub(super) fn record_missing(&mut self, index: &str, role: Role, shards: Vec<String>) {
        let index: Arc<str> = shown(index, 60).into();
        let missing = |shard| Missing { index: Arc::clone(&index), shard, role };
        self.missing.extend(shards.into_iter().map(missing));
    }

    /// Estimates its size in memory.
    pub(super) fn bytes(&self) -> usize {
        let missing = self
            .missing
            .iter()
            .map(|missing| missing.shard.capacity() + missing.index.len() + size_of::<Missing>());
        let named = self.broken.named.iter().chain(&self.suspect.named).map(String::capacity);
        named.chain(missing).sum::<usize>() + size_of::<Self>()
    }

    /// Returns the warnings for this request, or refuses it. Blocks, for seconds at worst.
    pub(super) fn for_request(
        &self,
        check: SafetensorsCheck,
        request: &ModelRequest,
    ) -> Result<Vec<Warning>> {
        let mut selection = request.filters.selection();
        let mut found = Self {
            broken: self.broken.clone(),
            suspect: self.suspect.clone(),
            missing: Vec::new(),
        };
        for Missing { index, shard, role } in &self.missing {
            if selection.has(shard)? {
                found.flaws(*role).record(|| {
                    let shard = shown(shard, 90);
                    format!("{index}: it names {shard}, which is missing{}", reason(*role))
                });
            }
        }
        let title = request.title();
        let mut warnings = Vec::new();
        if let Some(broken) = found.broken.text() {
            let text = format!("{title} cannot be loaded: {broken}. Upload it again");
            if check == SafetensorsCheck::Refuse {
                return Err(Error::new(
                    ErrorKind::Precondition,
                    format!(
                        "{text}, or leave it out with `exclude`; an administrator can allow such \
                         models (checkSafetensors)"
                    ),
                ));
            }
            let text = format!("{text}; it was mounted anyway (checkSafetensors: warn)");
            warnings.push(Warning::new(WarningKind::Weights, text));
        }
        if let Some(suspect) = found.suspect.text() {
            let text = format!(
                "{title} has files that cannot be loaded and are not needed: {suspect}. Remove \
                 them from the bucket, or leave them out with `exclude`"
            );
            warnings.push(Warning::new(WarningKind::Weights, text));
        }
        Ok(warnings)
    }
}

/// Explains why a flaw of a file does not affect the model.
fn reason(role: Role) -> &'static str {
    match role {
        Role::Opened => "",
        Role::Hidden => " (hidden: no loader opens it)",
        Role::Unused => " (loaders open other files instead)",
        Role::Offered => " (other files beside it are intact)",
    }
}
