//! What proves the bytes of an object.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::expected::Expected;
use super::layouts::MultipartLayouts;
use super::md5;
use super::range::RangeJob;
use super::{Check, Engine, Verify};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ObjectHead;
use crate::text::shown;

impl Engine {
    /// The CRC of the whole content, and the check that it passed, if any.
    pub(super) async fn prove(
        &self,
        job: &RangeJob,
        expected: Expected,
        md5: Option<Hashing>,
    ) -> Result<(u32, Option<Check>)> {
        let _own = job.download.interest().own_work();
        job.target.check_disk().map_err(|e| {
            Error::io(format!("writing {} to the disk", shown(&job.object.name, 200)), &e)
        })?;
        let crc32c = job.target.whole().ok_or_else(|| {
            Error::internal(format!("{} is not whole after its download", job.object.name))
        })?;
        let md5 = match md5 {
            Some(md5) => Some(joined(md5.await)?),
            None => None,
        };
        let check = match (expected.passes(crc32c, md5), &expected) {
            (None, Expected::Multipart { digest, layouts }) => {
                self.other_layouts(job, *digest, layouts).await?
            }
            (check, _) => check,
        };
        Ok((crc32c, check))
    }

    /// What is known about the content before it is downloaded.
    pub(super) fn expected(&self, job: &RangeJob, head: &ObjectHead) -> Result<Expected> {
        let (size, verify) = (job.target.size(), self.verify_mode());
        Expected::of(head, job.listed_md5.as_deref(), size, verify).map_err(|md5| {
            let (name, md5) = (shown(&job.object.name, 200), shown(&md5, 60));
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "object {name} is listed with the MD5 \"{md5}\", which is not a checksum, and \
                     has no other; the listing is requested again. If it persists, a proxy on the \
                     way alters answers: let this node reach Object Storage without it"
                ),
            )
        })
    }

    /// Refuses content that cannot be proved, under [`Verify::Strict`].
    pub(super) fn admit(&self, job: &RangeJob, expected: Expected) -> Result<Expected> {
        match expected.unprovable().filter(|_| self.verify_mode() == Verify::Strict) {
            Some(why) => Err(job.unproved(&why)),
            None => Ok(expected),
        }
    }

    /// Hashes behind the writers, with the most likely part size.
    pub(super) fn follow(&self, job: &RangeJob, expected: &Expected) -> Option<Hashing> {
        let (service, target) = (self.hashing().clone(), Arc::clone(&job.target));
        match expected {
            Expected::Md5(_) => Some(spawn(md5::of_whole(service, target))),
            Expected::Multipart { .. } => {
                let part_size = expected.part_size()?;
                Some(spawn(md5::of_parts(service, target, part_size)))
            }
            Expected::Crc32c(_) | Expected::Nothing => None,
        }
    }

    /// Tries all layouts but the first, which was hashed behind the writers.
    ///
    /// If no layout gives the digest and all possible layouts were tried, the bytes
    /// are damaged. If the right layout may be missing from the list, the result
    /// proves nothing, and another download would not change that.
    async fn other_layouts(
        &self,
        job: &RangeJob,
        digest: [u8; 16],
        layouts: &MultipartLayouts,
    ) -> Result<Option<Check>> {
        let others = layouts.part_sizes().get(1..).unwrap_or_default();
        let fits = md5::fits_one_of(self.hashing().lanes(), &job.target, others, digest).await;
        if fits.map_err(|e| Error::io(READ_BACK, &e))? {
            return Ok(Some(Check::MultipartMd5));
        }
        let Some(why) = layouts.unknown() else { return Ok(None) };
        if self.verify_mode() == Verify::Strict {
            return Err(job.unproved(why));
        }
        tracing::warn!(
            object = job.object.name,
            reason = why,
            tried = layouts.part_sizes().len(),
            "the sizes of the object's parts are unknown, so only its size and ETag are verified; \
             upload it again with a CRC-32C checksum to have its content verified"
        );
        Ok(Some(Check::UnknownLayout))
    }
}

/// The MD5 of a download, while it is computed.
pub(super) type Hashing = AbortOnDropHandle<std::io::Result<[u8; 16]>>;

fn spawn(work: impl Future<Output = std::io::Result<[u8; 16]>> + Send + 'static) -> Hashing {
    AbortOnDropHandle::new(tokio::spawn(work))
}

const READ_BACK: &str = "reading a download back for its MD5";

fn joined(result: Result<std::io::Result<[u8; 16]>, tokio::task::JoinError>) -> Result<[u8; 16]> {
    let ended = result.map_err(|e| Error::internal(format!("{READ_BACK}: {e}")).caused_by(e))?;
    ended.map_err(|e| Error::io(READ_BACK, &e))
}
