//! Reads a stored manifest piece by piece, in memory that does not grow with it.

use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{FORMAT, ManifestFile, Summary, broken};
use crate::error::Result;
use crate::model::{BucketName, ModelSource, NamespaceName, Prefix, Revision};

/// One part of a manifest that is read piece by piece.
pub(super) enum ManifestPart {
    File(ManifestFile),
    Directory(String),
}

/// Reads a stored manifest piece by piece; the returned summary counts
/// no inodes.
pub(super) fn scan(input: impl Read, mut visit: impl FnMut(ManifestPart)) -> Result<Summary> {
    let mut json = serde_json::Deserializer::from_reader(io::BufReader::new(input));
    let head = json.deserialize_map(ManifestVisitor(&mut visit)).map_err(broken)?;
    json.end().map_err(broken)?;
    let format = head.format.unwrap_or_default();
    if format != FORMAT {
        return Err(broken(format!("format {format} is not {FORMAT}")));
    }
    let missing = || broken("it is not whole");
    Ok(Summary {
        source: ModelSource {
            location: head.location.ok_or_else(missing)?,
            namespace: NamespaceName::parse(&head.namespace.ok_or_else(missing)?)?,
            bucket: BucketName::parse(&head.bucket.ok_or_else(missing)?)?,
            prefix: Prefix::parse(&head.prefix.ok_or_else(missing)?)?,
        },
        scope: head.scope.ok_or_else(missing)?,
        revision: head.revision.ok_or_else(missing)?,
        bytes: head.bytes.filter(|_| head.files && head.directories).ok_or_else(missing)?,
        inodes: 0,
    })
}

/// What was read of a manifest.
#[derive(Default)]
struct ManifestHead {
    format: Option<u32>,
    location: Option<String>,
    namespace: Option<String>,
    bucket: Option<String>,
    prefix: Option<String>,
    scope: Option<String>,
    revision: Option<Revision>,
    bytes: Option<u64>,
    files: bool,
    directories: bool,
}

struct ManifestVisitor<'a, F>(&'a mut F);

impl<'de, F: FnMut(ManifestPart)> Visitor<'de> for ManifestVisitor<'_, F> {
    type Value = ManifestHead;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ManifestHead, A::Error> {
        let mut head = ManifestHead::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "format" => head.format = Some(map.next_value()?),
                "location" => head.location = Some(map.next_value()?),
                "namespace" => head.namespace = Some(map.next_value()?),
                "bucket" => head.bucket = Some(map.next_value()?),
                "prefix" => head.prefix = Some(map.next_value()?),
                "scope" => head.scope = Some(map.next_value()?),
                "revision" => head.revision = Some(map.next_value()?),
                "bytes" => head.bytes = Some(map.next_value()?),
                "files" => {
                    map.next_value_seed(EachElement::new(|file| {
                        (self.0)(ManifestPart::File(file));
                    }))?;
                    head.files = true;
                }
                "directories" => {
                    map.next_value_seed(EachElement::new(|name| {
                        (self.0)(ManifestPart::Directory(name));
                    }))?;
                    head.directories = true;
                }
                _ => return Err(de::Error::custom("it has a field that is not known")),
            }
        }
        Ok(head)
    }
}

/// Visits each element of a list, without storing the list.
struct EachElement<T, F> {
    visit: F,
    of: PhantomData<T>,
}

impl<T, F> EachElement<T, F> {
    fn new(visit: F) -> Self {
        Self { visit, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for EachElement<T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for EachElement<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut all: A) -> Result<(), A::Error> {
        while let Some(one) = all.next_element()? {
            (self.visit)(one);
        }
        Ok(())
    }
}
