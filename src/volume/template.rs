//! Expands variables such as `${pvc.name}` in the prefix of a StorageClass.

use std::collections::HashMap;

use super::claims::ClaimName;
use crate::error::{Error, ErrorKind, Result};
use crate::text::shown;

/// Parameters with the claim's names, set by external-provisioner.
const NAME: &str = "csi.storage.k8s.io/pvc/name";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// The variables, and the parameters of external-provisioner with their values.
const VARIABLES: [(&str, &str); 3] =
    [("pvc.name", NAME), ("pvc.namespace", NAMESPACE), ("pv.name", "csi.storage.k8s.io/pv/name")];

/// The variable whose value comes from the API server.
const ANNOTATION: &str = "pvc.annotations['…']";

/// What is known about the claim of a request.
#[derive(Clone, Copy)]
pub(super) enum ClaimContext<'a> {
    /// Nothing: only the form of the text is checked.
    Any,
    /// The parameters from external-provisioner. Annotations are not expanded.
    Of(&'a HashMap<String, String>),
    /// The parameters and the claim's annotations.
    Read(&'a HashMap<String, String>, &'a HashMap<String, String>),
}

/// The claim of a request, if external-provisioner sends it.
pub(super) fn claim(parameters: &HashMap<String, String>) -> Option<ClaimName<'_>> {
    let name = parameters.get(NAME).filter(|name| !name.is_empty())?;
    Some(ClaimName { namespace: namespace(parameters)?, name })
}

/// The namespace of the claim of a request, if external-provisioner sends it.
pub(super) fn namespace(parameters: &HashMap<String, String>) -> Option<&str> {
    parameters.get(NAMESPACE).map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether a text has variables.
pub(super) fn is_template(text: &str) -> bool {
    text.contains("${")
}

/// Whether a text uses annotations of the claim.
pub(super) fn needs_annotations(text: &str) -> bool {
    variables(text).any(|variable| annotation(variable).is_some())
}

/// The error for a template whose claim is unknown.
pub(super) fn unknown_claim(variable: &str) -> Error {
    Error::invalid(format!(
        "${{{variable}}} in prefix needs to know the claim: run external-provisioner with \
         --extra-create-metadata"
    ))
}

/// Replaces the variables in a text.
///
/// # Errors
/// `Invalid` for an unknown variable; for a variable without a value, with the
/// provisioner's flag in the message; and for a value that is not one segment of a
/// path. `Precondition` for an annotation that the claim does not have (yet), with
/// the command that adds it.
pub(super) fn expand(text: &str, of: ClaimContext<'_>) -> Result<String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((variable, remaining)) = after.split_once('}') else {
            return Err(Error::invalid(format!("{text:?} has a ${{ without its }}")));
        };
        expanded.push_str(before);
        expanded.push_str(&value_of(variable, of)?);
        rest = remaining;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|after| after.split_once('}')).map(|(variable, _)| variable)
}

/// Parses the key in `pvc.annotations['key']`, with single or double quotes.
fn annotation(variable: &str) -> Option<&str> {
    let quoted = variable.strip_prefix("pvc.annotations[")?.strip_suffix(']')?;
    let within = |quote| quoted.strip_prefix(quote)?.strip_suffix(quote);
    let key: &str = within('\'').or_else(|| within('"'))?;
    (!key.is_empty() && !key.contains(['\'', '"'])).then_some(key)
}

fn value_of(variable: &str, of: ClaimContext<'_>) -> Result<String> {
    let asked = annotation(variable);
    let known = VARIABLES.iter().find(|(known, _)| *known == variable);
    let value = match (of, asked, known) {
        (_, None, None) => return Err(unknown_variable(variable)),
        (ClaimContext::Any, ..) => return Ok("any".to_owned()),
        (ClaimContext::Of(_), Some(_), _) => return Ok(format!("${{{variable}}}")),
        (ClaimContext::Read(parameters, annotations), Some(key), _) => match annotations.get(key) {
            Some(value) => value,
            None => return Err(missing_annotation(key, claim(parameters), variable)),
        },
        (
            ClaimContext::Of(parameters) | ClaimContext::Read(parameters, _),
            None,
            Some((_, key)),
        ) => {
            let value = parameters.get(*key).filter(|value| !value.is_empty());
            value.ok_or_else(|| unknown_claim(variable))?
        }
    };
    let segment = !matches!(&**value, "" | "." | "..")
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if segment {
        return Ok(value.clone());
    }
    let whose = match of {
        ClaimContext::Read(parameters, _) if asked.is_some() => {
            claim(parameters).map(|claim| format!(" of claim {claim}")).unwrap_or_default()
        }
        _ => String::new(),
    };
    Err(Error::invalid(format!(
        "${{{variable}}} in prefix{whose} is {:?}, which is not one segment of a path: letters, \
         digits, '.', '_' or '-', and neither '.' nor '..'",
        shown(value, 100)
    )))
}

fn missing_annotation(key: &str, claim: Option<ClaimName<'_>>, variable: &str) -> Error {
    let Some(claim) = claim else { return unknown_claim(variable) };
    let ClaimName { namespace, name } = claim;
    // Not `Invalid`: the annotation may still be added, and after `Invalid`
    // external-provisioner waits at least five minutes before it retries.
    let text = format!(
        "claim {claim} has no annotation {key}, which names its model: kubectl annotate pvc -n \
         {} {} {key}=MODEL",
        shown(namespace, 63),
        shown(name, 253)
    );
    Error::new(ErrorKind::Precondition, text)
}

fn unknown_variable(variable: &str) -> Error {
    let names = VARIABLES.iter().map(|(name, _)| *name).chain([ANNOTATION]);
    let known: Vec<_> = names.map(|name| format!("${{{name}}}")).collect();
    Error::invalid(format!(
        "unknown variable ${{{}}} in prefix; known are {}",
        shown(variable, 100),
        known.join(", ")
    ))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
