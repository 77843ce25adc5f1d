//! Turns the parser's errors into messages for an administrator: file, line, key, remedy.

use serde_saphyr::{Error as YamlError, MessageFormatter, UserMessageFormatter};

use crate::Error;
use crate::model::nearest;

/// The error of `text`, which was read from `file`.
pub(super) fn explain(file: &str, text: &str, error: &YamlError) -> Error {
    let error = error.without_snippet();
    let said = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        YamlError::DuplicateMappingKey { .. } => "the key is set twice".to_owned(),
        YamlError::MultipleDocuments { .. } => {
            "a second YAML document begins here; the configuration is one".to_owned()
        }
        YamlError::NullIntoString { .. } => {
            "the key has no value; remove it for the default, or write \"\"".to_owned()
        }
        YamlError::InvalidScalar { ty: "boolean", .. } | YamlError::InvalidBooleanStrict { .. } => {
            "neither true nor false".to_owned()
        }
        YamlError::Unexpected { expected: "mapping start", .. } => {
            "a section with keys is expected here; remove it for the defaults".to_owned()
        }
        YamlError::Unexpected { expected: "string scalar", .. } => {
            "a single value is expected here".to_owned()
        }
        YamlError::SerdeMissingField { field, .. } => {
            format!("the key `{field}` is missing; it has no default")
        }
        YamlError::Unexpected { expected: "sequence start", .. } => {
            "a list is expected here; the empty one is []".to_owned()
        }
        other => UserMessageFormatter.format_message(other).into_owned(),
    };
    let Some(location) = error.location() else {
        return Error::invalid(format!("{file}: {said}"));
    };
    let key = match error {
        YamlError::SerdeUnknownField { .. } | YamlError::SerdeMissingField { .. } => None,
        _ => key_at(text, location.line(), location.column()),
    };
    let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
    Error::invalid(format!(
        "{file}, line {}, column {}: {key}{said}",
        location.line(),
        location.column()
    ))
}

fn unknown_key(field: &str, expected: &[&str]) -> String {
    let hint = nearest(field, expected.iter().copied())
        .map(|nearest| format!("did you mean `{nearest}`? "))
        .unwrap_or_default();
    format!("unknown key `{field}`; {hint}valid here: {}", expected.join(", "))
}

/// The key that a value at this position belongs to, or the key at the position
/// itself. The parser's errors have only the position.
fn key_at(text: &str, line: u64, column: u64) -> Option<&str> {
    let line = text.lines().nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
    let column = usize::try_from(column.checked_sub(1)?).ok()?;
    let at = line.char_indices().nth(column).map_or(line.len(), |(index, _)| index);
    let (before, from) = line.split_at(at);

    let of_key = |c: char| c.is_ascii_alphanumeric();
    let word = &from[..from.find(|c| !of_key(c)).unwrap_or(from.len())];
    // The colon of a URI has something behind it.
    let behind = from[word.len()..].strip_prefix(':');
    let is_key = behind.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
    if !word.is_empty() && is_key {
        return Some(word);
    }
    // The position of an absent value is the colon.
    let before = match before.trim_end_matches(['"', '\'', ' ']).strip_suffix(':') {
        Some(before) => before,
        None => from.starts_with(':').then_some(before)?,
    };
    let start = before.rfind(|c| !of_key(c)).map_or(0, |index| index + 1);
    Some(&before[start..]).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_place_is_found_in_block_and_flow_style() {
        let text = "cache:\n  maxSize: 7X\ndownload: {concurrency: 0, verify: \"no\"}\n- x\n";
        assert_eq!(key_at(text, 2, 12), Some("maxSize"));
        assert_eq!(key_at(text, 2, 3), Some("maxSize"));
        assert_eq!(key_at(text, 3, 25), Some("concurrency"));
        assert_eq!(key_at(text, 3, 36), Some("verify"));
        assert_eq!(key_at(text, 1, 6), Some("cache"));
        assert_eq!(key_at(text, 4, 3), None);
        assert_eq!(key_at(text, 9, 1), None);
        assert_eq!(key_at(text, 2, 99), None);
    }
}
