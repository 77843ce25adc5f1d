//! The form of fault rules in tests and the admin interface.

use serde::{Deserialize, Deserializer, Serialize};

use crate::route::Operation;

/// What goes wrong, for which requests, how often.
///
/// ```json
/// {"match": {"operation": "get", "object": "*.safetensors"},
///  "skip": 1, "times": 2, "action": {"status": {"code": 503, "retry_after": 1}}}
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which requests; by default all.
    #[serde(rename = "match", default)]
    pub matching: Match,
    /// How many matching requests pass first.
    #[serde(default)]
    pub skip: u64,
    /// How many it hits then; without a number all.
    #[serde(default)]
    pub times: Option<u64>,
    /// Of those, only each of so many; without a number each one.
    #[serde(default)]
    pub every: Option<u64>,
    /// What happens to them.
    pub action: Action,
}

/// Conditions, all of which must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// One of these operations; any when empty. In JSON one name or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub operation: Vec<Operation>,
    /// Bucket name, with `*` and `?`.
    pub bucket: Option<String>,
    /// Object name, with `*` (crosses `/`) and `?`.
    pub object: Option<String>,
    /// HTTP method.
    pub method: Option<String>,
    /// Only requests whose range may contain this byte of the object.
    pub range_contains: Option<u64>,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Answers later.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// Slows bodies, up and down; all connections of the rule share the rate.
    Bandwidth {
        /// Bytes in a second.
        bytes_per_sec: u64,
    },
    /// Slows each body to this rate, up and down.
    ConnectionBandwidth {
        /// Bytes in a second.
        bytes_per_sec: u64,
    },
    /// Keeps the rate that all bodies share up to this many bodies at once; with more of them the
    /// whole rate falls, with twice as many to a half.
    Crowding {
        /// Bytes in a second, of all bodies together.
        bytes_per_sec: u64,
        /// Bodies at once that the rate holds for.
        bodies: u64,
    },
    /// Lets so many connections send requests; the first request of each further one is reset,
    /// until one of them is closed.
    ConnectionLimit {
        /// Open connections.
        connections: usize,
    },
    /// Answers this instead.
    Status {
        /// HTTP status.
        code: u16,
        /// OCI's code in the body; that which fits the status unless given.
        #[serde(default)]
        oci_code: Option<String>,
        /// The message in the body.
        #[serde(default)]
        message: Option<String>,
        /// The Retry-After header, in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Answers an HTML page instead, as a proxy in between does.
    Page {
        /// HTTP status; with one of 3xx the page is said to be elsewhere.
        code: u16,
    },
    /// Resets the connection instead of answering.
    Disconnect,
    /// Does what was asked for, and resets the connection instead of answering.
    LostAnswer,
    /// Resets the connection after so many bytes of the body (of an upload's too).
    ResetAfter {
        /// Bytes.
        bytes: u64,
    },
    /// Sends nothing more after so many bytes of the body, and keeps the connection.
    StallAfter {
        /// Bytes.
        bytes: u64,
    },
    /// Closes the connection cleanly before the last bytes of the body.
    ShortBody {
        /// Bytes that are missing; with none of them, of a body in chunks, its end.
        missing: u64,
    },
    /// Answers a range that lies one byte beside the one asked for, and says so.
    WrongRange,
    /// Answers 200 and the whole object to a range request.
    IgnoreRange,
    /// Inverts the lowest bit of one byte. Requests without that byte do not count.
    FlipByte {
        /// Where, in the object.
        offset: u64,
    },
    /// Replaces the object by a synthetic one, before this request is answered.
    ReplaceObject {
        /// Of the new bytes.
        seed: u64,
        /// Of the new object; that of the old one unless given.
        #[serde(default)]
        size: Option<u64>,
    },
    /// Answers with a clock that is wrong by this much.
    DateOffset {
        /// Seconds; negative is behind.
        secs: i64,
    },
    /// Adds this header to the answer, or removes it.
    Header {
        /// Its name.
        name: String,
        /// Its value; without one the header is removed.
        #[serde(default)]
        value: Option<String>,
    },
    /// Answers in forms that proxies give: a weak ETag, `*` for the size of the object in
    /// Content-Range, and a body in chunks without a Content-Length.
    Proxied,
    /// The object is in the archive tier and not restored: in listings, on HEAD and on GET.
    Archived,
}

impl Action {
    /// This status with the code and message that belong to it.
    pub fn status(code: u16) -> Self {
        Self::Status { code, oci_code: None, message: None, retry_after: None }
    }

    /// With this header in the answer.
    pub fn header(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Header { name: name.into(), value: Some(value.into()) }
    }

    /// Without this header in the answer.
    pub fn no_header(name: impl Into<String>) -> Self {
        Self::Header { name: name.into(), value: None }
    }

    /// This status with a Retry-After header.
    pub fn retry_after(code: u16, secs: u64) -> Self {
        Self::Status { code, oci_code: None, message: None, retry_after: Some(secs) }
    }
}

impl Rule {
    /// For all requests, always; narrow it with the methods below.
    pub fn new(action: Action) -> Self {
        Self { matching: Match::default(), skip: 0, times: None, every: None, action }
    }

    /// Only this operation (or these, when called again).
    #[must_use]
    pub fn operation(mut self, operation: Operation) -> Self {
        self.matching.operation.push(operation);
        self
    }

    /// Only buckets of this name, with `*` and `?`.
    #[must_use]
    pub fn bucket(mut self, pattern: impl Into<String>) -> Self {
        self.matching.bucket = Some(pattern.into());
        self
    }

    /// Only objects of this name, with `*` and `?`.
    #[must_use]
    pub fn object(mut self, pattern: impl Into<String>) -> Self {
        self.matching.object = Some(pattern.into());
        self
    }

    /// Only requests whose range may contain this byte.
    #[must_use]
    pub fn range_contains(mut self, offset: u64) -> Self {
        self.matching.range_contains = Some(offset);
        self
    }

    /// Lets the first matching requests pass.
    #[must_use]
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Hits only each of so many requests.
    #[must_use]
    pub fn every(mut self, count: u64) -> Self {
        self.every = Some(count);
        self
    }

    /// Hits only this many requests.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Operation>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(Operation),
        Many(Vec<Operation>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(operation) => vec![operation],
        OneOrMany::Many(operations) => operations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_parsed_as_documented() {
        let json = r#"{"match": {"operation": "upload_part", "object": "*.bin"}, "skip": 1,
            "times": 2, "action": {"status": {"code": 503, "retry_after": 1}}}"#;
        let rule = Rule::new(Action::retry_after(503, 1))
            .operation(Operation::UploadPart)
            .object("*.bin")
            .skip(1)
            .times(2);
        assert_eq!(serde_json::from_str::<Rule>(json).unwrap(), rule);
        let archived: Rule = serde_json::from_str(r#"{"action": "archived"}"#).unwrap();
        assert_eq!(archived, Rule::new(Action::Archived));
        let many = r#"{"match": {"operation": ["get", "head"]}, "action": "disconnect"}"#;
        let many: Rule = serde_json::from_str(many).unwrap();
        assert_eq!(many.matching.operation, [Operation::Get, Operation::Head]);
    }

    #[test]
    fn misspelt_rules_are_refused() {
        for json in [
            r#"{"action": {"latency": {"millis": 1}}}"#,
            r#"{"matches": {}, "action": "archived"}"#,
            r#"{"match": {"operation": "download"}, "action": "archived"}"#,
        ] {
            assert!(serde_json::from_str::<Rule>(json).is_err(), "{json}");
        }
    }
}
