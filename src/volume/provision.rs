//! Volumes of StorageClasses: a claim names a model, and the volume consists of that
//! model's attributes. Object Storage is never changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::watch;

use super::claims::ClaimReader;
use super::event_recorder;
use super::permit::{or_object, permit};
use super::records::{Records, VolumeRecord};
use super::template::{self, ClaimContext};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::model::{
    AttributeSource, Manifest, ModelRequest, RequestDigest, own_attributes, parse_attributes,
    plain_attributes, size_text,
};
use crate::policy::{Policy, Subject};
use crate::resolve::{Requester, Resolver, is_answered};

/// The prefix of every volume id, with the version of the form.
const ID_FORM: &str = "ocimodel-v1-";

/// The number of hex digits after the prefix.
const ID_DIGITS: usize = 40;

/// How many volumes are remembered, to distinguish a repeated call from one that differs.
const RECORDS: usize = 10_000;

/// The requested size of a volume, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// The minimum.
    pub required_bytes: u64,
    /// The maximum; not less than `required_bytes`.
    pub limit_bytes: Option<u64>,
}

impl Capacity {
    fn holds(&self, bytes: u64) -> bool {
        bytes >= self.required_bytes && self.limit_bytes.is_none_or(|limit| bytes <= limit)
    }
}

/// A parsed CreateVolume. It has no `Debug`, because its content is untrusted.
pub struct ProvisionRequest {
    /// The name of the volume: the same name means the same volume.
    pub name: String,
    /// The parameters of the StorageClass, and those that external-provisioner adds.
    pub parameters: HashMap<String, String>,
    /// The requested size.
    pub capacity: Capacity,
}

/// A volume that can be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// CSI volume id; see [`is_volume_id`].
    pub id: String,
    /// The size in bytes: max(required, size of the model).
    pub capacity_bytes: u64,
    /// The attributes that a publish will carry; the driver's own keys only.
    pub context: BTreeMap<String, String>,
}

/// Provisions volumes from StorageClass parameters.
///
/// The id depends only on the names of the driver and the volume. A record in memory
/// of the last 10,000 volumes makes the driver refuse the same name with other
/// parameters or an incompatible capacity. After a restart, or beyond that number,
/// such a request gets the same id with its own context. An annotation of the claim is
/// read once, by the first call for the volume; a later change affects only other
/// volumes.
pub struct Provisioner {
    resolver: Resolver,
    policy: watch::Receiver<Policy>,
    claims: ClaimReader,
    events: Events,
    driver_name: String,
    records: Records,
    pod_secrets: bool,
}

impl Provisioner {
    /// Creates a provisioner. It looks up models that `policy` allows through
    /// `resolver`, reads annotations through `claims`, and records in `events` why a
    /// claim gets no volume.
    pub fn new(
        resolver: Resolver,
        policy: watch::Receiver<Policy>,
        claims: ClaimReader,
        events: Events,
        driver_name: impl Into<String>,
    ) -> Self {
        let records = Records::new(RECORDS);
        let driver_name = driver_name.into();
        Self { resolver, policy, claims, events, driver_name, records, pod_secrets: false }
    }

    /// Makes volumes of buckets that the driver may not read, because pods may read them with
    /// their Secrets (`objectStorage.podSecrets`). External-provisioner does not pass on which
    /// volumes have one.
    #[must_use]
    pub fn with_pod_secrets(mut self, pod_secrets: bool) -> Self {
        self.pod_secrets = pod_secrets;
        self
    }

    /// Creates the volume of this name; the model must exist.
    ///
    /// Cancellation safe: a second call creates the same volume.
    ///
    /// # Errors
    /// `Invalid` for wrong parameters; `Denied` by the policy, even for a volume that
    /// exists; `InProgress` while another call for the name runs; `Conflict` if the
    /// volume was created with other parameters or an incompatible capacity;
    /// `OutOfRange` if the model is larger than the limit; `Precondition` if the pinned
    /// revision is not the current one; those of [`Resolver::resolve`] and of the API
    /// server.
    pub async fn create(&self, request: ProvisionRequest) -> Result<NewVolume> {
        let created = self.try_create(&request).await;
        if let Err(error) = &created {
            self.record_refusal(&request.parameters, &request.name, error);
        }
        created
    }

    /// Records in the events of the claim why it does not get the volume `name`.
    pub fn record_refusal(&self, parameters: &HashMap<String, String>, name: &str, error: &Error) {
        event_recorder::not_provisioned(&self.events, template::claim(parameters), name, error);
    }

    async fn try_create(&self, request: &ProvisionRequest) -> Result<NewVolume> {
        let parameters = &request.parameters;
        // The class must be valid whatever the claim says.
        attributes(parameters, ClaimContext::Any)?;
        let id = self.id_of(&request.name);
        let lock = self.records.enter(&id)?;
        let asked = asked(parameters)?;
        let created = self.records.get(&id);
        if let Some(created) = created.as_ref().filter(|created| created.asked != asked) {
            return Err(conflict(request, false, created.capacity_bytes));
        }
        let (model, context) = match &created {
            Some(created) => with_prefix(parameters, created.prefix.clone())?,
            None => self.attributes(parameters).await?,
        };
        let namespace = template::namespace(parameters);
        let caller = Requester::Claim { namespace };
        let asking = (Subject::Claim(namespace), caller);
        permit(&self.policy, &self.resolver, asking, &model).await?;
        if let Some(VolumeRecord { capacity_bytes, .. }) = created {
            if !request.capacity.holds(capacity_bytes) {
                return Err(conflict(request, true, capacity_bytes));
            }
            return Ok(NewVolume { id, capacity_bytes, context });
        }
        let capacity_bytes = self.capacity(&model, caller, request.capacity).await?;
        let prefix = context.get("prefix").cloned().unwrap_or_default();
        lock.remember(VolumeRecord { asked, digest: digest(&context), prefix, capacity_bytes });
        Ok(NewVolume { id, capacity_bytes, context })
    }

    /// Parses the parameters, with the claim's annotations if they use any.
    async fn attributes(&self, parameters: &HashMap<String, String>) -> Result<Attributes> {
        let prefix = parameters.get("prefix");
        if !prefix.is_some_and(|prefix| template::needs_annotations(prefix)) {
            return attributes(parameters, ClaimContext::Of(parameters));
        }
        let claim = template::claim(parameters)
            .ok_or_else(|| template::unknown_claim("pvc.annotations"))?;
        let annotations = self.claims.annotations(claim).await?;
        attributes(parameters, ClaimContext::Read(parameters, &annotations))
    }

    async fn capacity(
        &self,
        model: &ModelRequest,
        caller: Requester<'_>,
        wanted: Capacity,
    ) -> Result<u64> {
        if self.resolver.needs_pod(model).await? {
            // Only the pod's identity can check the model; errors appear when the pod starts.
            tracing::info!(
                model = model.title(),
                "only the pods' identities can read the model: not checked"
            );
            return Ok(wanted.required_bytes);
        }
        let manifest = match self.manifest(model, caller).await {
            Err(error) if self.pod_secrets && is_refusal(&error) => {
                tracing::info!(
                    model = model.title(),
                    %error,
                    "the driver may not read the model, and a pod with a Secret may: not checked"
                );
                return Ok(wanted.required_bytes);
            }
            manifest => manifest?,
        };
        if let Some(pinned) = model.revision.as_ref().filter(|&r| *r != manifest.revision) {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!(
                    "{} is revision {} now, not the pinned {pinned}; correct the parameter revision",
                    model.title(),
                    manifest.revision
                ),
            ));
        }
        let bytes = manifest.bytes();
        match wanted.limit_bytes {
            Some(limit) if bytes > limit => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{} has {} ({bytes} bytes), more than the limit of {limit} bytes; raise or \
                     remove the claim's limit",
                    model.title(),
                    size_text(bytes)
                ),
            )),
            _ => Ok(wanted.required_bytes.max(bytes)),
        }
    }

    async fn manifest(&self, model: &ModelRequest, caller: Requester<'_>) -> Result<Arc<Manifest>> {
        // The Controller caches nothing, so the scope does not matter.
        let route = self.resolver.route_of(caller, model, "").await?;
        let error = match self.resolver.resolve(model, &route).await {
            Ok(manifest) => return Ok(manifest),
            Err(error) => error,
        };
        let Requester::Claim { namespace } = caller else { return Err(error) };
        let asking = (Subject::Claim(namespace), caller);
        Err(or_object(&self.policy, &self.resolver, asking, (model, &route), error).await)
    }

    /// Forgets a volume. Never changes an object; accepts unknown ids.
    ///
    /// # Errors
    /// `InProgress` while another call for the volume runs.
    pub fn delete(&self, id: &str) -> Result<()> {
        if is_volume_id(id) {
            self.records.enter(id)?.forget();
        }
        Ok(())
    }

    /// Checks that the id can belong to a volume of this driver. Only its form is
    /// checked, since the record in memory ends with the process.
    ///
    /// # Errors
    /// `NotFound` for an id of another form.
    pub fn find(&self, id: &str) -> Result<()> {
        if is_volume_id(id) {
            return Ok(());
        }
        let shown: String = id.chars().take(150).collect();
        let text = format!(
            "volume {shown:?} is not one of {}: its ids have the form {ID_FORM} and {ID_DIGITS} \
             digits",
            self.driver_name
        );
        Err(Error::new(ErrorKind::NotFound, text))
    }

    /// Checks the parameters and the context of a volume; empty ones are not checked.
    ///
    /// # Errors
    /// `Invalid`, with the reason.
    pub fn validate(
        &self,
        id: &str,
        parameters: &HashMap<String, String>,
        context: &HashMap<String, String>,
    ) -> Result<()> {
        if !parameters.is_empty() {
            attributes(parameters, ClaimContext::Any)
                .map_err(|error| error.context("parameters"))?;
        }
        if context.is_empty() {
            return Ok(());
        }
        let (_, ours) = parse_attributes(context, AttributeSource::Administrator)
            .map_err(|error| error.context("volume_context"))?;
        match self.records.get(id) {
            Some(created) if created.digest != digest(&ours) => Err(Error::invalid(format!(
                "volume_context differs from the one that {id} was created with"
            ))),
            _ => Ok(()),
        }
    }

    fn id_of(&self, name: &str) -> String {
        let fields = [self.driver_name.as_str(), name].into_iter();
        let digest = RequestDigest::of_fields("oci-model-csi volume", fields);
        format!("{ID_FORM}{}", &digest.as_str()[..ID_DIGITS])
    }
}

/// Whether Object Storage refuses the driver's own identity. A listing that was answered and has
/// nothing to mount is another error: it has nothing for pods either.
fn is_refusal(error: &Error) -> bool {
    let refused = matches!(
        error.kind(),
        ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound
    );
    refused && !is_answered(error)
}

/// Whether an id has the form of those that [`Provisioner::create`] gives.
pub fn is_volume_id(id: &str) -> bool {
    id.strip_prefix(ID_FORM).is_some_and(|digits| {
        digits.len() == ID_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A model, and the attributes that a publish will carry.
type Attributes = (ModelRequest, BTreeMap<String, String>);

/// Parses the parameters of a StorageClass into attributes for a claim.
fn attributes(parameters: &HashMap<String, String>, claim: ClaimContext<'_>) -> Result<Attributes> {
    // Keys with a slash belong to Kubernetes; their values are not checked.
    let misplaced = parameters.iter().find(|(key, value)| {
        *key != "prefix" && !key.contains('/') && template::is_template(value)
    });
    if let Some((key, _)) = misplaced {
        let shown: String = key.chars().take(100).collect();
        return Err(Error::invalid(format!(
            "parameter {shown:?} has a ${{, but variables are replaced in prefix only"
        )));
    }
    match parameters.get("prefix") {
        Some(prefix) => with_prefix(parameters, template::expand(prefix, claim)?),
        None => parse_attributes(parameters, AttributeSource::Administrator),
    }
}

fn with_prefix(parameters: &HashMap<String, String>, prefix: String) -> Result<Attributes> {
    let mut expanded = parameters.clone();
    expanded.insert("prefix".to_owned(), prefix);
    parse_attributes(&expanded, AttributeSource::Administrator)
}

/// The digest by which two requests for a name are the same. Annotations count as
/// written in the class, together with the name of the claim.
fn asked(parameters: &HashMap<String, String>) -> Result<RequestDigest> {
    let mut ours = own_attributes(parameters);
    if let Some(prefix) = parameters.get("prefix") {
        ours.insert("prefix".to_owned(), template::expand(prefix, ClaimContext::Of(parameters))?);
        if template::needs_annotations(prefix) {
            let claim = template::claim(parameters).map(|claim| claim.to_string());
            ours.insert("claim".to_owned(), claim.unwrap_or_default());
        }
    }
    Ok(digest(&ours))
}

fn digest(context: &BTreeMap<String, String>) -> RequestDigest {
    let plain = plain_attributes(context);
    let fields = plain.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
    RequestDigest::of_fields("oci-model-csi volume context", fields)
}

fn conflict(request: &ProvisionRequest, same_parameters: bool, capacity_bytes: u64) -> Error {
    let name = &request.name;
    let text = if same_parameters {
        let Capacity { required_bytes, limit_bytes } = request.capacity;
        let limit = limit_bytes.map_or(String::new(), |limit| format!(" and at most {limit}"));
        format!(
            "volume {name} was created with {capacity_bytes} bytes, which is not at least \
             {required_bytes}{limit}; delete it first, or use another name"
        )
    } else {
        format!(
            "volume {name} was created with other parameters; delete it first, or use another name"
        )
    };
    Error::new(ErrorKind::Conflict, text)
}

#[cfg(test)]
#[path = "provision_tests.rs"]
mod tests;
