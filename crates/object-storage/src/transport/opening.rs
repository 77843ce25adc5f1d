//! The time limit of opening a connection, with all that it takes: addresses, a tunnel, TLS.

use std::error::Error as StdError;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use tower_service::Service;

use super::failure::HopFailure;
use super::hop::{Hop, HopConnector};

/// Opens connections to servers within a time limit. The pool opens some that no request waits
/// for any more, because another connection became free: only this limit ends them where a server
/// takes the connection and then says nothing.
#[derive(Clone)]
pub(super) struct OpeningLimit {
    connector: HttpsConnector<HopConnector>,
    limit: Duration,
}

impl OpeningLimit {
    pub(super) fn new(connector: HttpsConnector<HopConnector>, limit: Duration) -> Self {
        Self { connector, limit }
    }
}

impl Service<Uri> for OpeningLimit {
    type Response = MaybeHttpsStream<Hop>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let (opening, limit) = (self.connector.call(server), self.limit);
        async move {
            tokio::time::timeout(limit, opening).await.unwrap_or_else(|_| {
                let seconds = limit.as_secs_f64();
                Err(HopFailure::new(format!("TLS is not set up within {seconds} s"), None).into())
            })
        }
        .boxed()
    }
}
