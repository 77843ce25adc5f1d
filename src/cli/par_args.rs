//! `--par-file`: a pre-authenticated request in place of an identity.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{Error, Result};
use crate::model::{BucketName, ModelUri, NamespaceName, Prefix};
use crate::oci::ParUrl;
use crate::redact::has_par;
use crate::text;

/// The most that is read: a URL is shorter, and another file may be named by mistake.
const LONGEST: u64 = 64 * 1024;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Object Storage")]
pub(super) struct ParArgs {
    /// Read with the pre-authenticated request whose URL this file has, or standard input for -;
    /// without any identity. URI may then be left out, or name a part of what the request permits
    #[arg(long, env = "OCI_MODEL_CSI_PAR_FILE", value_name = "FILE")]
    par_file: Option<PathBuf>,
}

impl ParArgs {
    /// The pre-authenticated request, if there is one.
    ///
    /// # Errors
    /// `Invalid` for a file without such a URL; those of reading it.
    pub(super) fn read(&self) -> Result<Option<ParUrl>> {
        let Some(file) = &self.par_file else { return Ok(None) };
        let par = ParUrl::parse(&read(file)?)?;
        if par.is_in_the_clear() {
            return Err(Error::invalid(
                "the pre-authenticated request begins with http://, so that anyone on the way could \
                 use it too: write https://",
            ));
        }
        Ok(Some(par))
    }

    /// The model that `uri` names, as far as the pre-authenticated request permits it; what that
    /// permits where there is no URI.
    ///
    /// # Errors
    /// `Invalid` where neither names a model, or the URI names another one.
    pub(super) fn model(uri: Option<&str>, par: Option<&ParUrl>) -> Result<ModelUri> {
        match (uri, par) {
            (Some(uri), None) => ModelUri::parse(uri),
            (None, None) => Err(Error::invalid(
                "URI is missing: name the model, oci://BUCKET@NAMESPACE/PREFIX, or the file of a \
                 pre-authenticated request with --par-file",
            )),
            (None, Some(par)) => Ok(ModelUri {
                namespace: Some(NamespaceName::parse(&par.bucket().namespace)?),
                bucket: BucketName::parse(&par.bucket().name)?,
                prefix: Prefix::parse(par.object())?,
            }),
            (Some(uri), Some(par)) => {
                let uri = ModelUri::parse(uri)?;
                let (bucket, permitted) = (par.bucket(), par.object());
                let is_same = uri.bucket.as_str() == bucket.name
                    && uri.namespace.as_ref().is_none_or(|one| one.as_str() == bucket.namespace)
                    && uri.prefix.as_str().starts_with(permitted);
                if is_same {
                    return Ok(uri);
                }
                Err(Error::invalid(format!(
                    "{uri} is not what the pre-authenticated request permits: leave URI out, or \
                     name a prefix of bucket {} in namespace {} below {permitted:?}",
                    text::shown(&bucket.name, 256),
                    text::shown(&bucket.namespace, 256)
                )))
            }
        }
    }
}

fn read(file: &Path) -> Result<String> {
    let attempted = || format!("reading the pre-authenticated request in {}", file.display());
    let mut bytes = Vec::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().take(LONGEST).read_to_end(&mut bytes),
        _ => File::open(file).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes)),
    };
    read.map_err(|error| Error::invalid(format!("{}: {error}", attempted())))?;
    text::decode(bytes).map_err(|why| Error::invalid(format!("{}: {why}", attempted())))
}

/// Refuses the URL of a pre-authenticated request among the arguments, before anything can quote
/// it.
///
/// # Errors
/// `Invalid`, with the flag for it.
pub(super) fn check(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let mut lossy = arguments.into_iter().map(|one| one.to_string_lossy().into_owned());
    match lossy.find(|argument| has_par(argument)) {
        None => Ok(()),
        // The parser has the text for it.
        Some(argument) => ModelUri::parse(&argument).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_part_of_what_a_pre_authenticated_request_permits() {
        let par = ParUrl::parse("https://x/p/s3cret/n/ns/b/bk/o/models/").unwrap();
        let of = |uri| ParArgs::model(uri, Some(&par)).map(|uri| uri.to_string());
        assert_eq!(of(None).unwrap(), "oci://bk@ns/models/");
        assert_eq!(of(Some("oci://bk/models/phi3/")).unwrap(), "oci://bk/models/phi3/");
        for other in ["oci://bk/other/", "oci://b/models/", "oci://bk@n/models/", "oci://bk/"] {
            let error = of(Some(other)).unwrap_err();
            assert!(error.message().contains("leave URI out"), "{error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
        assert!(ParArgs::model(None, None).unwrap_err().message().contains("--par-file"));
    }
}
