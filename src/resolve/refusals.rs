//! The refusal of a call. Where a cached revision is refused, its listing is asked for next, as it
//! would be without the cache; asking for the same objects once more would take a time that
//! discloses the cached copy.
//!
//! It is forgotten with the call. Another call asks again, whether something is cached or not: else
//! a second pod with the same key, or kubelet's next try, would find out by what is not asked.

use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::model::ModelKey;
use crate::sync::lock;

/// The revision that a call was refused last, with the error; clones share it. A right that is
/// given meanwhile counts from kubelet's next call on.
#[derive(Debug, Clone, Default)]
pub(super) struct CallRefusal(Arc<Mutex<Option<(ModelKey, Error)>>>);

impl CallRefusal {
    /// Records the refusal of a revision.
    pub(super) fn record(&self, model: ModelKey, error: &Error) {
        *lock(&self.0) = Some((model, error.clone()));
    }

    /// The refusal of this revision in this call.
    pub(super) fn of(&self, model: &ModelKey) -> Option<Error> {
        let refused = lock(&self.0);
        refused.as_ref().filter(|(refused, _)| refused == model).map(|(_, error)| error.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::{BucketName, ModelSource, NamespaceName, Prefix, Revision};

    fn model(name: &str) -> ModelKey {
        let source = ModelSource {
            location: "x".to_owned(),
            namespace: NamespaceName::parse("ns").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse(name).unwrap(),
        };
        ModelKey::of("", &source, &Revision::of([("f", 1, "e")].into_iter()))
    }

    #[test]
    fn a_refusal_answers_for_one_model_and_call() {
        let (call, another) = (CallRefusal::default(), CallRefusal::default());
        let error = Error::new(ErrorKind::NotFound, "nothing that it may read");
        call.clone().record(model("a"), &error);
        assert_eq!(call.of(&model("a")), Some(error));
        assert_eq!(call.of(&model("b")), None);
        assert_eq!(another.of(&model("a")), None);
    }
}
