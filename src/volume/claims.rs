//! Reads claims from the API server: one at a time, and only for a StorageClass that
//! uses their annotations.

use std::collections::HashMap;

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::http_error::HttpMeaning;
use crate::kubernetes::{ApiFailure, ApiServer, path};
use crate::text::shown;

/// Reads claims; cheap to clone. The default knows no API server.
#[derive(Debug, Clone, Default)]
pub struct ClaimReader(Option<ApiServer>);

/// The name of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClaimName<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl ClaimReader {
    /// Creates a reader of claims from this API server.
    pub fn of(server: Option<ApiServer>) -> Self {
        Self(server)
    }

    /// The annotations of a claim.
    ///
    /// # Errors
    /// `NotFound` if the claim is gone; `Denied` and `Unauthenticated` if the API
    /// server refuses; `Unavailable` if it cannot be reached; `Invalid` if no API
    /// server is configured.
    pub(super) async fn annotations(
        &self,
        claim: ClaimName<'_>,
    ) -> Result<HashMap<String, String>> {
        let Some(server) = &self.0 else {
            return Err(Error::invalid(
                "annotations of a claim are read from the Kubernetes API, and this driver knows \
                 none: run it in the cluster, or name one with --kubernetes-api",
            ));
        };
        let ClaimName { namespace, name } = claim;
        let path = path(["api", "v1", "namespaces", namespace, "persistentvolumeclaims", name]);
        let object = server.get(&path).await.map_err(|failure| refusal(claim, &failure))?;
        let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
        let text =
            |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        Ok(annotations.filter_map(text).collect())
    }
}

impl std::fmt::Display for ClaimName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", shown(self.namespace, 63), shown(self.name, 253))
    }
}

fn refusal(claim: ClaimName<'_>, failure: &ApiFailure) -> Error {
    if failure.is_not_found() {
        let text = format!("claim {claim}, whose annotation names the model, no longer exists");
        return Error::new(ErrorKind::NotFound, text);
    }
    let (kind, remedy) = match failure.meaning() {
        Some(HttpMeaning::Forbidden) => (
            ErrorKind::Denied,
            "its ClusterRole has to allow get of persistentvolumeclaims: apply the one of \
             deploy/kustomize/base/rbac-controller.yaml, or rbac.create=true of the chart",
        ),
        Some(HttpMeaning::Unauthenticated) => (
            ErrorKind::Unauthenticated,
            "the API server does not know the token of the driver's service account",
        ),
        _ => (ErrorKind::Unavailable, "it will be asked again"),
    };
    Error::new(
        kind,
        format!("the Controller reads claim {claim} for its annotations: {failure}; {remedy}"),
    )
}
