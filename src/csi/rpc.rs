//! What all methods have in common: each is measured, and told in one line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use super::status;
use crate::metrics::Metrics;

/// The same answer for a volume is told again after this long.
const SAME: Duration = Duration::from_secs(5 * 60);

/// Volumes whose last refusal is remembered.
const REMEMBERED: usize = 4096;

/// A call at work. Dropping it unanswered is what tonic does when the
/// caller's deadline passes, and is counted as that.
pub(super) struct RpcCall {
    metrics: Arc<Metrics>,
    method: &'static str,
    volume_id: String,
    started: Instant,
    answered: bool,
}

impl RpcCall {
    /// A call that begins now. Of the request only the volume's id or name is kept.
    pub(super) fn begin(metrics: &Arc<Metrics>, method: &'static str, volume_id: &str) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            method,
            volume_id: volume_id.chars().take(256).collect(),
            started: Instant::now(),
            answered: false,
        }
    }

    /// As [`RpcCall::answer`], but what this volume was told a moment ago is no news:
    /// kubelet asks again and again, for every pod.
    pub(super) fn answer_unless_told<T>(
        self,
        result: Result<T, Status>,
        told: &RefusalLog,
    ) -> Result<Response<T>, Status> {
        let news = result.as_ref().err().is_none_or(|status| told.is_news(&self, status));
        self.finish(result, news)
    }

    /// Counts and tells the answer, and gives it on.
    pub(super) fn answer<T>(self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        self.finish(result, true)
    }

    fn finish<T>(mut self, result: Result<T, Status>, news: bool) -> Result<Response<T>, Status> {
        self.answered = true;
        let seconds = self.started.elapsed().as_secs_f64();
        let (method, volume_id) = (self.method, self.volume_id.as_str());
        let code = match &result {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        };
        let name = status::name(code);
        self.metrics.rpc(method, name, seconds);
        match &result {
            Ok(_) => debug!(method, volume_id, code = name, seconds, "answered"),
            Err(status) if !news => {
                debug!(method, volume_id, code = name, seconds, "again: {}", status.message());
            }
            // Asked for by tools that try out what a driver can do.
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
            info!(method, volume_id, code, seconds, "the caller did not wait for the answer");
        }
    }
}

/// The last refusal of each volume and method, and when it was told.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<HashMap<(&'static str, String), Refusal>>);

#[derive(Debug)]
struct Refusal {
    code: Code,
    message: String,
    at: Instant,
}

impl RefusalLog {
    fn is_news(&self, call: &RpcCall, status: &Status) -> bool {
        let now = Instant::now();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (call.method, call.volume_id.clone());
        if let Some(Refusal { code, message, at }) = told.get(&key) {
            let same = *code == status.code() && *message == status.message();
            if same && now - *at < SAME {
                return false;
            }
        }
        if told.len() >= REMEMBERED {
            told.retain(|_, refusal| now - refusal.at < SAME);
            if told.len() >= REMEMBERED {
                told.clear();
            }
        }
        let message = status.message().to_owned();
        told.insert(key, Refusal { code: status.code(), message, at: now });
        true
    }
}

/// Methods that answer Unimplemented, each with its reason: a table in place
/// of a page of equal functions. The signatures are those that
/// `#[tonic::async_trait]` makes of `async fn`.
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
        let failed = Err(Status::from(Error::invalid("no")));
        RpcCall::begin(&metrics, "Probe", "").answer::<()>(failed).unwrap_err();
        assert_eq!(count_of(&metrics, "OK"), 1);
        assert_eq!(count_of(&metrics, "InvalidArgument"), 1);
        assert_eq!(count_of(&metrics, "DeadlineExceeded"), 0);
    }

    #[test]
    fn a_call_that_was_cut_off_is_counted_too() {
        let metrics = Arc::new(Metrics::default());
        drop(RpcCall::begin(&metrics, "Probe", ""));
        assert_eq!(count_of(&metrics, "DeadlineExceeded"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_refusal_of_a_volume_is_told_once_in_a_while() {
        let (metrics, told) = (Arc::new(Metrics::default()), RefusalLog::default());
        let is_news = |volume: &str, text: &str| {
            let call = RpcCall::begin(&metrics, "NodePublishVolume", volume);
            told.is_news(&call, &Status::not_found(text))
        };
        assert!(is_news("a", "no bucket"));
        assert!(!is_news("a", "no bucket"));
        assert!(is_news("b", "no bucket"));
        assert!(is_news("a", "no prefix"));
        tokio::time::advance(SAME).await;
        assert!(is_news("a", "no prefix"));
        for n in 0..2 * REMEMBERED {
            assert!(is_news(&n.to_string(), "no bucket"));
        }
        assert!(told.0.lock().unwrap().len() <= REMEMBERED);
    }
}
