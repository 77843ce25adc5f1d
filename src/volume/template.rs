//! `${pvc.name}` in a StorageClass's prefix.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// Where external-provisioner tells the claim's namespace.
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// The variables, and where external-provisioner tells their values.
const VARIABLES: [(&str, &str); 3] = [
    ("pvc.name", "csi.storage.k8s.io/pvc/name"),
    ("pvc.namespace", NAMESPACE),
    ("pv.name", "csi.storage.k8s.io/pv/name"),
];

/// The metadata that is known of the claim that asks.
#[derive(Clone, Copy)]
pub(super) enum Claim<'a> {
    /// The parameters as external-provisioner sends them.
    Of(&'a HashMap<String, String>),
    /// Any: only the form of the text is checked.
    Any,
}

/// The namespace of the claim that asks, if it is told.
pub(super) fn namespace(parameters: &HashMap<String, String>) -> Option<&str> {
    parameters.get(NAMESPACE).map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether a text asks for a substitution at all.
pub(super) fn is_template(text: &str) -> bool {
    text.contains("${")
}

/// The text with its variables replaced.
///
/// # Errors
/// `Invalid` for a variable that is not known, or whose value is not: the
/// message names the provisioner's flag; and for a value that is not one
/// segment of a path.
pub(super) fn expand(text: &str, claim: Claim<'_>) -> Result<String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((variable, remaining)) = after.split_once('}') else {
            return Err(Error::invalid(format!("{text:?} has a ${{ without its }}")));
        };
        expanded.push_str(before);
        expanded.push_str(&value_of(variable, claim)?);
        rest = remaining;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn value_of(variable: &str, claim: Claim<'_>) -> Result<String> {
    let Some((_, key)) = VARIABLES.iter().find(|(known, _)| *known == variable) else {
        return Err(unknown(variable));
    };
    let value = match claim {
        Claim::Any => return Ok("any".to_owned()),
        Claim::Of(parameters) => parameters.get(*key).filter(|value| !value.is_empty()),
    };
    let Some(value) = value else {
        return Err(Error::invalid(format!(
            "${{{variable}}} in prefix needs to know the claim: run external-provisioner with \
             --extra-create-metadata"
        )));
    };
    let segment = value != "."
        && value != ".."
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !segment {
        return Err(Error::invalid(format!(
            "${{{variable}}} in prefix is {value:?}, which is not one segment of a path: letters, \
             digits, '.', '_' or '-', and neither '.' nor '..'"
        )));
    }
    Ok(value.clone())
}

fn unknown(variable: &str) -> Error {
    let known: Vec<_> = VARIABLES.iter().map(|(name, _)| format!("${{{name}}}")).collect();
    let known = known.join(", ");
    let shown: String = variable.chars().take(100).collect();
    if variable.starts_with("pvc.annotations[") {
        return Error::invalid(format!(
            "${{{shown}}} in prefix is not supported by this version; use one of {known}"
        ));
    }
    Error::invalid(format!("unknown variable ${{{shown}}} in prefix; known are {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn parameters(name: &str) -> HashMap<String, String> {
        [
            ("csi.storage.k8s.io/pvc/name", name),
            ("csi.storage.k8s.io/pvc/namespace", "team-a"),
            ("csi.storage.k8s.io/pv/name", "pvc-1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    #[track_caller]
    fn refused(text: &str, parameters: &HashMap<String, String>) -> String {
        let error = expand(text, Claim::Of(parameters)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.message().to_owned()
    }

    #[test]
    fn the_claim_names_the_model() {
        let given = parameters("llama3-8b");
        for (text, expected) in [
            ("models/${pvc.name}/", "models/llama3-8b/"),
            ("${pvc.namespace}/${pvc.name}", "team-a/llama3-8b"),
            ("x-${pv.name}-$y}", "x-pvc-1-$y}"),
            ("plain/", "plain/"),
            ("", ""),
        ] {
            assert_eq!(expand(text, Claim::Of(&given)).unwrap(), expected);
        }
        assert_eq!(expand("models/${pvc.name}/", Claim::Any).unwrap(), "models/any/");
    }

    #[test]
    fn values_that_are_not_one_segment_are_refused() {
        for bad in [".", "..", "a/b", "a b", "ä", "${pvc.namespace}", "a\0"] {
            let message = refused("models/${pvc.name}/", &parameters(bad));
            assert!(message.contains("not one segment"), "{message}");
        }
    }

    #[test]
    fn a_provisioner_that_tells_nothing_is_told_its_flag() {
        for given in [HashMap::new(), parameters("")] {
            let message = refused("models/${pvc.name}/", &given);
            assert!(message.contains("--extra-create-metadata"), "{message}");
        }
    }

    #[test]
    fn unknown_variables_are_refused_and_the_known_named() {
        let given = parameters("a");
        for text in ["${pvc.nam}", "${}", "${pvc.name", "${PVC.NAME}", "${ pvc.name }"] {
            refused(text, &given);
            assert!(expand(text, Claim::Any).is_err(), "{text}");
        }
        assert!(refused("${x}", &given).contains("${pvc.name}, ${pvc.namespace}"));
        let annotation = refused("models/${pvc.annotations['oci-model-csi.dev/model']}/", &given);
        assert!(annotation.contains("not supported by this version"), "{annotation}");
    }
}
