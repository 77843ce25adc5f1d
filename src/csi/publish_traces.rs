//! The traces of publishes: one for each, although kubelet repeats its calls until one succeeds.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tracing::Span;

use super::status;
use crate::sync::lock;
use crate::text::shown;
use crate::{telemetry, trace};

/// A publish without a call for this long has ended; kubelet waits less between two calls.
const FORGOTTEN: Duration = Duration::from_secs(5 * 60);

/// The longest trace. What takes longer has several.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// The most publishes at once that have a trace for all of their calls.
const KEPT: usize = 4096;

/// The spans of publishes that have begun and not ended. Empty where no traces are exported.
#[derive(Debug, Default)]
pub(super) struct PublishTraces(Mutex<HashMap<PublishId, OpenTrace>>);

/// Volume and target, as kubelet names them.
type PublishId = (String, String);

#[derive(Debug)]
struct OpenTrace {
    span: Span,
    began: Instant,
    last: Instant,
}

impl PublishTraces {
    /// The span of a publish, from its first call to its success, as the parent of this call's.
    pub(super) fn enter(&self, volume: &str, target: &str) -> Span {
        let now = Instant::now();
        let key = (volume.to_owned(), target.to_owned());
        let mut open = self.lock();
        open.retain(|_, trace| now.duration_since(trace.last) < FORGOTTEN);
        if let Some(trace) = open.get_mut(&key)
            && now.duration_since(trace.began) < LONGEST
        {
            trace.last = now;
            return trace.span.clone();
        }
        let (volume, target) = (shown(volume, 128), shown(target, 300));
        let span = tracing::info_span!(
            target: trace::STEP, parent: None, "publish volume", volume, target
        );
        if !span.is_disabled() && open.len() < KEPT {
            open.insert(key, OpenTrace { span: span.clone(), began: now, last: now });
        }
        span
    }

    /// Records the answer to a call in its span. An answer that is final for kubelet ends the
    /// publish: the next call is another attempt, with a trace of its own.
    pub(super) fn answered<T>(
        &self,
        (volume, target): (&str, &str),
        (publish, call): (&Span, &Span),
        answer: &Result<T, Status>,
    ) {
        let failure = answer.as_ref().err();
        let code = failure.map_or(tonic::Code::Ok, Status::code);
        let message = failure.map(Status::message);
        telemetry::answered(call, status::name(code), message);
        if code == tonic::Code::Ok || status::is_final(code) {
            telemetry::answered(publish, status::name(code), message);
            self.end(volume, target);
        }
    }

    /// Ends the trace of a volume that is published, refused or gone.
    pub(super) fn end(&self, volume: &str, target: &str) {
        self.lock().remove(&(volume.to_owned(), target.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PublishId, OpenTrace>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[tokio::test(start_paused = true)]
    async fn calls_for_a_volume_share_a_span_until_an_answer_is_final() {
        let subscriber = tracing_subscriber::registry().with(tracing_subscriber::fmt::layer());
        let _default = tracing::subscriber::set_default(subscriber);
        let traces = PublishTraces::default();
        let first = traces.enter("v", "/t");
        assert_eq!(traces.enter("v", "/t").id(), first.id());
        assert_ne!(traces.enter("v", "/other").id(), first.id());
        let answer = |answer: Result<(), Status>| {
            let call = Span::none();
            traces.answered(("v", "/t"), (&first, &call), &answer);
            traces.enter("v", "/t").id() == first.id()
        };
        assert!(answer(Err(Status::aborted("40 %"))));
        tokio::time::advance(FORGOTTEN / 2).await;
        assert!(answer(Err(Status::unavailable("for the moment"))));
        assert!(!answer(Err(Status::not_found("no such prefix"))));
        let second = traces.enter("v", "/t");
        tokio::time::advance(FORGOTTEN).await;
        assert_ne!(traces.enter("v", "/t").id(), second.id(), "forgotten");
        assert_eq!(traces.lock().len(), 1, "and the other volume with it");
    }

    #[test]
    fn without_a_collector_nothing_is_kept() {
        // As the log's filter does.
        let steps = tracing_subscriber::filter::filter_fn(|span| span.target() != trace::STEP);
        let subscriber = tracing_subscriber::registry().with(steps);
        let _default = tracing::subscriber::set_default(subscriber);
        let traces = PublishTraces::default();
        assert!(traces.enter("v", "/t").is_disabled());
        assert!(traces.lock().is_empty());
    }
}
