//! StorageClass volumes: a claim names a model, and the volume is that model's
//! attributes. Nothing is made in Object Storage, so nothing is ever deleted.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::watch;

use super::claims::ClaimReader;
use super::event_recorder;
use super::permit::permit;
use super::records::{Records, VolumeRecord};
use super::template::{self, ClaimContext};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::model::{
    AttributeSource, ModelRequest, RequestDigest, own_attributes, parse_attributes,
    plain_attributes, size_text,
};
use crate::policy::{Policy, Subject};
use crate::resolve::Requester;
use crate::resolve::Resolver;

/// What every id of ours begins with; the digits tell the form's version.
const ID_FORM: &str = "ocimodel-v1-";

/// Hex digits after it.
const ID_DIGITS: usize = 40;

/// Volumes remembered, to tell a repeated call from one that differs.
const RECORDS: usize = 10_000;

/// How large a volume is to be, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// At least.
    pub required_bytes: u64,
    /// At most; not less than `required_bytes`.
    pub limit_bytes: Option<u64>,
}

impl Capacity {
    fn holds(&self, bytes: u64) -> bool {
        bytes >= self.required_bytes && self.limit_bytes.is_none_or(|limit| bytes <= limit)
    }
}

/// A CreateVolume, parsed. No `Debug`: it is written by others.
pub struct ProvisionRequest {
    /// Unique for a volume: the same name is the same volume.
    pub name: String,
    /// Of the StorageClass, with what external-provisioner adds.
    pub parameters: HashMap<String, String>,
    /// How large.
    pub capacity: Capacity,
}

/// A volume that can be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// CSI volume id; see [`is_volume_id`].
    pub id: String,
    /// max(required, size of the model).
    pub capacity_bytes: u64,
    /// The attributes that a publish will carry; our own keys only.
    pub context: BTreeMap<String, String>,
}

/// Makes volumes of StorageClass parameters.
///
/// The id follows from the driver's and the volume's name alone. That the same
/// name with other parameters or an incompatible capacity is refused comes
/// from a record in memory of the last 10,000 volumes: after a restart, or
/// beyond that number, such a request gets the same id and its own context.
/// An annotation of the claim is read once, for the first call that makes the
/// volume; what it says later is for other volumes.
pub struct Provisioner {
    resolver: Resolver,
    policy: watch::Receiver<Policy>,
    claims: ClaimReader,
    events: Events,
    driver_name: String,
    records: Records,
}

impl Provisioner {
    /// Asks Object Storage through `resolver` whether models exist that
    /// `policy` allows; `claims` have the annotations that name them, and
    /// `events` tell a claim why it gets none.
    pub fn new(
        resolver: Resolver,
        policy: watch::Receiver<Policy>,
        claims: ClaimReader,
        events: Events,
        driver_name: impl Into<String>,
    ) -> Self {
        let records = Records::new(RECORDS);
        Self { resolver, policy, claims, events, driver_name: driver_name.into(), records }
    }

    /// The volume of this name; the model has to exist.
    ///
    /// Cancellation safe: a second call makes the same volume.
    ///
    /// # Errors
    /// `Invalid` for wrong parameters; `Denied` by the policy, also for a
    /// volume that was made before; `InProgress` while another call is at
    /// work on the name; `Conflict` when it was made of other parameters or
    /// with a capacity that does not fit; `OutOfRange` when the model is
    /// larger than the limit; `Precondition` when the pinned revision is not
    /// the bucket's; what [`Resolver::resolve`] and the API server say.
    pub async fn create(&self, request: ProvisionRequest) -> Result<NewVolume> {
        let made = self.try_create(&request).await;
        if let Err(error) = &made {
            self.tell_refused(&request.parameters, &request.name, error);
        }
        made
    }

    /// Tells the claim of these parameters why no volume `name` is made for it.
    pub fn tell_refused(&self, parameters: &HashMap<String, String>, name: &str, error: &Error) {
        event_recorder::not_made(&self.events, template::claim(parameters), name, error);
    }

    async fn try_create(&self, request: &ProvisionRequest) -> Result<NewVolume> {
        let parameters = &request.parameters;
        // Whatever the claim says: the class has to be right.
        attributes(parameters, ClaimContext::Any)?;
        let id = self.id_of(&request.name);
        let busy = self.records.enter(&id)?;
        let asked = asked(parameters)?;
        let made = self.records.get(&id);
        if let Some(made) = made.as_ref().filter(|made| made.asked != asked) {
            return Err(conflict(request, false, made.capacity_bytes));
        }
        let (model, context) = match &made {
            Some(made) => with_prefix(parameters, made.prefix.clone())?,
            None => self.attributes(parameters).await?,
        };
        let namespace = template::namespace(parameters);
        let caller = Requester::Claim { namespace };
        let asking = (Subject::Claim(namespace), caller);
        permit(&self.policy, &self.resolver, asking, &model).await?;
        if let Some(VolumeRecord { capacity_bytes, .. }) = made {
            return match request.capacity.holds(capacity_bytes) {
                true => Ok(NewVolume { id, capacity_bytes, context }),
                false => Err(conflict(request, true, capacity_bytes)),
            };
        }
        let capacity_bytes = self.capacity(&model, caller, request.capacity).await?;
        let prefix = context.get("prefix").cloned().unwrap_or_default();
        busy.remember(VolumeRecord { asked, digest: digest(&context), prefix, capacity_bytes });
        Ok(NewVolume { id, capacity_bytes, context })
    }

    /// What the parameters come to, with the claim's annotations where they ask for some.
    async fn attributes(&self, parameters: &HashMap<String, String>) -> Result<Attributes> {
        let needy = parameters.get("prefix").filter(|prefix| template::needs_annotations(prefix));
        if needy.is_none() {
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
            // Only the pod may look; it is told what is wrong when it starts.
            tracing::info!(model = model.title(), "its pods' identities read it: not looked at");
            return Ok(wanted.required_bytes);
        }
        // The scope names cached copies, of which there are none here.
        let route = self.resolver.route_of(caller, model, "").await?;
        let manifest = self.resolver.resolve(model, &route).await?;
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
                    "{} is {} ({bytes} bytes) large, more than the limit of {limit} bytes; raise \
                     the claim's limit or leave it out",
                    model.title(),
                    size_text(bytes)
                ),
            )),
            _ => Ok(wanted.required_bytes.max(bytes)),
        }
    }

    /// Forgets a volume. Never touches an object; unknown ids are fine.
    ///
    /// # Errors
    /// `InProgress` while another call is at work on it.
    pub fn delete(&self, id: &str) -> Result<()> {
        if is_volume_id(id) {
            self.records.enter(id)?.forget();
        }
        Ok(())
    }

    /// Whether the id can be a volume's of this driver: the record in memory
    /// ends with the process, so the form has to be enough.
    ///
    /// # Errors
    /// `NotFound` for an id of another form.
    pub fn find(&self, id: &str) -> Result<()> {
        if is_volume_id(id) {
            return Ok(());
        }
        let shown: String = id.chars().take(150).collect();
        let text = format!(
            "volume {shown:?} is not one of {}: its ids are {ID_FORM} and {ID_DIGITS} digits",
            self.driver_name
        );
        Err(Error::new(ErrorKind::NotFound, text))
    }

    /// Whether these are parameters and a context that a volume can have.
    /// Empty ones were not given.
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong.
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
            Some(made) if made.digest != digest(&ours) => Err(Error::invalid(format!(
                "volume_context is not the one that {id} was made with"
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

/// Whether an id has the form of those that [`Provisioner::create`] gives.
pub fn is_volume_id(id: &str) -> bool {
    id.strip_prefix(ID_FORM).is_some_and(|digits| {
        digits.len() == ID_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A model, and what a publish will carry of it.
type Attributes = (ModelRequest, BTreeMap<String, String>);

/// The attributes that parameters mean for a claim.
fn attributes(parameters: &HashMap<String, String>, claim: ClaimContext<'_>) -> Result<Attributes> {
    // Keys of Kubernetes have a slash, and their values are not ours to judge.
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

/// What makes two requests of a name the same. Annotations count as they are
/// written in the class, together with the claim that has them.
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
            "volume {name} was made with {capacity_bytes} bytes, which is not at least \
             {required_bytes}{limit}; delete it first, or use another name"
        )
    } else {
        format!(
            "volume {name} was made with other parameters; delete it first, or use another name"
        )
    };
    Error::new(ErrorKind::Conflict, text)
}

#[cfg(test)]
#[path = "provision_tests.rs"]
mod tests;
