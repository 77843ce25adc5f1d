//! Which service accounts have shown that they may read which models: what an
//! outage of the services that could say so is bridged with. In memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::error::{ErrorKind, Result};
use crate::model::RequestDigest;
use crate::oci::Workload;

/// Proofs that are remembered.
const KEPT: usize = 4096;

/// Namespace, service account, and what it could read.
type Proof = (String, String, RequestDigest);

#[derive(Debug, Default)]
pub(super) struct Proofs(Mutex<HashMap<Proof, Instant>>);

impl Proofs {
    /// Notes what came of asking: a refusal is the end of an earlier proof, and
    /// an outage is neither.
    pub(super) fn note<T>(&self, workload: &Workload, request: RequestDigest, asked: &Result<T>) {
        let mut proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let proof = proof(workload, request);
        match asked.as_ref().map_err(crate::Error::kind) {
            Ok(_) => {
                if proofs.len() >= KEPT && !proofs.contains_key(&proof) {
                    let oldest = proofs.iter().min_by_key(|(_, noted)| **noted);
                    let oldest = oldest.map(|(proof, _)| proof.clone());
                    oldest.map(|oldest| proofs.remove(&oldest));
                }
                proofs.insert(proof, Instant::now());
            }
            Err(ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound) => {
                proofs.remove(&proof);
            }
            Err(_) => {}
        }
    }

    pub(super) fn has(&self, workload: &Workload, request: &RequestDigest) -> bool {
        let proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.contains_key(&proof(workload, request.clone()))
    }
}

fn proof(workload: &Workload, request: RequestDigest) -> Proof {
    (workload.namespace.clone(), workload.service_account.clone(), request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn workload(namespace: &str, pod_uid: &str) -> Workload {
        let [namespace, service_account, pod_uid] =
            [namespace, "default", pod_uid].map(str::to_owned);
        Workload { namespace, service_account, pod_uid }
    }

    #[test]
    fn a_proof_is_the_accounts_for_one_request_until_it_is_refused() {
        let proofs = Proofs::default();
        let request = |name| RequestDigest::of_fields(name, std::iter::empty());
        let team_a = workload("team-a", "1");
        let refused = |kind| Err::<(), _>(Error::new(kind, "x"));
        proofs.note(&team_a, request("a"), &Ok(()));
        assert!(proofs.has(&workload("team-a", "2"), &request("a")), "another pod of the account");
        assert!(!proofs.has(&team_a, &request("b")));
        assert!(!proofs.has(&workload("team-b", "1"), &request("a")));
        proofs.note(&team_a, request("a"), &refused(ErrorKind::Unavailable));
        assert!(proofs.has(&team_a, &request("a")), "an outage refuses nothing");
        for kind in [ErrorKind::Unauthenticated, ErrorKind::Denied, ErrorKind::NotFound] {
            proofs.note(&team_a, request("a"), &Ok(()));
            proofs.note(&team_a, request("a"), &refused(kind));
            assert!(!proofs.has(&team_a, &request("a")), "{kind:?}");
        }
    }

    #[test]
    fn the_oldest_proof_makes_way() {
        let proofs = Proofs::default();
        let request =
            |n: usize| RequestDigest::of_fields("n", [n.to_string()].iter().map(|n| &**n));
        let account = workload("team-a", "1");
        for n in 0..=KEPT {
            proofs.note(&account, request(n), &Ok(()));
        }
        assert!(!proofs.has(&account, &request(0)) && proofs.has(&account, &request(KEPT)));
    }
}
