//! What all methods have in common: each is measured, and told in one line.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use super::status;
use crate::metrics::Metrics;

/// A call at work. Dropping it unanswered is what tonic does when the
/// caller's deadline passes, and is counted as that.
pub(super) struct Call {
    metrics: Arc<Metrics>,
    method: &'static str,
    volume_id: String,
    started: Instant,
    answered: bool,
}

impl Call {
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

    /// Counts and tells the answer, and gives it on.
    pub(super) fn answer<T>(mut self, result: Result<T, Status>) -> Result<Response<T>, Status> {
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

impl Drop for Call {
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
            let call = $crate::csi::rpc::Call::begin(&self.metrics, $method, "");
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
        Call::begin(&metrics, "Probe", "").answer(Ok(())).unwrap();
        let failed = Err(Status::from(Error::invalid("no")));
        Call::begin(&metrics, "Probe", "").answer::<()>(failed).unwrap_err();
        assert_eq!(count_of(&metrics, "OK"), 1);
        assert_eq!(count_of(&metrics, "InvalidArgument"), 1);
        assert_eq!(count_of(&metrics, "DeadlineExceeded"), 0);
    }

    #[test]
    fn a_call_that_was_cut_off_is_counted_too() {
        let metrics = Arc::new(Metrics::default());
        drop(Call::begin(&metrics, "Probe", ""));
        assert_eq!(count_of(&metrics, "DeadlineExceeded"), 1);
    }
}
