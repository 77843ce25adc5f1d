//! Who may mount what: pure, so that the same question always has the same
//! answer, whoever asks it and whether the model is cached or not.
//!
//! A rule says something of every object under its prefixes. The first rule
//! that matches an object decides about it, and a model may be mounted if all
//! objects that could stand under its prefix may be read. So a rule that denies
//! `models/secret/` denies `models/` too, unless a rule before it allows that.

mod refusal;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::Result;
use crate::model::{ModelRequest, NamespaceName, Pattern, PodIdentity, Prefix};

/// The administrator's rules; cheap to clone. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy(Arc<[Rule]>);

/// Who gets what, or does not. All of the lists have to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Kubernetes namespaces.
    pub namespaces: Vec<Pattern>,
    /// Service accounts in them.
    pub service_accounts: Vec<Pattern>,
    /// Object Storage namespaces; empty means the own tenancy's.
    pub object_storage_namespaces: Vec<Pattern>,
    /// Buckets.
    pub buckets: Vec<Pattern>,
    /// Directories in them.
    pub prefixes: Vec<Prefix>,
    /// The decision.
    pub allow: bool,
}

/// On whose behalf a model is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A pod, or one that kubelet says nothing of that can be trusted.
    Pod(Option<&'a PodIdentity>),
    /// A claim in this Kubernetes namespace, if external-provisioner tells it.
    /// Which service accounts will use it is not known yet.
    Claim(Option<&'a str>),
}

/// What the rules say, when they do not refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyDecision {
    /// It may be mounted.
    Allowed,
    /// It depends on the name of the own tenancy's Object Storage namespace.
    NeedsOwnNamespace,
}

/// What decides about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectDecision {
    Allowed,
    /// By the rule of this index, or by none.
    Refused(Option<usize>),
    Unknown,
}

/// A question with everything that rules look at but the prefix.
struct PolicyQuery<'a> {
    namespace: &'a str,
    /// `None`: any that the namespace may have.
    service_account: Option<&'a str>,
    request: &'a ModelRequest,
    own: Option<&'a NamespaceName>,
}

impl Policy {
    /// These rules, in the order of evaluation.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules.into())
    }

    /// How many rules there are; without any everything is allowed.
    pub fn rules(&self) -> usize {
        self.0.len()
    }

    /// Whether `who` may read this model. Asked for a cache hit as for a miss.
    ///
    /// `own` is the Object Storage namespace of requests that name none; where
    /// the answer depends on it and it is not given, the verdict says so. Of a
    /// claim it is asked whether any service account of its namespace may.
    ///
    /// # Errors
    /// `Denied`, naming who, what, and the rule that would allow it.
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
            Subject::Pod(_) => return Err(refusal::of_nobody(request)),
            Subject::Claim(Some(namespace)) => (namespace, None),
            Subject::Claim(None) => return Err(refusal::of_no_claim(request)),
        };
        let asked = PolicyQuery { namespace, service_account, request, own };
        let numbered = self.0.iter().enumerate();
        let rules: Vec<_> = numbered.filter(|(_, rule)| rule.speaks_of(&asked)).collect();
        let wanted = request.prefix.as_str();
        let named = rules.iter().flat_map(|(_, rule)| &rule.prefixes).map(Prefix::as_str);
        let within: BTreeSet<&str> = named.filter(|part| part.starts_with(wanted)).collect();
        // What lies deeper than all of these is decided as they are.
        for part in [wanted].into_iter().chain(within) {
            match decide(&rules, &asked, part) {
                ObjectDecision::Allowed => {}
                ObjectDecision::Refused(by) => return Err(refusal::of(&asked, part != wanted, by)),
                ObjectDecision::Unknown => return Ok(PolicyDecision::NeedsOwnNamespace),
            }
        }
        Ok(PolicyDecision::Allowed)
    }
}

/// What decides about an object that stands in this directory, and in no
/// deeper one that a rule names.
fn decide(rules: &[(usize, &Rule)], asked: &PolicyQuery<'_>, directory: &str) -> ObjectDecision {
    for (index, rule) in rules {
        if !rule.prefixes.iter().any(|prefix| directory.starts_with(prefix.as_str())) {
            continue;
        }
        match rule.reaches(asked) {
            None => return ObjectDecision::Unknown,
            Some(false) => {}
            Some(true) if rule.allow => return ObjectDecision::Allowed,
            Some(true) => return ObjectDecision::Refused(Some(*index)),
        }
    }
    ObjectDecision::Refused(None)
}

impl Rule {
    /// Whether this asker and bucket are meant.
    fn speaks_of(&self, asked: &PolicyQuery<'_>) -> bool {
        matches(&self.namespaces, asked.namespace)
            && match asked.service_account {
                Some(name) => matches(&self.service_accounts, name),
                // To deny some service accounts is not to deny all.
                None => self.allow || self.service_accounts.iter().any(is_everything),
            }
            && matches(&self.buckets, asked.request.bucket.as_str())
    }

    /// Whether the tenancy is meant; `None` where that depends on its own name.
    fn reaches(&self, asked: &PolicyQuery<'_>) -> Option<bool> {
        let named = asked.request.namespace.as_ref();
        if self.object_storage_namespaces.is_empty() {
            return named.map_or(Some(true), |named| Some(asked.own? == named));
        }
        if self.object_storage_namespaces.iter().any(is_everything) {
            return Some(true);
        }
        let name = named.or(asked.own)?;
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
