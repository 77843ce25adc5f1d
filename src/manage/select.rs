//! Finds the cached models that a user names by a key, the beginning of a key, or
//! a URI.

use crate::cache::{CacheReport, ModelReport};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelSource, ModelUri};

/// The fewest digits of a key that are accepted; fewer match too many models by accident.
const MIN_DIGITS: usize = 4;

/// Digits of a key to show where a short form is enough.
pub(super) const SHOWN: usize = 12;

/// How many keys a message lists.
const LISTED: usize = 5;

/// All models that `text` names; at least one.
pub(super) fn all<'a>(inventory: &'a CacheReport, text: &str) -> Result<Vec<&'a ModelReport>> {
    let found: Vec<&ModelReport> = if text.starts_with("oci://") {
        let uri = ModelUri::parse(text)?;
        let meant = |report: &&ModelReport| {
            report.summary.as_ref().is_some_and(|summary| is_of(&summary.source, &uri))
        };
        inventory.models.iter().filter(meant).collect()
    } else {
        if text.len() < MIN_DIGITS || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(Error::invalid(format!(
                "{text:?} is not a model: give a URI, or at least {MIN_DIGITS} digits of a key as \
                 `cache ls` shows it"
            )));
        }
        inventory.models.iter().filter(|report| report.key.as_str().starts_with(text)).collect()
    };
    if found.is_empty() {
        let text = format!("{text} is not in the cache; `cache ls` lists what is");
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    Ok(found)
}

/// The only model that `text` names.
pub(super) fn one<'a>(inventory: &'a CacheReport, text: &str) -> Result<&'a ModelReport> {
    let found = all(inventory, text)?;
    let first = &found[0].key;
    // One model may be listed twice: damaged, and downloaded again.
    if found.iter().any(|report| report.key != *first) {
        let keys = found.iter().take(LISTED).map(|report| &report.key.as_str()[..SHOWN]);
        let more = if found.len() > LISTED { ", …" } else { "" };
        return Err(Error::invalid(format!(
            "{text} names {} models in the cache: {}{more}; name one by its key",
            found.len(),
            keys.collect::<Vec<_>>().join(", ")
        )));
    }
    Ok(found[0])
}

fn is_of(source: &ModelSource, uri: &ModelUri) -> bool {
    source.bucket == uri.bucket
        && source.prefix == uri.prefix
        && uri.namespace.as_ref().is_none_or(|namespace| *namespace == source.namespace)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::cache::{ModelState, Usage};
    use crate::model::{
        BucketName, Filters, ListedObject, Manifest, ModelKey, NamespaceName, Prefix, Tree,
    };

    fn report(key: &str, prefix: &str) -> ModelReport {
        let source = ModelSource {
            location: "l".into(),
            namespace: NamespaceName::parse("ns").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse(prefix).unwrap(),
        };
        let (name, etag) = (format!("{prefix}/w"), "e".into());
        let object = ListedObject { name, size: 1, etag, md5: None, archived: false };
        let tree = Tree::arrange([object], &source.prefix, &Filters::default()).unwrap().unwrap();
        ModelReport {
            key: ModelKey::parse(&format!("{key:0<64}")).unwrap(),
            summary: Some(Arc::new(Manifest::new(source, "", tree).summary())),
            directory: None,
            state: ModelState::Complete,
            bytes: 1,
            allocated: 1,
            shared: 0,
            last_used: SystemTime::UNIX_EPOCH,
            pinned: false,
            kept: false,
            holders: Vec::new(),
            mounts: Vec::new(),
        }
    }

    fn keys(text: &str) -> Result<Vec<String>> {
        let models = vec![report("abcd1", "m/a"), report("abcd2", "m/a"), report("ef012", "m/b")];
        let inventory = CacheReport { models, usage: Usage::default(), set_aside: Vec::new() };
        let found = all(&inventory, text)?;
        if let Ok(one) = one(&inventory, text) {
            assert_eq!(found.len(), 1);
            assert_eq!(one.key, found[0].key);
        }
        Ok(found.iter().map(|report| report.key.as_str()[..5].to_owned()).collect())
    }

    #[test]
    fn a_key_its_beginning_and_a_uri_name_models() {
        assert_eq!(keys("abcd1").unwrap(), ["abcd1"]);
        assert_eq!(keys("abcd").unwrap(), ["abcd1", "abcd2"]);
        assert_eq!(keys(&format!("{:0<64}", "ef012")).unwrap(), ["ef012"]);
        for uri in ["oci://b/m/a", "oci://b@ns/m/a/", "oci://n/ns/b/b/o/m/a"] {
            assert_eq!(keys(uri).unwrap(), ["abcd1", "abcd2"], "{uri}");
        }
    }

    #[test]
    fn a_name_of_no_model_or_of_several_is_refused() {
        for absent in ["oci://b@other/m/a", "oci://b/m", "0000"] {
            assert_eq!(keys(absent).unwrap_err().kind(), ErrorKind::NotFound, "{absent}");
        }
        for wrong in ["abc", "ABCD", "../../etc", "", "oci://"] {
            assert_eq!(keys(wrong).unwrap_err().kind(), ErrorKind::Invalid, "{wrong}");
        }
        let models = vec![report("abcd1", "m/a"), report("abcd2", "m/a")];
        let inventory = CacheReport { models, usage: Usage::default(), set_aside: Vec::new() };
        let error = one(&inventory, "oci://b/m/a").unwrap_err();
        assert!(error.message().contains("names 2 models"), "{error}");
        assert!(error.message().contains("abcd10000000, abcd20000000;"), "{error}");
    }
}
