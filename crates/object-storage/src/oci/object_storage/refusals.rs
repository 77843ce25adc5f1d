//! Refusals of the service: what they mean, and what to do about them.

use http::{HeaderMap, response};

use super::ObjectStorageInner;
use super::remedies::{Reader, remedy};
use super::request::UnsignedRequest;
use crate::http_error::{HttpError, HttpMeaning, header_text};
use crate::oci::clock::skew_remedy;
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, proxy_login_remedy, refused, storage_kind};
use crate::oci::identity::own_account::ServiceAccount;
use crate::text::excerpt;

/// What to do about a redirect: Object Storage sends none.
const REDIRECTED: &str = "a proxy, a portal or another service answers in place of Object Storage: \
                          check the endpoint, and what is between it and this node";

impl ObjectStorageInner {
    /// The error for an answer outside 2xx.
    pub(super) fn refusal(
        &self,
        call: &UnsignedRequest<'_>,
        endpoint: &Endpoint,
        parts: &response::Parts,
        body: &[u8],
    ) -> StorageError {
        let now = self.clock.now();
        let answer = HttpError::of_json(parts.status, &parts.headers, body, now);
        let kind = storage_kind(&answer);
        let remedy = match answer.meaning() {
            HttpMeaning::Unauthenticated => skew_remedy(now, &parts.headers, "Object Storage")
                .or_else(|| Some(self.reader().unauthenticated())),
            HttpMeaning::LoginRequired => Some(self.login_remedy(&parts.headers, endpoint)),
            _ if answer.redirect.is_some() => Some(REDIRECTED.to_owned()),
            _ => {
                let code = answer.code.as_deref();
                remedy(kind, code, call.bucket, call.writes(), &self.reader())
            }
        };
        let attempted = self.attempted_at(call, endpoint);
        refused(kind, attempted, answer).with_known_remedy(remedy)
    }

    fn login_remedy(&self, headers: &HeaderMap, endpoint: &Endpoint) -> String {
        if let Some(proxy) = self.proxy(endpoint).filter(|_| !endpoint.is_https()) {
            return proxy_login_remedy(proxy.named_by(), proxy.secret().is_some());
        }
        let how = header_text(headers, "proxy-authenticate");
        let how = how.map(|how| format!(" ({})", excerpt(how, 80))).unwrap_or_default();
        format!(
            "a proxy between this node and Object Storage asks for a login{how}: let {} through \
             without one, exempt it from the proxy, or name the proxy with its login \
             (objectStorage.proxy, HTTPS_PROXY)",
            endpoint.host()
        )
    }

    /// As whom it reads.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            method: self.method,
            principal: self.principal.as_ref(),
            own_account: self.own_account(),
            has_par: self.par.is_some(),
        }
    }

    /// The service account of this process, where that sends the requests.
    pub(in crate::oci) fn own_account(&self) -> Option<ServiceAccount> {
        self.own_account.as_ref().map(|own| own.name())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::oci::test_server::{ScriptedAnswer, TestServer};
    use crate::oci::{Environment, ObjectStorage, Settings};
    use crate::source::{AuthMethod, Bucket};

    #[tokio::test]
    async fn the_refusals_of_the_service_are_reviewed() {
        let mut texts = Vec::new();
        for (status, code) in [
            (400, "InvalidParameter"),
            (401, "NotAuthenticated"),
            (403, "NotAllowed"),
            (404, "BucketNotFound"),
            (404, "ObjectNotFound"),
            (407, "ProxyAuthenticationRequired"),
            (409, "NotRestored"),
            (412, "IfMatchFailed"),
            (413, "PayloadTooLarge"),
            (429, "TooManyRequests"),
            (500, "InternalServerError"),
        ] {
            let server = TestServer::start(move |_, _| ScriptedAnswer::refusal(status, code)).await;
            let settings = Settings {
                endpoint: Some(server.url.clone()),
                environment: Environment::empty(),
                ..Settings::new(AuthMethod::None)
            };
            let client = ObjectStorage::connect(settings).await.unwrap();
            let object = Arc::new(Bucket::new("ns", "models")).object("phi3/config.json");
            let error = client.get_object(&object, "e", None).await.unwrap_err().to_string();
            // The port differs with each run.
            texts.push(error.replace(server.url.trim_start_matches("http://"), "HOST"));
        }
        insta::assert_snapshot!(texts.join("\n"));
    }
}
