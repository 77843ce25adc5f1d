//! Who may call: registered API keys and issued tokens, and what is hidden from whom.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::ParsedPublicKey;

use super::signature::{Refusal, public_key};
use crate::glob;
use crate::sync::RwLock;

/// A public key under which requests are verified.
#[derive(Debug)]
pub(crate) struct RegisteredKey {
    pub(crate) key: ParsedPublicKey,
    /// Who signs with it, for permissions and records: `tenancy/user/fingerprint`
    /// of an API key, the subject of a token. Never the token itself.
    pub(crate) caller: String,
    expires: Option<SystemTime>,
}

/// Keys by the `keyId` of the requests that they sign.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    by_key_id: RwLock<HashMap<String, Arc<RegisteredKey>>>,
    /// (caller pattern, bucket pattern) pairs: these callers do not see these buckets.
    hidden: RwLock<Vec<(String, String)>>,
    /// Callers that are named here see nothing but what is granted to them.
    granted: RwLock<Vec<(String, String, Access)>>,
    /// (caller, bucket, object) patterns: these callers may not read these objects.
    withheld: RwLock<Vec<(String, String, String)>>,
}

/// What a caller may do in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// List objects.
    Inspect,
    /// Read objects whose names are known, and list none.
    ReadKnown,
    /// List and read objects.
    Read,
}

impl Access {
    fn includes(self, wanted: Self) -> bool {
        match wanted {
            Self::Inspect => self != Self::ReadKnown,
            Self::ReadKnown => self != Self::Inspect,
            Self::Read => self == Self::Read,
        }
    }
}

/// Expired tokens are remembered this long, so that their refusal says so.
const REMEMBER_EXPIRED: Duration = Duration::from_secs(3600);

impl Keys {
    /// `None` when the DER is no RSA key of at least 2048 bits.
    pub(crate) fn add_api_key(&self, key_id: &str, public_der: &[u8]) -> Option<()> {
        let key = public_key(public_der)?;
        let registered = RegisteredKey { key, caller: key_id.to_owned(), expires: None };
        self.by_key_id.write().insert(key_id.to_owned(), Arc::new(registered));
        Some(())
    }

    pub(crate) fn remove(&self, key_id: &str) {
        self.by_key_id.write().remove(key_id);
    }

    pub(crate) fn add_token(
        &self,
        token: &str,
        caller: &str,
        public_der: &[u8],
        expires: SystemTime,
    ) -> Option<()> {
        let key = public_key(public_der)?;
        let registered = RegisteredKey { key, caller: caller.to_owned(), expires: Some(expires) };
        let forget = SystemTime::now() - REMEMBER_EXPIRED;
        let mut keys = self.by_key_id.write();
        keys.retain(|_, key| key.expires.is_none_or(|expires| expires > forget));
        keys.insert(format!("ST${token}"), Arc::new(registered));
        Some(())
    }

    /// Refuses all tokens from now on, as if they had expired.
    pub(crate) fn expire_tokens(&self) {
        let mut keys = self.by_key_id.write();
        for key in keys.values_mut() {
            if key.expires.is_some() {
                *key = Arc::new(RegisteredKey {
                    key: key.key.clone(),
                    caller: key.caller.clone(),
                    expires: Some(SystemTime::now() - Duration::from_secs(1)),
                });
            }
        }
    }

    pub(crate) fn find(
        &self,
        key_id: &str,
        now: SystemTime,
    ) -> Result<Arc<RegisteredKey>, Refusal> {
        let key = self.by_key_id.read().get(key_id).cloned().ok_or(Refusal::UnknownKey)?;
        match key.expires {
            Some(expires) if now >= expires => Err(Refusal::ExpiredToken),
            _ => Ok(key),
        }
    }

    pub(crate) fn hide(&self, caller_pattern: &str, bucket_pattern: &str) {
        self.hidden.write().push((caller_pattern.to_owned(), bucket_pattern.to_owned()));
    }

    pub(crate) fn grant(&self, caller_pattern: &str, bucket_pattern: &str, access: Access) {
        let grant = (caller_pattern.to_owned(), bucket_pattern.to_owned(), access);
        self.granted.write().push(grant);
    }

    /// Whether nothing hides the bucket from the caller, and it is granted
    /// where the caller has grants at all.
    pub(crate) fn permits(&self, caller: &str, bucket: &str, access: Access) -> bool {
        let granted = self.granted.read();
        let mut theirs =
            granted.iter().filter(|(callers, ..)| glob::matches(callers, caller)).peekable();
        let ungoverned = theirs.peek().is_none();
        let permitted = ungoverned
            || theirs.any(|(_, buckets, given)| {
                glob::matches(buckets, bucket) && given.includes(access)
            });
        permitted && !self.is_hidden(caller, bucket)
    }

    pub(crate) fn withhold(&self, callers: &str, buckets: &str, objects: &str) {
        let pair = (callers.to_owned(), buckets.to_owned(), objects.to_owned());
        self.withheld.write().push(pair);
    }

    /// Whether a condition on the object's name keeps the caller from reading it.
    pub(crate) fn is_withheld(&self, caller: &str, bucket: &str, object: &str) -> bool {
        self.withheld.read().iter().any(|(callers, buckets, objects)| {
            glob::matches(callers, caller)
                && glob::matches(buckets, bucket)
                && glob::matches(objects, object)
        })
    }

    fn is_hidden(&self, caller: &str, bucket: &str) -> bool {
        self.hidden.read().iter().any(|(callers, buckets)| {
            glob::matches(callers, caller) && glob::matches(buckets, bucket)
        })
    }
}
