//! Reads the prefetch list. An entry is a URI, or a mapping with a URI and more.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::fields::{number, text};
use crate::cache::MAX_KEPT_REVISIONS;
use crate::manage::PrefetchModel;
use crate::model::ModelUri;

/// The longest name in a label's key, and the longest value
/// (Kubernetes documentation, "Labels and Selectors").
const LABEL: usize = 63;

/// The longest prefix of a label's key: a DNS name.
const DOMAIN: usize = 253;

/// Entries, each once.
pub(super) fn models<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<PrefetchModel>, D::Error> {
    let mut models: Vec<PrefetchModel> = Vec::new();
    for PrefetchItem(model) in Vec::<PrefetchItem>::deserialize(input)? {
        if !models.contains(&model) {
            models.push(model);
        }
    }
    Ok(models)
}

struct PrefetchItem(PrefetchModel);

/// An entry that is a mapping.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrefetchSection {
    #[serde(deserialize_with = "uri")]
    uri: ModelUri,
    #[serde(default, deserialize_with = "selector")]
    node_selector: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "keep_revisions")]
    keep_revisions: Option<usize>,
}

impl<'de> Deserialize<'de> for PrefetchItem {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = PrefetchItem;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a model URI, or a mapping with the key `uri`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let uri = parsed(text)?;
        let (node_selector, keep_revisions) = (BTreeMap::new(), None);
        Ok(PrefetchItem(PrefetchModel { uri, node_selector, keep_revisions }))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let PrefetchSection { uri, node_selector, keep_revisions } =
            PrefetchSection::deserialize(MapAccessDeserializer::new(map))?;
        Ok(PrefetchItem(PrefetchModel { uri, node_selector, keep_revisions }))
    }
}

fn uri<'de, D: Deserializer<'de>>(input: D) -> Result<ModelUri, D::Error> {
    parsed(&text(input)?)
}

fn parsed<E: Error>(text: &str) -> Result<ModelUri, E> {
    ModelUri::parse(text).map_err(|e| Error::custom(e.message()))
}

fn keep_revisions<'de, D: Deserializer<'de>>(input: D) -> Result<Option<usize>, D::Error> {
    number(input, 1..=MAX_KEPT_REVISIONS).map(Some)
}

/// Labels as the `nodeSelector` of a pod has them.
fn selector<'de, D>(input: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let labels = BTreeMap::<LabelKey, LabelValue>::deserialize(input)?;
    Ok(labels.into_iter().map(|(LabelKey(key), LabelValue(value))| (key, value)).collect())
}

/// The key of a label, parsed while the parser knows its line.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct LabelKey(String);

impl<'de> Deserialize<'de> for LabelKey {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let key = text(input)?;
        let (domain, name) = key.split_once('/').unwrap_or(("a", &key));
        let is_domain = domain.len() <= DOMAIN
            && domain.split('.').all(|part| {
                is_label(part) && !part.contains(|c: char| c == '_' || c.is_ascii_uppercase())
            });
        if !is_domain || !is_label(name) {
            return Err(Error::custom(format!(
                "`{key}` is not the key of a label, such as pool or example.com/pool"
            )));
        }
        Ok(Self(key))
    }
}

/// The value of a label; it may be empty.
struct LabelValue(String);

impl<'de> Deserialize<'de> for LabelValue {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let value = text(input)?;
        if !value.is_empty() && !is_label(&value) {
            return Err(Error::custom(format!(
                "`{value}` is not the value of a label: at most {LABEL} letters, digits, `-`, `_` \
                 and `.`, with a letter or a digit at both ends"
            )));
        }
        Ok(Self(value))
    }
}

fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let at_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= LABEL
        && bytes.iter().copied().all(inside)
        && at_end(bytes.first())
        && at_end(bytes.last())
}

#[cfg(test)]
#[path = "prefetch_tests.rs"]
mod tests;
