//! What all methods have in common: metrics and one log line per call.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use super::history::CallHistory;
use super::status;
use crate::log_throttle::LogThrottle;
use crate::metrics::Metrics;
use crate::sync::lock;

/// How long the same refusal of a volume is not logged again.
const REPEAT_AFTER: Duration = Duration::from_secs(5 * 60);

/// A running call. tonic drops it unanswered when the caller's deadline passes, so
/// that is counted as DeadlineExceeded.
pub(super) struct RpcCall {
    metrics: Arc<Metrics>,
    method: &'static str,
    volume_id: String,
    pod: Option<String>,
    history: Option<CallHistory>,
    started: Instant,
    answered: bool,
}

impl RpcCall {
    /// Begins a call. Of the request, only the volume's id or name is kept.
    pub(super) fn begin(metrics: &Arc<Metrics>, method: &'static str, volume_id: &str) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            method,
            volume_id: volume_id.chars().take(256).collect(),
            pod: None,
            history: None,
            started: Instant::now(),
            answered: false,
        }
    }

    /// Records the outcome in `history`, with the pod that the call is for.
    pub(super) fn recorded(mut self, history: &CallHistory, pod: Option<String>) -> Self {
        self.history = Some(history.clone());
        self.pod = pod;
        self
    }

    /// Records the outcome where that was asked for.
    fn record(&self, code: Code, message: &str) {
        match &self.history {
            Some(history) if code == Code::Ok => {
                history.record_success(&self.volume_id, self.pod.as_deref());
            }
            Some(history) => {
                let subject = (self.volume_id.as_str(), self.pod.as_deref());
                history.record_failure(self.method, code, message, subject);
            }
            None => {}
        }
    }

    /// As [`RpcCall::answer`], but logs a refusal that repeats the volume's last one
    /// at debug level only: kubelet retries every call for every pod.
    pub(super) fn answer_logged_once<T>(
        self,
        result: Result<T, Status>,
        refusals: &RefusalLog,
    ) -> Result<Response<T>, Status> {
        let is_new = result.as_ref().err().is_none_or(|status| refusals.record(&self, status));
        self.finish(result, is_new)
    }

    /// Counts and logs the answer, and returns it.
    pub(super) fn answer<T>(self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        self.finish(result, true)
    }

    fn finish<T>(mut self, result: Result<T, Status>, is_new: bool) -> Result<Response<T>, Status> {
        self.answered = true;
        let seconds = self.started.elapsed().as_secs_f64();
        let (method, volume_id) = (self.method, self.volume_id.as_str());
        let code = match &result {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        };
        let name = status::name(code);
        self.metrics.rpc(method, name, seconds);
        self.record(code, result.as_ref().err().map_or("", Status::message));
        match &result {
            Ok(_) => debug!(method, volume_id, code = name, seconds, "answered"),
            Err(status) if !is_new => {
                debug!(method, volume_id, code = name, seconds, "repeated: {}", status.message());
            }
            // Tools call these methods to find out what a driver can do.
            Err(status) if code == Code::Unimplemented => {
                debug!(method, volume_id, code = name, seconds, "{}", status.message());
            }
            Err(status) if status::is_final(code) => {
                warn!(method, volume_id, code = name, seconds, "{}", status.message());
            }
            Err(status) => {
                info!(method, volume_id, code = name, seconds, "{}", status.message());
            }
        }
        result.map(Response::new)
    }
}

impl Drop for RpcCall {
    fn drop(&mut self) {
        if !self.answered {
            let seconds = self.started.elapsed().as_secs_f64();
            let (method, volume_id) = (self.method, self.volume_id.as_str());
            let code = status::name(Code::DeadlineExceeded);
            self.metrics.rpc(method, code, seconds);
            info!(method, volume_id, code, seconds, "the caller gave up before the answer");
            let message = format!("the caller gave up after {seconds:.1} s, before the answer");
            self.record(Code::DeadlineExceeded, &message);
        }
    }
}

/// The last refusal of each volume and method.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<LogThrottle<MethodAndVolume, (Code, String)>>);

type MethodAndVolume = (&'static str, String);

impl RefusalLog {
    /// Records a refusal; returns whether it must be logged.
    fn record(&self, call: &RpcCall, status: &Status) -> bool {
        let mut refusals = lock(&self.0);
        let refusal = (status.code(), status.message().to_owned());
        refusals.admits((call.method, call.volume_id.clone()), refusal, REPEAT_AFTER)
    }
}

/// Defines methods that answer Unimplemented, each with its reason: a table instead
/// of a page of identical functions. The signatures are those that
/// `#[tonic::async_trait]` generates for `async fn`.
macro_rules! not_served {
    ($($rpc:ident, $method:literal, $request:ident => $response:ident: $why:literal;)*) => {$(
        fn $rpc<'life0, 'async_trait>(
            &'life0 self,
            _request: tonic::Request<$crate::csi::proto::$request>,
        ) -> std::pin::Pin<Box<
            dyn Future<Output = Result<tonic::Response<$crate::csi::proto::$response>, tonic::Status>>
                + Send + 'async_trait,
        >>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            let call = $crate::csi::rpc::RpcCall::begin(&self.metrics, $method, "");
            let refusal = $crate::csi::status::unimplemented($method, $why);
            Box::pin(std::future::ready(call.answer(Err(refusal))))
        }
    )*};
}
pub(super) use not_served;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn count_of(metrics: &Metrics, code: &str) -> usize {
        let line = format!("rpc_duration_seconds_count{{method=\"Probe\",code=\"{code}\"}} 1");
        metrics.to_text().lines().filter(|found| found.ends_with(&line)).count()
    }

    #[test]
    fn every_answer_is_counted_once_with_its_code() {
        let metrics = Arc::new(Metrics::default());
        RpcCall::begin(&metrics, "Probe", "").answer(Ok(())).unwrap();
        let failed = Err(status::of(&Error::invalid("no")));
        RpcCall::begin(&metrics, "Probe", "").answer::<()>(failed).unwrap_err();
        assert_eq!(count_of(&metrics, "OK"), 1);
        assert_eq!(count_of(&metrics, "InvalidArgument"), 1);
        assert_eq!(count_of(&metrics, "DeadlineExceeded"), 0);
    }

    #[test]
    fn a_call_that_its_caller_gave_up_is_counted_too() {
        let metrics = Arc::new(Metrics::default());
        drop(RpcCall::begin(&metrics, "Probe", ""));
        assert_eq!(count_of(&metrics, "DeadlineExceeded"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_refusal_of_a_volume_is_logged_once_in_five_minutes() {
        let (metrics, refusals) = (Arc::new(Metrics::default()), RefusalLog::default());
        let is_logged = |volume: &str, text: &str| {
            let call = RpcCall::begin(&metrics, "NodePublishVolume", volume);
            refusals.record(&call, &Status::not_found(text))
        };
        assert!(is_logged("a", "no bucket"));
        assert!(!is_logged("a", "no bucket"));
        assert!(is_logged("b", "no bucket"));
        assert!(is_logged("a", "no prefix"));
        tokio::time::advance(REPEAT_AFTER).await;
        assert!(is_logged("a", "no prefix"));
    }
}
