//! Pre-authenticated requests: URLs with a secret, which need no signature.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{ApiError, ApiResult};
use crate::route::{Operation, Target};
use crate::sync::RwLock;

/// What a request may do; the names are those of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AccessType {
    ObjectRead,
    ObjectWrite,
    ObjectReadWrite,
    AnyObjectRead,
    AnyObjectWrite,
    AnyObjectReadWrite,
}

impl AccessType {
    /// Whether it is for all objects whose names begin with the given one.
    pub(crate) fn is_of_many(self) -> bool {
        matches!(self, Self::AnyObjectRead | Self::AnyObjectWrite | Self::AnyObjectReadWrite)
    }

    fn reads(self) -> bool {
        !matches!(self, Self::ObjectWrite | Self::AnyObjectWrite)
    }

    fn writes(self) -> bool {
        !matches!(self, Self::ObjectRead | Self::AnyObjectRead)
    }
}

/// One pre-authenticated request.
#[derive(Debug, Clone)]
pub(crate) struct Par {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) bucket: String,
    pub(crate) access: AccessType,
    /// The object, or the beginning of the names of many.
    pub(crate) object: String,
    pub(crate) lists: bool,
    pub(crate) created: SystemTime,
    pub(crate) expires: SystemTime,
}

impl Par {
    /// Whether it lets its holder send this request.
    fn permits(&self, target: &Target) -> bool {
        let covers = |name: &str| match self.access.is_of_many() {
            true => name.starts_with(&self.object),
            false => name == self.object,
        };
        target.bucket == self.bucket
            && match target.operation {
                Operation::List => {
                    self.lists && covers(target.query.get("prefix").unwrap_or_default())
                }
                Operation::Get | Operation::Head => self.access.reads() && covers(&target.object),
                Operation::Put => self.access.writes() && covers(&target.object),
                _ => false,
            }
    }
}

/// All of them, by their tokens.
#[derive(Debug, Default)]
pub(crate) struct Pars(RwLock<BTreeMap<String, Par>>);

impl Pars {
    /// Adds one, and returns its token: 64 characters, as the service's have.
    pub(crate) fn add(&self, par: Par) -> String {
        let half = || uuid::Uuid::new_v4().simple().to_string();
        let token = half() + &half();
        self.0.write().insert(token.clone(), par);
        token
    }

    /// Those of a bucket.
    pub(crate) fn of(&self, bucket: &str) -> Vec<Par> {
        self.0.read().values().filter(|par| par.bucket == bucket).cloned().collect()
    }

    pub(crate) fn remove(&self, bucket: &str, id: &str) -> ApiResult<()> {
        let mut all = self.0.write();
        let before = all.len();
        all.retain(|_, par| par.bucket != bucket || par.id != id);
        if all.len() == before { Err(ApiError::par_not_found()) } else { Ok(()) }
    }

    /// The name of the request that permits this one.
    pub(crate) fn check(&self, token: &str, target: &Target, now: SystemTime) -> ApiResult<String> {
        let all = self.0.read();
        let par = all.get(token).filter(|par| now < par.expires && par.permits(target));
        par.map(|par| format!("par/{}", par.name)).ok_or_else(ApiError::par_not_found)
    }
}

/// The body of its creation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WantedPar {
    name: String,
    access_type: AccessType,
    #[serde(default)]
    object_name: Option<String>,
    #[serde(default)]
    bucket_listing_action: Option<String>,
    time_expires: String,
}

impl WantedPar {
    /// The request that is wanted, in this bucket.
    pub(crate) fn checked(self, bucket: &str, now: SystemTime) -> ApiResult<Par> {
        let refuse = |why: &str| Err(ApiError::invalid_parameter(why.to_owned()));
        let Self { name, access_type: access, object_name, bucket_listing_action, .. } = self;
        let object = object_name.unwrap_or_default();
        if object.is_empty() && !access.is_of_many() {
            return refuse("objectName is required for this accessType");
        }
        let lists = match bucket_listing_action.as_deref() {
            None | Some("" | "Deny") => false,
            Some("ListObjects") if access.is_of_many() => true,
            _ => return refuse("bucketListingAction is Deny, or ListObjects for many objects"),
        };
        let Some(expires) = clock::parse_rfc3339(&self.time_expires) else {
            return refuse("timeExpires is not a time of RFC 3339");
        };
        if expires <= now {
            return refuse("timeExpires is in the past");
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let bucket = bucket.to_owned();
        Ok(Par { id, name, bucket, access, object, lists, created: now, expires })
    }
}
