//! Diagnosis: what keeps a model from a pod, each finding with its remedy.
//!
//! A check looks at one thing and gives findings: what it saw, and for a fault what to do. Checks
//! change nothing and never fail as a whole, since a diagnosis is needed most where things are
//! broken: a check that cannot look says so, as a finding.

mod finding;
mod node;
pub mod speed;
mod storage;

pub use finding::{CheckId, Finding, Severity, tidy, worst_first};
pub use node::{NodeView, ask_driver, examine as examine_node};
pub use storage::{ReadableObjects, StorageExamination, StorageView, examine as examine_storage};
