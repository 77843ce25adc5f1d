//! Buckets and objects by name.

use std::fmt;
use std::sync::Arc;

use crate::text::excerpt;

/// A bucket: its name is unique within its Object Storage namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// The Object Storage namespace, one per tenancy.
    pub namespace: String,
    /// The bucket's name.
    pub name: String,
}

impl Bucket {
    /// The bucket of this name in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// An object of this bucket.
    pub fn object(self: &Arc<Self>, name: impl Into<String>) -> ObjectName {
        ObjectName { bucket: Arc::clone(self), name: name.into() }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket {} of namespace {}", self.name, self.namespace)
    }
}

/// An object by its full name, as listings have it (not encoded).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its bucket.
    pub bucket: Arc<Bucket>,
    /// Any UTF-8 but CR, LF and NUL, 1 to 1024 bytes.
    pub name: String,
}

impl ObjectName {
    /// The object of this name in a bucket.
    pub fn new(bucket: Arc<Bucket>, name: impl Into<String>) -> Self {
        Self { bucket, name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", excerpt(&self.name, 200), self.bucket)
    }
}
