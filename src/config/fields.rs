//! Reads single values: each check runs where the parser still knows the line,
//! and each message says what would be right.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::amount::{Amount, MinFree, Percent};
use super::size::parse_size;
use crate::download::Verify;
use crate::model::nearest;
use crate::resolve::ListedBucket;
use crate::source::{AuthMethod, RegionName};
use crate::transport::{AddressRange, Proxy};
use crate::volume::WarmPageCache;
use crate::weights::SafetensorsCheck;

/// A scalar as it was written; the YAML types of numbers and words do not matter.
pub(super) fn text<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    String::deserialize(input)
}

pub(super) fn parsed<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    text(input)?.parse().map_err(Error::custom)
}

pub(super) fn number<'de, D>(input: D, range: RangeInclusive<usize>) -> Result<usize, D::Error>
where
    D: Deserializer<'de>,
{
    let text = text(input)?;
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let (least, most) = range.into_inner();
        Error::custom(format!("`{text}` is not a whole number from {least} to {most}"))
    })
}

/// A number of concurrent workers.
pub(super) fn workers<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    number(input, 1..=1024)
}

pub(super) fn max_objects<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    number(input, 1..=10_000_000)
}

pub(super) fn range_size<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let size = parse_size(&text(input)?).map_err(Error::custom)?;
    if !(ByteSize::mib(1)..=ByteSize::gib(1)).contains(&size) {
        return Err(Error::custom(format!("{size} is not between 1MiB and 1GiB")));
    }
    Ok(size.as_u64())
}

/// A limit in bytes; 0 means none.
pub(super) fn limit<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    let size = parse_size(&text(input)?).map_err(Error::custom)?;
    Ok(Some(size.as_u64()).filter(|size| *size > 0))
}

pub(super) fn max_size<'de, D: Deserializer<'de>>(input: D) -> Result<Amount, D::Error> {
    let amount: Amount = parsed(input)?;
    if amount.resolve(ByteSize::b(u64::MAX)).as_u64() == 0 {
        return Err(Error::custom("a cache of no size holds no model"));
    }
    Ok(amount)
}

pub(super) fn min_free<'de, D: Deserializer<'de>>(input: D) -> Result<MinFree, D::Error> {
    let min_free = parsed(input)?;
    if min_free == MinFree::Amount(Amount::Percent(Percent::ALL)) {
        return Err(Error::custom("100% leaves nothing for models"));
    }
    Ok(min_free)
}

pub(super) fn min_free_inodes<'de, D: Deserializer<'de>>(input: D) -> Result<Percent, D::Error> {
    let percent = parsed(input)?;
    if percent == Percent::ALL {
        return Err(Error::custom("100% leaves nothing for models"));
    }
    Ok(percent)
}

pub(super) fn abandon_after<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    const RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    let text = text(input)?;
    let duration = humantime::parse_duration(&text)
        .map_err(|error| Error::custom(format!("`{text}` is not a duration like 10m: {error}")))?;
    if !RANGE.contains(&duration) {
        return Err(Error::custom(format!("`{text}` is not between 1s and 24h")));
    }
    Ok(duration)
}

pub(super) fn idle_ttl<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    optional_duration(input, "7d")
}

pub(super) fn scrub_interval<'de, D>(input: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    optional_duration(input, "30d")
}

/// A duration of at least a minute, or 0 for none.
fn optional_duration<'de, D: Deserializer<'de>>(
    input: D,
    example: &str,
) -> Result<Option<Duration>, D::Error> {
    let text = text(input)?;
    if text == "0" {
        return Ok(None);
    }
    let duration = humantime::parse_duration(&text).map_err(|error| {
        Error::custom(format!("`{text}` is not a duration like {example}: {error}"))
    })?;
    match duration {
        Duration::ZERO => Ok(None),
        short if short < Duration::from_secs(60) => {
            Err(Error::custom(format!("`{text}` is less than a minute; 0 switches it off")))
        }
        duration => Ok(Some(duration)),
    }
}

pub(super) fn scrub_rate<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    const RANGE: RangeInclusive<ByteSize> = ByteSize::mib(1)..=ByteSize::tib(1);
    let rate = parse_size(&text(input)?).map_err(Error::custom)?;
    if !RANGE.contains(&rate) {
        return Err(Error::custom(format!("{rate} is not between 1MiB and 1TiB a second")));
    }
    Ok(rate.as_u64())
}

pub(super) fn verify<'de, D: Deserializer<'de>>(input: D) -> Result<Verify, D::Error> {
    match text(input)?.as_str() {
        "always" => Ok(Verify::Always),
        "cheap" => Ok(Verify::Cheap),
        "strict" => Ok(Verify::Strict),
        other => Err(Error::custom(format!(
            "`{other}` is invalid: expected `always`, `cheap` or `strict`"
        ))),
    }
}

pub(super) fn warm_page_cache<'de, D>(input: D) -> Result<WarmPageCache, D::Error>
where
    D: Deserializer<'de>,
{
    match text(input)?.as_str() {
        "never" => Ok(WarmPageCache::Never),
        "onHit" => Ok(WarmPageCache::OnHit),
        other => Err(Error::custom(format!("`{other}` is invalid: expected `never` or `onHit`"))),
    }
}

/// A word, or one of the booleans of earlier versions.
pub(super) fn check_safetensors<'de, D>(input: D) -> Result<SafetensorsCheck, D::Error>
where
    D: Deserializer<'de>,
{
    match text(input)?.as_str() {
        "refuse" | "true" => Ok(SafetensorsCheck::Refuse),
        "warn" => Ok(SafetensorsCheck::Warn),
        "ignore" | "false" => Ok(SafetensorsCheck::Ignore),
        other => Err(Error::custom(format!(
            "`{other}` is invalid: expected `refuse`, `warn` or `ignore`"
        ))),
    }
}

pub(super) fn directory<'de, D: Deserializer<'de>>(input: D) -> Result<PathBuf, D::Error> {
    absolute(&text(input)?)
}

pub(super) fn file<'de, D: Deserializer<'de>>(input: D) -> Result<Option<PathBuf>, D::Error> {
    let text = text(input)?;
    if text.is_empty() { Ok(None) } else { absolute(&text).map(Some) }
}

fn absolute<E: Error>(text: &str) -> Result<PathBuf, E> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err(Error::custom(format!("`{text}` is not an absolute path")));
    }
    Ok(path)
}

pub(super) fn auth<'de, D: Deserializer<'de>>(input: D) -> Result<AuthMethod, D::Error> {
    auth_method(&text(input)?)
}

fn optional_auth<'de, D>(input: D) -> Result<Option<AuthMethod>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = text(input)?;
    if text.is_empty() { Ok(None) } else { auth_method(&text).map(Some) }
}

fn auth_method<E: Error>(text: &str) -> Result<AuthMethod, E> {
    text.parse().map_err(|_| {
        let names = AuthMethod::names();
        let hint = nearest(text, names)
            .map(|nearest| format!("did you mean `{nearest}`? "))
            .unwrap_or_default();
        Error::custom(format!("unknown auth `{text}`; {hint}valid: {}", names.join(", ")))
    })
}

/// A bucket or a namespace; Oracle's names have no other characters.
fn name<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let text = text(input)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(Error::custom(format!(
            "`{text}` is not a name of letters, digits, `-`, `_` and `.`"
        )));
    }
    Ok(text)
}

pub(super) fn optional_name<'de, D>(input: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    match text(input)? {
        empty if empty.is_empty() => Ok(None),
        text => name(serde::de::value::StringDeserializer::new(text)).map(Some),
    }
}

/// A region; none if the text is empty.
pub(super) fn optional_region<'de, D>(input: D) -> Result<Option<RegionName>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = text(input)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(Error::custom) }
}

/// Hosts of a region beside the usual one.
const HOSTS_OF_A_REGION: [&str; 2] = ["dedicated", "dual-stack"];

pub(super) fn endpoint<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    let text = text(input)?;
    if text.is_empty() {
        return Ok(None);
    }
    if HOSTS_OF_A_REGION.contains(&text.as_str()) {
        return Ok(Some(text));
    }
    let uri = text.parse::<http::Uri>().ok();
    let usable = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && matches!(uri.path_and_query().map(ToString::to_string).as_deref(), None | Some("/"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    });
    if !usable {
        return Err(Error::custom(
            "an endpoint is `https://host` or `https://host:port`, without path or credentials; or \
             `dedicated` or `dual-stack`",
        ));
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}

/// A proxy; none if the text is empty. Messages have no part of it: it may have a login.
pub(super) fn proxy<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Proxy>, D::Error> {
    let text = text(input)?;
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = match text.starts_with("http://") || text.starts_with("https://") {
        true => Proxy::parse(&text, "objectStorage.proxy"),
        false => Err("the scheme of a proxy must be http or https"),
    };
    parsed.map(Some).map_err(|why| {
        Error::custom(format!(
            "{why}; a proxy is `http://host:port` or `http://user:password@host:port`"
        ))
    })
}

/// Addresses of this node, or networks that it has some in.
pub(super) fn source_addresses<'de, D>(input: D) -> Result<Vec<AddressRange>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    struct SourceAddress(#[serde(deserialize_with = "parsed")] AddressRange);
    let addresses = Vec::<SourceAddress>::deserialize(input)?.into_iter();
    let addresses: Vec<AddressRange> = addresses.map(|SourceAddress(range)| range).collect();
    let of_none = |range: &&AddressRange| {
        range.single().is_some_and(|address| address.is_unspecified() || address.is_multicast())
    };
    match addresses.iter().find(of_none) {
        Some(range) => Err(Error::custom(format!("`{range}` is not an address of a node"))),
        None => Ok(addresses),
    }
}

/// Reads a bucket with a route of its own.
#[derive(Deserialize)]
#[serde(remote = "ListedBucket", rename_all = "camelCase", deny_unknown_fields)]
struct BucketSection {
    #[serde(deserialize_with = "name")]
    name: String,
    #[serde(default, deserialize_with = "optional_name")]
    namespace: Option<String>,
    #[serde(default, deserialize_with = "optional_region")]
    region: Option<RegionName>,
    #[serde(default, deserialize_with = "endpoint")]
    endpoint: Option<String>,
    #[serde(default, deserialize_with = "optional_auth")]
    auth: Option<AuthMethod>,
}

#[derive(Deserialize)]
struct BucketItem(#[serde(with = "BucketSection")] ListedBucket);

/// Buckets, each once: a second entry for the same bucket would have no effect.
pub(super) fn buckets<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<ListedBucket>, D::Error> {
    let mut buckets: Vec<ListedBucket> = Vec::new();
    for BucketItem(bucket) in Vec::<BucketItem>::deserialize(input)? {
        if buckets.iter().any(|other| other.is_same_bucket(&bucket)) {
            let namespace = bucket.namespace.as_deref().unwrap_or("the driver's own");
            return Err(Error::custom(format!(
                "the bucket `{}` of namespace {namespace} is listed twice",
                bucket.name
            )));
        }
        buckets.push(bucket);
    }
    Ok(buckets)
}
