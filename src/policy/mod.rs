//! Who may mount what. Pure functions: the same question always has the same
//! answer, whether the model is cached or not.
//!
//! A rule applies to every object under its prefixes. The first rule that matches
//! an object decides about it. A model may be mounted if every possible object
//! under its prefix may be read. So a rule that denies `models/secret/` denies
//! `models/` too, unless an earlier rule allows it.

mod refusal;
mod rule;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use rule::Rule;

use crate::error::Result;
use crate::model::{ModelRequest, NamespaceName, Pattern, PodIdentity, Prefix};

/// The administrator's rules; cheap to clone. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy(Arc<[Rule]>);

/// On whose behalf a model is requested.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A pod; `None` if kubelet sends no trustworthy identity.
    Pod(Option<&'a PodIdentity>),
    /// A claim in this Kubernetes namespace; `None` if external-provisioner does
    /// not send it. The service accounts that will use the claim are not known yet.
    Claim(Option<&'a str>),
}

/// The decision of the rules, unless they refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyDecision {
    /// The model may be mounted.
    Allowed,
    /// The decision depends on the Object Storage namespace of the driver's own tenancy.
    NeedsOwnNamespace,
}

/// The decision about one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectDecision {
    Allowed,
    /// By the rule of this index, or because no rule matches.
    Refused(Option<usize>),
    Unknown,
}

/// Everything that rules match, except the prefix.
struct PolicyQuery<'a> {
    namespace: &'a str,
    /// `None`: any service account of the namespace.
    service_account: Option<&'a str>,
    request: &'a ModelRequest,
    own: Option<&'a NamespaceName>,
}

impl Policy {
    /// Creates a policy of these rules, in the order of evaluation.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules.into())
    }

    /// The number of rules; without rules everything is allowed.
    pub fn rules(&self) -> usize {
        self.0.len()
    }

    /// Decides whether `who` may read this model, for a cache hit as for a miss.
    ///
    /// `own` is the Object Storage namespace of requests that name none. If it is
    /// `None` and the decision depends on it, the answer is `NeedsOwnNamespace`. A
    /// claim is allowed if any service account of its namespace is.
    ///
    /// # Errors
    /// `Denied`; the message names the subject, the model, and the rule that would
    /// allow it.
    pub fn check(
        &self,
        who: Subject<'_>,
        request: &ModelRequest,
        own: Option<&NamespaceName>,
    ) -> Result<PolicyDecision> {
        if self.0.is_empty() {
            return Ok(PolicyDecision::Allowed);
        }
        let (namespace, service_account) = match who {
            Subject::Pod(Some(pod)) if !pod.service_account.is_empty() => {
                (pod.namespace.as_str(), Some(pod.service_account.as_str()))
            }
            Subject::Pod(_) => return Err(refusal::unknown_pod(request)),
            Subject::Claim(Some(namespace)) => (namespace, None),
            Subject::Claim(None) => return Err(refusal::unknown_claim(request)),
        };
        let query = PolicyQuery { namespace, service_account, request, own };
        let numbered = self.0.iter().enumerate();
        let rules: Vec<_> = numbered.filter(|(_, rule)| rule.applies_to(&query)).collect();
        for part in parts(&rules, request) {
            match decide(&rules, &query, part) {
                ObjectDecision::Allowed => {}
                ObjectDecision::Refused(by) => {
                    return Err(refusal::denied(&query, part != request.prefix.as_str(), by));
                }
                ObjectDecision::Unknown => return Ok(PolicyDecision::NeedsOwnNamespace),
            }
        }
        Ok(PolicyDecision::Allowed)
    }

    /// Whether the rules allow this model to every service account of every Kubernetes namespace.
    pub fn allows_every_pod(&self, request: &ModelRequest, own: Option<&NamespaceName>) -> bool {
        let (namespace, service_account) = ("", None);
        let query = PolicyQuery { namespace, service_account, request, own };
        let numbered = self.0.iter().enumerate();
        // A rule that denies one pod is enough, and one that allows a few is not.
        let rules: Vec<_> = numbered
            .filter(|(_, rule)| !rule.allow || rule.is_for_every_pod())
            .filter(|(_, rule)| matches(&rule.buckets, request.bucket.as_str()))
            .collect();
        self.0.is_empty()
            || parts(&rules, request)
                .into_iter()
                .all(|part| decide(&rules, &query, part) == ObjectDecision::Allowed)
    }
}

/// The directories that are decided about: that of the model, and those below it that rules name.
/// Deeper ones have the decision of the nearest of these.
fn parts<'a>(rules: &[(usize, &'a Rule)], request: &'a ModelRequest) -> BTreeSet<&'a str> {
    let wanted = request.prefix.as_str();
    let named = rules.iter().flat_map(|(_, rule)| &rule.prefixes).map(Prefix::as_str);
    named.filter(|part| part.starts_with(wanted)).chain([wanted]).collect()
}

/// Decides about the objects of this directory, outside deeper directories that
/// a rule names.
fn decide(rules: &[(usize, &Rule)], query: &PolicyQuery<'_>, directory: &str) -> ObjectDecision {
    for (index, rule) in rules {
        if !rule.prefixes.iter().any(|prefix| directory.starts_with(prefix.as_str())) {
            continue;
        }
        match rule.matches_tenancy(query) {
            None => return ObjectDecision::Unknown,
            Some(false) => {}
            Some(true) if rule.allow => return ObjectDecision::Allowed,
            Some(true) => return ObjectDecision::Refused(Some(*index)),
        }
    }
    ObjectDecision::Refused(None)
}

impl Rule {
    /// Whether the rule applies to this subject and bucket.
    fn applies_to(&self, query: &PolicyQuery<'_>) -> bool {
        matches(&self.namespaces, query.namespace)
            && match query.service_account {
                Some(name) => matches(&self.service_accounts, name),
                // A rule that denies some service accounts does not deny the claim.
                None => self.allow || self.service_accounts.iter().any(is_everything),
            }
            && matches(&self.buckets, query.request.bucket.as_str())
    }

    fn is_for_every_pod(&self) -> bool {
        [&self.namespaces, &self.service_accounts].iter().all(|of| of.iter().any(is_everything))
    }

    /// Whether the rule applies to this tenancy; `None` if that depends on the
    /// unknown own namespace.
    fn matches_tenancy(&self, query: &PolicyQuery<'_>) -> Option<bool> {
        let named = query.request.namespace.as_ref();
        if self.object_storage_namespaces.is_empty() {
            return named.map_or(Some(true), |named| Some(query.own? == named));
        }
        if self.object_storage_namespaces.iter().any(is_everything) {
            return Some(true);
        }
        let name = named.or(query.own)?;
        Some(matches(&self.object_storage_namespaces, name.as_str()))
    }
}

fn matches(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

fn is_everything(pattern: &Pattern) -> bool {
    pattern.as_str().bytes().all(|b| b == b'*')
}

#[cfg(test)]
mod tests;
