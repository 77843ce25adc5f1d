//! The bucket, its objects, and what lets an identity read them.

use std::sync::Arc;
use std::time::Duration;

use super::{ReadableObjects, identity, of_storage};
use crate::browse;
use crate::doctor::speed::SpeedObject;
use crate::doctor::{CheckId, Finding};
use crate::error::ErrorKind;
use crate::model::{ModelRequest, counted, size_text};
use crate::oci::{BucketFacts, ObjectStorage, Principal, key_statement, matching_rule};
use crate::resolve::{Resolver, nearest_buckets};
use crate::source::{
    AuthMethod, Bucket, ObjectName, ObjectSource, ObjectSummary, StorageError, StorageErrorKind,
};

/// One page of a listing is enough to see whether listing works.
const FIRST_PAGE: usize = 1000;

/// How many models with problems are described.
const NAMED: usize = 10;

/// How long the objects under the prefix may take to list: some millions.
const LISTING_LIMIT: Duration = Duration::from_secs(60);

/// Why a bucket cannot be looked at with the driver's identity.
pub(super) const ONLY_PODS: &str =
    "each pod reads it as its own service account, so only a pod can show it";

/// What looks at a bucket.
pub(super) struct Asker<'a> {
    pub(super) resolver: &'a Resolver,
    /// The driver's own client.
    pub(super) client: &'a ObjectStorage,
    pub(super) principal: Principal,
}

/// What is known of a bucket and of how to read it.
struct BucketView {
    bucket: Arc<Bucket>,
    source: Arc<dyn ObjectSource>,
    facts: BucketFacts,
    region: String,
}

impl Asker<'_> {
    /// Lists the model, reads a byte of it, and looks at its objects.
    pub(super) async fn look(
        &self,
        request: &ModelRequest,
        findings: &mut Vec<Finding>,
    ) -> Option<ReadableObjects> {
        let as_account = self.principal.service_account.is_some();
        if !as_account && self.resolver.needs_pod(request).await.unwrap_or(false) {
            findings.push(Finding::skipped(CheckId::Bucket, ONLY_PODS));
            return None;
        }
        let (view, prefix) = match self.view(request).await {
            Ok(view) => view,
            Err(error) => {
                findings.push(Finding::of_error(CheckId::Bucket, &error));
                return None;
            }
        };
        let mut pages = view.source.pages(&view.bucket, &prefix, FIRST_PAGE);
        let objects = match pages.next().await {
            Ok(page) => page.unwrap_or_default(),
            Err(error) => {
                findings.push(self.listing_refused(&view, &error).await);
                return None;
            }
        };
        drop(pages);
        let what = format!("{} can be listed", view.bucket);
        findings.push(Finding::fine(CheckId::Bucket, what));
        let readable = match sample(&objects) {
            Some(object) => {
                let read = self.read(&view, object).await;
                let is_fine = read.severity == crate::doctor::Severity::Fine;
                findings.push(read);
                is_fine
            }
            None => false,
        };
        findings.extend(self.model(request).await);
        readable.then(|| {
            let objects = objects.into_iter().filter(|object| !object.is_archived());
            let of_bucket = |object: ObjectSummary| SpeedObject {
                name: ObjectName::new(Arc::clone(&view.bucket), object.name),
                etag: object.etag,
                size: object.size,
            };
            ReadableObjects {
                objects: objects.map(of_bucket).collect(),
                source: view.source,
                shape: self.principal.shape.clone(),
            }
        })
    }

    async fn view(&self, request: &ModelRequest) -> crate::Result<(BucketView, String)> {
        let route = self.resolver.route(request, "").await?;
        let model = self.resolver.source(request, &route).await?;
        let bucket = Arc::new(Bucket::new(model.namespace.as_str(), model.bucket.as_str()));
        let source = Arc::clone(route.client());
        // An identity that may only read objects is refused, and the statements have a gap.
        let region = source.location().await.unwrap_or_default();
        // The driver's identity may read buckets elsewhere, too.
        let is_own = source.is(self.client) && self.client.location().await? == region;
        let facts = match is_own {
            true => self.client.bucket_facts(&bucket).await.unwrap_or_default(),
            false => BucketFacts::default(),
        };
        Ok((BucketView { bucket, source, facts, region }, model.prefix.as_str().to_owned()))
    }

    /// What lets the identity read the bucket, with what is known filled in.
    fn how_to_allow(&self, view: &BucketView) -> String {
        let method = view.source.method();
        let bucket = view.bucket.name.as_str();
        let compartment = view.facts.compartment_id.as_deref();
        let statement = match view.source.is(self.client) {
            true => self.client.statement(bucket, compartment),
            false => view.source.how_to_allow(bucket),
        };
        match (method, &self.principal) {
            (AuthMethod::InstancePrincipal, Principal { compartment: Some(own), .. }) => format!(
                "a dynamic group with the matching rule {}, and in the bucket's compartment or \
                 above it the policy {statement}",
                matching_rule(own)
            ),
            (AuthMethod::ApiKey, Principal { user: Some(user), .. }) => {
                format!("a group with the user {user}, and the policy {statement}")
            }
            _ => statement,
        }
    }

    async fn listing_refused(&self, view: &BucketView, error: &StorageError) -> Finding {
        match error.kind() {
            StorageErrorKind::NotFound => {
                let nearest = nearest_buckets(&*view.source, &view.bucket).await;
                let nearest = nearest.map(|names| format!("the nearest buckets are {names}; "));
                let fix = format!(
                    "{}compare bucket, namespace and region letter by letter: Object Storage \
                     answers 404 too where reading is not allowed; to allow it: {}",
                    nearest.unwrap_or_default(),
                    self.how_to_allow(view)
                );
                let mut finding = of_storage(CheckId::Bucket, error);
                finding.fix = Some(fix);
                finding
            }
            StorageErrorKind::Forbidden => {
                let mut finding = of_storage(CheckId::Bucket, error);
                finding.fix = Some(format!("to allow it: {}", self.how_to_allow(view)));
                finding
            }
            StorageErrorKind::Unauthenticated => {
                identity::refused(CheckId::Bucket, self.client, error)
            }
            _ => of_storage(CheckId::Bucket, error),
        }
    }

    /// Reads the first byte of an object: a HEAD needs less than a GET.
    async fn read(&self, view: &BucketView, object: &ObjectSummary) -> Finding {
        let name = ObjectName::new(Arc::clone(&view.bucket), object.name.as_str());
        let read = view.source.may_read(&name, Some(&object.etag), object.size == 0).await;
        let error = match read {
            Ok(()) => {
                let what = format!("{} can be read", object.name);
                return Finding::fine(CheckId::Read, what);
            }
            Err(error) => error,
        };
        let is_refusal =
            matches!(error.kind(), StorageErrorKind::NotFound | StorageErrorKind::Forbidden);
        let mut finding = of_storage(CheckId::Read, &error);
        if is_refusal {
            finding.fix = Some(format!(
                "the bucket can be listed, and its objects cannot be read (or this one was just \
                 deleted: run it again): a policy with `inspect objects` is not enough; to allow it: {}; {}",
                self.how_to_allow(view),
                key_advice(view)
            ));
            finding.kind = ErrorKind::Denied;
        }
        finding
    }

    /// The model's objects: what loaders or the driver would refuse.
    async fn model(&self, request: &ModelRequest) -> Vec<Finding> {
        let listing = browse::models(self.resolver, request, None);
        let models = match tokio::time::timeout(LISTING_LIMIT, listing).await {
            Ok(Ok(models)) => models,
            Ok(Err(error)) => return vec![Finding::of_error(CheckId::Model, &error)],
            Err(_) => {
                let seconds = LISTING_LIMIT.as_secs();
                let what = format!(
                    "the listing was not complete after {seconds} s, and was left: name one model, \
                     or use `oci-model-csi ls`, which takes as long as it needs"
                );
                return vec![Finding::skipped(CheckId::Model, what)];
            }
        };
        let (mut findings, mut objects, mut bytes) = (Vec::new(), 0, 0_u64);
        let faulty = models.iter().filter(|model| !model.problems.is_empty()).count();
        let mut named = 0;
        for model in &models {
            objects += model.objects;
            bytes = bytes.saturating_add(model.bytes);
            if !model.problems.is_empty() {
                named += 1;
            }
            if named > NAMED {
                continue;
            }
            for problem in &model.problems {
                let what = format!("{}: {}", model.prefix, problem.described());
                let fix = problem.fix();
                findings.push(match problem.kind.is_fatal() {
                    true => {
                        Finding::fault(CheckId::Model, what, fix).meaning(ErrorKind::Precondition)
                    }
                    false => Finding::warning(CheckId::Model, what, fix),
                });
            }
        }
        if faulty > NAMED {
            let what = format!("{} more have problems", counted(faulty - NAMED, "model"));
            findings.push(Finding::warning(CheckId::Model, what, "`oci-model-csi ls` lists them"));
        }
        if findings.is_empty() {
            let models = counted(models.len(), "model");
            let objects = counted(objects, "object");
            let what = format!("{models} with {objects}, {}, nothing wrong", size_text(bytes));
            findings.push(Finding::fine(CheckId::Model, what));
        }
        findings
    }
}

/// The object to read: one with bytes that is not archived, else any.
fn sample(objects: &[ObjectSummary]) -> Option<&ObjectSummary> {
    let usable = |object: &&ObjectSummary| object.size > 0 && !object.is_archived();
    objects.iter().find(usable).or_else(|| objects.first())
}

/// The region in a statement; where an endpoint is configured, no region is known.
fn region_name(location: &str) -> &str {
    if location.is_empty() || location.contains("://") { "<region>" } else { location }
}

/// What to do if Object Storage may not use the bucket's key.
fn key_advice(view: &BucketView) -> String {
    match &view.facts.kms_key_id {
        Some(key) => format!(
            "the bucket has a Vault key of its own: check that it is enabled, and that Object \
             Storage may use it (KEY_DECRYPT): {}",
            key_statement(region_name(&view.region), key)
        ),
        None => "if the bucket has a Vault key of its own, Object Storage must be allowed to use \
                 it: docs/iam.md"
            .to_owned(),
    }
}
