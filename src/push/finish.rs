//! The end of a push: verifies what is stored, deletes other objects, and names the revision.

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use super::files::SendStage;
use super::remote::RemoteObjects;
use super::report::{PushReport, UnfinishedUpload};
use super::upload::{StoredObject, another_writer, refused};
use crate::error::{Error, ErrorKind, Result};
use crate::model::counted;
use crate::source::{RunningUpload, StorageError, StorageErrorKind};
use crate::text::shown;

/// Objects that one message names.
const NAMED: usize = 5;

impl Plan {
    /// Verifies what is stored, deletes the objects that the directory does not have, if that was
    /// asked for, and resolves the model as the driver does.
    pub(super) async fn complete(
        &self,
        mut stored: BTreeMap<String, StoredObject>,
        report: &mut PushReport,
    ) -> Result<()> {
        stored.extend(self.kept.clone());
        let mut remote = self.verified(&stored).await?;
        if self.delete && !self.others.is_empty() {
            let not_found = self.delete_others().await?;
            remote = self.verified(&stored).await?;
            self.check_deleted(&remote, not_found)?;
            report.deleted.clone_from(&self.others);
        }
        let without = stored.values().filter(|object| !object.has_crc32c).count();
        if without > 0 {
            report.warnings.push(format!(
                "{without} of the objects carry no CRC-32C, so readers verify them by MD5, which is \
                 slower"
            ));
        }
        report.unfinished = self.unfinished_uploads().await?;
        let model = remote.model(&self.uri.prefix).await?;
        report.warnings.extend(model.warnings);
        report.revision = Some(model.revision);
        Ok(())
    }

    /// Lists the prefix, and checks that it has what was stored.
    async fn verified(&self, stored: &BTreeMap<String, StoredObject>) -> Result<RemoteObjects> {
        let sink = &*self.uploader.sink;
        let remote = RemoteObjects::list(sink, &self.uploader.bucket, &self.uri.prefix).await?;
        for (name, object) in stored {
            let listed = remote.0.get(name).map(|listed| listed.etag.as_str());
            if listed != Some(object.etag.as_str()) {
                let text = format!(
                    "{}{name} was changed by another writer after it was stored: see who else \
                     writes there, then run the same command again",
                    self.uri.prefix
                );
                return Err(Error::new(ErrorKind::Conflict, text));
            }
        }
        Ok(remote)
    }

    /// Deletes the objects that the directory does not have: first those where loaders begin, so
    /// that no index is there without its shards. Returns the last answer that one was not found.
    async fn delete_others(&self) -> Result<Option<StorageError>> {
        let listed = self.others.iter().filter_map(|name| Some((name, self.remote.0.get(name)?)));
        let mut others: Vec<_> = listed.collect();
        others
            .sort_by_key(|(name, object)| SendStage::of(name, object.size) != SendStage::Entrances);
        let mut not_found = None;
        for (_, listed) in others {
            let object = self.uploader.bucket.object(listed.name.as_str());
            match self.uploader.sink.delete(&object, &listed.etag).await {
                Ok(()) => {}
                // It is gone already, or may not be deleted, which the next listing shows.
                Err(error) if error.kind() == StorageErrorKind::NotFound => {
                    not_found = Some(error);
                }
                Err(error) if error.kind() == StorageErrorKind::Changed => {
                    return Err(another_writer(&object, &error));
                }
                Err(error) => return Err(refused(error)),
            }
        }
        Ok(not_found)
    }

    /// Checks that what was to be deleted is no longer listed.
    fn check_deleted(&self, remote: &RemoteObjects, not_found: Option<StorageError>) -> Result<()> {
        let etag_in = |objects: &RemoteObjects, name: &String| {
            objects.0.get(name).map(|object| object.etag.clone())
        };
        let is_same = |name: &&String| {
            let now = etag_in(remote, name);
            now.is_some() && now == etag_in(&self.remote, name)
        };
        let left: Vec<&String> = self.others.iter().filter(is_same).collect();
        if let (false, Some(error)) = (left.is_empty(), not_found) {
            let named = left.iter().take(NAMED).map(|name| shown(name, 120)).collect::<Vec<_>>();
            let more = match left.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let text = format!(
                "all files are stored, but {} that DIR does not have may not be deleted: {}{more} \
                 ({error})",
                counted(left.len(), "object"),
                named.join(", ")
            );
            return Err(Error::new(ErrorKind::Denied, text));
        }
        match self.others.iter().find(|name| remote.0.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let text = format!(
                    "{}{name} was stored by another writer after it was deleted: see who else \
                     writes there, then run the same command again",
                    self.uri.prefix
                );
                Err(Error::new(ErrorKind::Conflict, text))
            }
        }
    }

    /// Uploads of objects that were sent in parts, by this or another push, that still run.
    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        let Some(running) = &self.running else { return Ok(Vec::new()) };
        let sent = self.files.iter().filter(|file| {
            self.uploader.is_in_parts(file.state.size) && !self.kept.contains_key(&file.name)
        });
        let sent = sent.map(|file| self.uploader.object(file).name);
        let objects: BTreeSet<String> = sent.chain(running.keys().cloned()).collect();
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let listed = self.uploader.sink.running_uploads(&self.uploader.bucket, &objects).await;
        let named = |RunningUpload { object, id }| UnfinishedUpload {
            object: self.uploader.bucket.object(object),
            id,
        };
        Ok(listed.map_err(refused)?.into_iter().map(named).collect())
    }
}
