//! The vocabulary all other modules share: what a model is, which objects it
//! selects, what its tree looks like, what identifies it. No input or output,
//! no async.

mod attributes;
mod digest;
mod label;
mod listing;
mod load_order;
mod manifest;
mod matcher;
mod names;
mod nearest;
mod pattern;
mod pod_secret;
mod request;
mod tenant;
mod token;
mod tree;
mod twins;
mod units;
mod uri;
mod warning;

pub use attributes::{AttributeSource, own_attributes, parse_attributes, plain_attributes};
pub use digest::{BlobId, ModelKey, ModelSource, RequestDigest, Revision, RevisionHasher};
pub use label::{LABEL_START, node_label};
pub use listing::ObjectListing;
pub use load_order::SMALL_FILE;
pub use manifest::{Attachment, Manifest, ManifestFile, Summary};
pub use names::{BucketName, NamespaceName, Prefix};
pub use nearest::{nearest, nearest_first};
pub use pattern::{Filters, NameSelection, Pattern};
pub use pod_secret::{has_pod_secret, parse_pod_secret};
pub use request::{CacheScope, ModelRequest, PodIdentity, PullPolicy};
pub use tenant::Tenant;
pub use token::{PodTokens, account_uid};
pub use tree::{ListedObject, Selected, Tree, TreeFile, TreeLimits, flaw_of_name};
pub use twins::{folded, two_forms_of_one_name, with_code_points};
pub use units::{counted, duration_text, progress_text, size_text};
pub use uri::ModelUri;
pub use warning::{Warning, WarningKind};
