//! Parses protobuf requests into the validated types of the use cases.
//!
//! All input is hostile until it is parsed. Never log it: requests carry secrets
//! and tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::capability;
use super::proto::{CapacityRange, CreateVolumeRequest, NodePublishVolumeRequest};
use super::target::{self, ConfinedTarget};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    AttributeSource, PodIdentity, PodTokens, RequestDigest, has_pod_secret, own_attributes,
    parse_attributes, parse_pod_secret, plain_attributes,
};
use crate::volume::{Capacity, IncomingPublish, ProvisionRequest, PublishKey, PublishRequest};

/// The longest accepted volume id, in bytes: twice the minimum of the specification.
const ID_BYTES: usize = 256;

/// The longest accepted volume name, in bytes (CSI specification, "Size Limits").
const NAME_BYTES: usize = 128;

/// Set by kubelet: `true` for an inline volume, `false` for a PersistentVolume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// Set by kubelet if the CSIDriver object has `tokenRequests`: in the secrets with
/// `serviceAccountTokenInSecrets`, otherwise in the context.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Set by kubelet with `podInfoOnMount`.
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";

/// The same.
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";

/// A publish whose Secret and tokens are wiped from memory when it is dropped.
pub(super) struct WipedRequest(NodePublishVolumeRequest);

impl WipedRequest {
    pub(super) fn new(request: NodePublishVolumeRequest) -> Self {
        Self(request)
    }

    pub(super) fn get(&self) -> &NodePublishVolumeRequest {
        &self.0
    }
}

impl Drop for WipedRequest {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl ZeroizeOnDrop for WipedRequest {}

/// Wipes what is secret in a publish.
fn wipe(request: &mut NodePublishVolumeRequest) {
    request.secrets.values_mut().for_each(Zeroize::zeroize);
    if let Some(tokens) = request.volume_context.get_mut(TOKENS) {
        tokens.zeroize();
    }
}

/// Validates a volume id.
///
/// # Errors
/// `Invalid` if it is missing, longer than 256 bytes, or has control characters.
pub(super) fn volume_id(id: &str) -> Result<&str> {
    plain("volume_id", id, ID_BYTES)
}

fn plain<'a>(field: &str, text: &'a str, most: usize) -> Result<&'a str> {
    if text.is_empty() {
        return Err(Error::invalid(format!("{field} is missing")));
    }
    if text.len() > most {
        let length = text.len();
        return Err(Error::invalid(format!(
            "{field} is {length} bytes long; the maximum is {most}"
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{field} contains a control character")));
    }
    Ok(text)
}

/// Parses a publish. Blocks, to check for symbolic links. `pod_secrets` is whether pods may
/// present Secrets (`objectStorage.podSecrets`).
///
/// Only an identity that cannot be this driver's is an error. Other mistakes are in
/// [`IncomingPublish::request`]: kubelet repeats the call for every running pod, and a
/// stricter schema of today must not refuse those.
///
/// # Errors
/// `Invalid` if the volume id or the target path cannot be this driver's.
pub(super) fn publish(
    request: &NodePublishVolumeRequest,
    kubelet_dir: &Path,
    pod_secrets: bool,
) -> Result<IncomingPublish> {
    let target = target::confine(&request.target_path, kubelet_dir)?;
    let volume_id = volume_id(&request.volume_id)?.to_owned();
    let context = &request.volume_context;
    let inline = context.get(EPHEMERAL).is_some_and(|value| value == "true");
    let pod = pod_identity(context, &target);
    let parsed =
        check_secrets(request, pod_secrets).and_then(|()| publish_request(request, inline, &pod));
    let flags = capability::flags_as_written(request.volume_capability.as_ref());
    let own = own_attributes(context);
    let key = PublishKey {
        volume_id,
        target: target.path,
        digest: digest(&plain_attributes(&own), &flags, inline),
        as_written: digest(&own, &flags, inline),
    };
    Ok(IncomingPublish { key, pod: pod.ok().flatten(), request: parsed })
}

/// Parses what a publish asks for.
///
/// # Errors
/// `Invalid`, with what to write instead.
fn publish_request(
    request: &NodePublishVolumeRequest,
    inline: bool,
    pod: &Result<Option<PodIdentity>>,
) -> Result<PublishRequest> {
    let capability = capability::parse(request.volume_capability.as_ref())?;
    let pod = pod.as_ref().map_err(Error::clone)?;
    if inline && !request.readonly {
        return Err(Error::invalid(
            "an inline volume of this driver needs readOnly: true next to its driver: line \
             (otherwise the container runtime would relabel files that other pods share)",
        ));
    }
    if inline && !capability.flags.is_empty() {
        return Err(Error::invalid("an inline volume may not set mount options"));
    }
    let context = &request.volume_context;
    let source = source(inline, pod.as_ref());
    let (model, _) = parse_attributes(context, source).map_err(|error| {
        if inline || source == AttributeSource::Administrator {
            return error;
        }
        error.context(
            "kubelet does not send the pod's identity (set podInfoOnMount: true in the CSIDriver \
             object), so only the attributes that pods may use are allowed",
        )
    })?;
    let tokens = request.secrets.get(TOKENS).or_else(|| context.get(TOKENS));
    let tokens = tokens.filter(|tokens| !tokens.is_empty()).map(PodTokens::new);
    let secret = parse_pod_secret(&request.secrets)?;
    Ok(PublishRequest { model, tokens, secret, options: capability.options() })
}

/// Checks that the volume has a Secret only if the administrator allows it. Ignoring the Secret
/// would read the bucket as another identity than its author meant.
///
/// # Errors
/// `Denied`, with the setting.
fn check_secrets(request: &NodePublishVolumeRequest, allowed: bool) -> Result<()> {
    if allowed || !has_pod_secret(&request.secrets) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Denied,
        "the volume has a Secret (nodePublishSecretRef), and pods may not read with Secrets here: \
         remove it, or the administrator sets objectStorage.podSecrets: true",
    ))
}

/// Who wrote the attributes. Without pod information that is proven to be kubelet's,
/// the mark of an inline volume could be missing, so a pod's author may have
/// written them.
fn source(inline: bool, pod: Option<&PodIdentity>) -> AttributeSource {
    match pod {
        Some(_) if !inline => AttributeSource::Administrator,
        _ => AttributeSource::Pod,
    }
}

/// The pod that a call names, as `namespace/name`: for messages only, since a pod's author
/// may have written it.
pub(super) fn pod_of(context: &HashMap<String, String>) -> Option<String> {
    let get = |key: &str| context.get(key).filter(|value| !value.is_empty());
    let (namespace, name) = (get(POD_NAMESPACE)?, get(POD_NAME)?);
    Some(format!("{namespace}/{name}"))
}

/// The pod, if kubelet's information can be trusted: a pod's author can write these
/// keys if kubelet does not, but cannot know the UID in the path.
fn pod_identity(
    context: &HashMap<String, String>,
    target: &ConfinedTarget,
) -> Result<Option<PodIdentity>> {
    let get = |key: &str| context.get(key).filter(|value| !value.is_empty()).cloned();
    let Some(uid) = get("csi.storage.k8s.io/pod.uid") else { return Ok(None) };
    if uid != target.pod_uid {
        return Err(Error::invalid(format!(
            "csi.storage.k8s.io/pod.uid is {:?}, but target_path belongs to pod {:?}; only kubelet \
             may set this attribute",
            uid.chars().take(100).collect::<String>(),
            target.pod_uid
        )));
    }
    let name = get(POD_NAME);
    let namespace = get(POD_NAMESPACE);
    let (Some(name), Some(namespace)) = (name, namespace) else { return Ok(None) };
    let service_account = get("csi.storage.k8s.io/serviceAccount.name").unwrap_or_default();
    Ok(Some(PodIdentity { namespace, name, uid, service_account }))
}

/// The digest by which two publishes of a target are the same. It covers the driver's
/// own keys only: tokens and the pod's keys differ with each call.
fn digest(
    attributes: &BTreeMap<String, String>,
    flags: &BTreeSet<&str>,
    inline: bool,
) -> RequestDigest {
    let count = attributes.len().to_string();
    let pairs = attributes.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
    let fields = [count.as_str()].into_iter().chain(pairs).chain(flags.iter().copied());
    let kind = if inline { "ephemeral" } else { "persistent" };
    RequestDigest::of_fields("oci-model-csi publish", fields.chain([kind]))
}

/// Parses a CreateVolume.
///
/// # Errors
/// `Invalid`, with what to write instead.
pub(super) fn provision(request: &CreateVolumeRequest) -> Result<ProvisionRequest> {
    let name = plain("name", &request.name, NAME_BYTES)?.to_owned();
    if request.volume_capabilities.is_empty() {
        return Err(Error::invalid("volume_capabilities are missing"));
    }
    capability::check_all(&request.volume_capabilities)?;
    if request.volume_content_source.is_some() {
        return Err(Error::invalid(
            "a volume's content comes from the bucket; it cannot be created from a snapshot or \
             another volume: remove dataSource from the claim",
        ));
    }
    if !request.mutable_parameters.is_empty() {
        return Err(Error::invalid(
            "mutable parameters are not supported: remove volumeAttributesClassName from the claim",
        ));
    }
    let parameters = request.parameters.clone();
    Ok(ProvisionRequest { name, parameters, capacity: capacity(request.capacity_range)? })
}

fn capacity(range: Option<CapacityRange>) -> Result<Capacity> {
    let Some(range) = range else { return Ok(Capacity::default()) };
    let bytes = |field: &str, value: i64| {
        u64::try_from(value).map_err(|_| Error::invalid(format!("{field} {value} is negative")))
    };
    let required_bytes = bytes("required_bytes", range.required_bytes)?;
    let limit_bytes = bytes("limit_bytes", range.limit_bytes)?;
    let limit_bytes = (limit_bytes > 0).then_some(limit_bytes);
    if limit_bytes.is_some_and(|limit| limit < required_bytes) {
        return Err(Error::invalid(format!(
            "limit_bytes {} is less than required_bytes {required_bytes}",
            range.limit_bytes
        )));
    }
    Ok(Capacity { required_bytes, limit_bytes })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
