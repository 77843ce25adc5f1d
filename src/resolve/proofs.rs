//! Records which pods' identities have proved that they may read which revisions.
//! The records bridge an outage of the services that check permissions. They are in
//! memory and valid for one hour, because a permission may be revoked meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ModelKey;
use crate::source::PodPrincipal;
use crate::sync::lock;

/// How long a proof is valid.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// The maximum number of proofs.
const KEPT: usize = 4096;

/// A pod's own identity, as far as it can be recognized later.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AccountKey {
    namespace: String,
    proof: String,
}

impl AccountKey {
    /// `None` if nothing distinguishes it from later ones; nothing is recorded then.
    pub(super) fn of(principal: &PodPrincipal) -> Option<Self> {
        Some(Self { namespace: principal.namespace().to_owned(), proof: principal.proof()? })
    }
}

#[derive(Debug)]
struct Proof {
    shown: Instant,
    location: String,
    bucket: String,
}

#[derive(Debug, Default)]
pub(super) struct Proofs(Mutex<HashMap<(AccountKey, ModelKey), Proof>>);

impl Proofs {
    /// Records that the identity could read the model; `place` is location and bucket.
    pub(super) fn record(&self, principal: &PodPrincipal, model: ModelKey, place: (&str, &str)) {
        let Some(account) = AccountKey::of(principal) else { return };
        let mut proofs = self.lock();
        let key = (account, model);
        if proofs.len() >= KEPT && !proofs.contains_key(&key) {
            proofs.retain(|_, proof| proof.is_valid());
            if proofs.len() >= KEPT {
                evict_one(&mut proofs);
            }
        }
        let (location, bucket) = (place.0.to_owned(), place.1.to_owned());
        proofs.insert(key, Proof { shown: Instant::now(), location, bucket });
    }

    /// Forgets all proofs of the identity for the bucket.
    pub(super) fn forget(&self, principal: &PodPrincipal, place: (&str, &str)) {
        let Some(account) = AccountKey::of(principal) else { return };
        self.lock().retain(|(whose, _), proof| {
            *whose != account || (proof.location.as_str(), proof.bucket.as_str()) != place
        });
    }

    pub(super) fn has(&self, principal: &PodPrincipal, model: &ModelKey) -> bool {
        let Some(account) = AccountKey::of(principal) else { return false };
        self.lock().get(&(account, model.clone())).is_some_and(Proof::is_valid)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(AccountKey, ModelKey), Proof>> {
        lock(&self.0)
    }
}

impl Proof {
    fn is_valid(&self) -> bool {
        self.shown.elapsed() < LIFETIME
    }
}

/// Removes the oldest proof of the namespace with the most proofs, so that one
/// namespace cannot evict the proofs of another.
fn evict_one(proofs: &mut HashMap<(AccountKey, ModelKey), Proof>) {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for (account, _) in proofs.keys() {
        *counts.entry(&account.namespace).or_default() += 1;
    }
    let Some(namespace) = counts.iter().max_by_key(|(_, count)| **count).map(|(name, _)| *name)
    else {
        return;
    };
    let theirs = proofs.iter().filter(|((account, _), _)| account.namespace == namespace);
    let oldest = theirs.min_by_key(|(_, proof)| proof.shown).map(|(key, _)| key.clone());
    oldest.map(|oldest| proofs.remove(&oldest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BucketName, ModelSource, NamespaceName, Prefix, Revision};
    use crate::source::{PodKey, Workload};

    const PLACE: (&str, &str) = ("us-ashburn-1", "b");

    fn workload(namespace: &str, account_uid: &str, pod_uid: &str) -> PodPrincipal {
        let uid = (!account_uid.is_empty()).then(|| account_uid.to_owned());
        let [namespace, service_account, pod_uid] =
            [namespace, "default", pod_uid].map(str::to_owned);
        PodPrincipal::Account(Workload { namespace, service_account, account_uid: uid, pod_uid })
    }

    fn model(name: &str) -> ModelKey {
        let source = ModelSource {
            location: PLACE.0.to_owned(),
            namespace: NamespaceName::parse("ns").unwrap(),
            bucket: BucketName::parse(PLACE.1).unwrap(),
            prefix: Prefix::parse(name).unwrap(),
        };
        ModelKey::of("", &source, &Revision::of([("f", 1, "e")].into_iter()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_valid_for_one_account_and_model_until_a_refusal_or_for_an_hour() {
        let proofs = Proofs::default();
        let team_a = workload("team-a", "u-1", "1");
        proofs.record(&team_a, model("a"), PLACE);
        assert!(proofs.has(&workload("team-a", "u-1", "2"), &model("a")), "another pod of it");
        assert!(!proofs.has(&team_a, &model("b")));
        assert!(!proofs.has(&workload("team-b", "u-2", "1"), &model("a")));
        assert!(!proofs.has(&workload("team-a", "u-9", "1"), &model("a")), "an account made again");
        proofs.forget(&team_a, ("us-ashburn-1", "other"));
        proofs.forget(&workload("team-b", "u-2", "1"), PLACE);
        assert!(proofs.has(&team_a, &model("a")), "of another bucket, and of another account");
        proofs.forget(&team_a, PLACE);
        assert!(!proofs.has(&team_a, &model("a")));
        proofs.record(&team_a, model("a"), PLACE);
        tokio::time::advance(LIFETIME.checked_sub(Duration::from_secs(1)).unwrap()).await;
        assert!(proofs.has(&team_a, &model("a")));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!proofs.has(&team_a, &model("a")));
    }

    #[test]
    fn nothing_is_recorded_for_an_account_without_a_uid() {
        let proofs = Proofs::default();
        let unknown = workload("team-a", "", "1");
        proofs.record(&unknown, model("a"), PLACE);
        assert!(!proofs.has(&unknown, &model("a")));
    }

    #[test]
    fn a_proof_of_a_key_is_of_that_key_user_and_namespace_whatever_its_fingerprint() {
        let key = |namespace: &str, digest: &str| {
            let [namespace, fingerprint, digest] = [namespace, "ab", digest].map(str::to_owned);
            PodPrincipal::ApiKey(PodKey { namespace, fingerprint, digest })
        };
        let proofs = Proofs::default();
        proofs.record(&key("team-a", "d-1"), model("a"), PLACE);
        assert!(proofs.has(&key("team-a", "d-1"), &model("a")));
        assert!(!proofs.has(&key("team-a", "d-2"), &model("a")), "the same fingerprint");
        assert!(!proofs.has(&key("team-b", "d-1"), &model("a")));
        assert!(!proofs.has(&workload("team-a", "d-1", "1"), &model("a")));
    }

    #[test]
    fn the_oldest_proof_of_the_largest_namespace_is_evicted() {
        let proofs = Proofs::default();
        let (few, many) = (workload("team-a", "u-1", "1"), workload("team-b", "u-2", "1"));
        proofs.record(&few, model("a"), PLACE);
        for n in 0..KEPT {
            proofs.record(&many, model(&n.to_string()), PLACE);
        }
        assert!(proofs.has(&few, &model("a")));
        assert!(!proofs.has(&many, &model("0")) && proofs.has(&many, &model("4095")));
    }
}
