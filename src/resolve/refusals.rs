//! Refusals of the last moments. Where a cached revision is refused, its listing is asked for next,
//! as it would be without the cache; asking for the same objects once more would take a time that
//! discloses the cached copy.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::model::ModelKey;
use crate::source::PodPrincipal;
use crate::sync::lock;

/// How long a refusal answers for another attempt: the time of most listings. A right that is
/// given meanwhile counts from kubelet's next call on.
const LIFETIME: Duration = Duration::from_secs(2);

/// The maximum number of refusals.
const KEPT: usize = 256;

/// Which pods were refused which revisions.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<VecDeque<Refusal>>);

#[derive(Debug)]
struct Refusal {
    principal: PodPrincipal,
    model: ModelKey,
    error: Error,
    at: Instant,
}

impl Refusals {
    /// Records the refusal of a model to a pod.
    pub(super) fn record(&self, principal: &PodPrincipal, model: ModelKey, error: &Error) {
        let (principal, error, at) = (principal.clone(), error.clone(), Instant::now());
        let mut refused = self.lock();
        if refused.len() == KEPT {
            refused.pop_front();
        }
        refused.push_back(Refusal { principal, model, error, at });
    }

    /// The refusal of this model to this pod, if it is recent.
    pub(super) fn recent(&self, principal: &PodPrincipal, model: &ModelKey) -> Option<Error> {
        let mut refused = self.lock();
        while refused.front().is_some_and(|oldest| oldest.at.elapsed() >= LIFETIME) {
            refused.pop_front();
        }
        let found = refused.iter().find(|one| one.principal == *principal && one.model == *model);
        found.map(|one| one.error.clone())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::{BucketName, ModelSource, NamespaceName, Prefix, Revision};
    use crate::source::Workload;

    fn workload(pod: &str) -> PodPrincipal {
        let [namespace, service_account, pod_uid] = ["team-a", "default", pod].map(str::to_owned);
        PodPrincipal::Account(Workload { namespace, service_account, account_uid: None, pod_uid })
    }

    fn model(name: &str) -> ModelKey {
        let source = ModelSource {
            location: "x".to_owned(),
            namespace: NamespaceName::parse("ns").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse(name).unwrap(),
        };
        ModelKey::of("", &source, &Revision::of([("f", 1, "e")].into_iter()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_answers_for_one_pod_and_model_and_for_a_moment() {
        let refused = Refusals::default();
        let error = Error::new(ErrorKind::NotFound, "nothing that it may read");
        refused.record(&workload("1"), model("a"), &error);
        assert_eq!(refused.recent(&workload("1"), &model("a")), Some(error.clone()));
        assert_eq!(refused.recent(&workload("2"), &model("a")), None);
        assert_eq!(refused.recent(&workload("1"), &model("b")), None);
        tokio::time::advance(LIFETIME).await;
        assert_eq!(refused.recent(&workload("1"), &model("a")), None);
        for n in 0..KEPT + 10 {
            refused.record(&workload(&n.to_string()), model("a"), &error);
        }
        assert_eq!(refused.lock().len(), KEPT);
    }
}
