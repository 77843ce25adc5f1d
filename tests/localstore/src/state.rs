//! Everything that requests share.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;

use crate::auth::{Cluster, Identity, Keys, Pars, Subject};
use crate::error::ApiResult;
use crate::faults::Faults;
use crate::objects::{Bucket, Catalog, PublicAccess};
use crate::server::Buffers;
use crate::stats::Counters;

/// The state of a running server.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) namespace: String,
    /// Whether signatures are verified.
    pub(crate) verify: bool,
    /// The most entries of one page of a listing.
    pub(crate) max_page: usize,
    pub(crate) catalog: Catalog,
    pub(crate) keys: Keys,
    pub(crate) pars: Pars,
    /// Whether it serves https.
    pub(crate) tls: bool,
    pub(crate) identity: Identity,
    pub(crate) cluster: Cluster,
    pub(crate) faults: Faults,
    pub(crate) counters: Arc<Counters>,
    pub(crate) buffers: Buffers,
}

impl State {
    /// The bucket, created when it is missing: for objects that are put without a request.
    pub(crate) fn bucket_or_create(&self, name: &str) -> ApiResult<Arc<Bucket>> {
        self.catalog.bucket(name).or_else(|_| {
            let compartment = &self.identity.instance.compartment;
            self.catalog.create_bucket(name, compartment, PublicAccess::NoPublicAccess)
        })
    }

    /// Issues a token for a session key, as an identity service would.
    pub(crate) fn issue_token(
        &self,
        subject: &str,
        session_spki: &[u8],
        ttl: Duration,
    ) -> anyhow::Result<String> {
        let instance = &self.identity.instance;
        let subject = Subject {
            id: subject,
            kind: "workload",
            tenancy: &instance.tenancy,
            compartment: &instance.compartment,
        };
        let now = SystemTime::now();
        let token = self.identity.issue_token(&subject, session_spki, now, ttl);
        let token = token.context("the session key is not an RSA key")?;
        let added = self.keys.add_token(&token, subject.id, session_spki, now + ttl);
        added.context("the session key is not an RSA key of at least 2048 bits")?;
        self.counters.token_issued();
        Ok(token)
    }
}
