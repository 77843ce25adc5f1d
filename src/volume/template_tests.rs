use proptest::prelude::*;

use super::*;

const MODEL: &str = "models/${pvc.annotations['oci-model-csi.dev/model']}/";

fn parameters(name: &str) -> HashMap<String, String> {
    map(&[
        ("csi.storage.k8s.io/pvc/name", name),
        ("csi.storage.k8s.io/pvc/namespace", "team-a"),
        ("csi.storage.k8s.io/pv/name", "pvc-1"),
    ])
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[track_caller]
fn refused(text: &str, of: ClaimContext<'_>) -> String {
    let error = expand(text, of).unwrap_err();
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
        assert_eq!(expand(text, ClaimContext::Of(&given)).unwrap(), expected);
        assert!(!needs_annotations(text), "{text}");
    }
    assert_eq!(expand("models/${pvc.name}/", ClaimContext::Any).unwrap(), "models/any/");
}

#[test]
fn an_annotation_of_the_claim_names_the_model_once_it_is_read() {
    let given = parameters("a-claim");
    let annotations = map(&[("oci-model-csi.dev/model", "phi3"), ("other", "x")]);
    assert!(needs_annotations(MODEL));
    assert_eq!(expand(MODEL, ClaimContext::Any).unwrap(), "models/any/");
    assert_eq!(expand(MODEL, ClaimContext::Of(&given)).unwrap(), MODEL);
    let read = ClaimContext::Read(&given, &annotations);
    assert_eq!(expand(MODEL, read).unwrap(), "models/phi3/");
    let both = "${pvc.name}/${pvc.annotations[\"other\"]}";
    assert_eq!(expand(both, read).unwrap(), "a-claim/x");
}

#[test]
fn an_annotation_that_is_missing_is_named_with_its_claim_and_the_command() {
    let given = parameters("a-claim");
    let error = expand(MODEL, ClaimContext::Read(&given, &HashMap::new())).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Precondition,
        "it may still be added, so the call is retried soon"
    );
    let message = error.message();
    for part in [
        "claim team-a/a-claim has no annotation oci-model-csi.dev/model",
        "kubectl annotate pvc -n team-a a-claim oci-model-csi.dev/model=MODEL",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn values_that_are_not_one_segment_are_refused() {
    let given = parameters("a-claim");
    for bad in [".", "..", "a/b", "a b", "ä", "${pvc.namespace}", "a\0"] {
        let message = refused("models/${pvc.name}/", ClaimContext::Of(&parameters(bad)));
        assert!(message.contains("not one segment"), "{message}");
    }
    for bad in ["", ".", "..", "../secret", "a/b", "/a", "a ", "${pvc.name}", &"x".repeat(5000)] {
        let annotations = map(&[("oci-model-csi.dev/model", bad)]);
        let read = ClaimContext::Read(&given, &annotations);
        if bad.len() > 1000 {
            // The prefix refuses what is too long.
            assert!(expand(MODEL, read).is_ok());
            continue;
        }
        let message = refused(MODEL, read);
        assert!(message.contains("in prefix of claim team-a/a-claim is "), "{message}");
        assert!(message.contains("not one segment"), "{message}");
    }
}

#[test]
fn without_claim_parameters_the_error_names_the_provisioners_flag() {
    for given in [HashMap::new(), parameters("")] {
        let message = refused("models/${pvc.name}/", ClaimContext::Of(&given));
        assert!(message.contains("--extra-create-metadata"), "{message}");
        assert_eq!(claim(&given), None);
    }
}

#[test]
fn unknown_variables_are_refused_and_the_known_ones_listed() {
    let given = parameters("a");
    for text in [
        "${pvc.nam}",
        "${}",
        "${pvc.name",
        "${PVC.NAME}",
        "${ pvc.name }",
        "${pvc.annotations}",
        "${pvc.annotations[]}",
        "${pvc.annotations['']}",
        "${pvc.annotations[model]}",
        "${pvc.annotations['a\"]}",
        "${pvc.annotations['a'b']}",
        "${pvc.labels['a']}",
    ] {
        refused(text, ClaimContext::Of(&given));
        assert!(expand(text, ClaimContext::Any).is_err(), "{text}");
        assert!(!needs_annotations(text), "{text}");
    }
    let message = refused("${x}", ClaimContext::Of(&given));
    assert!(message.contains("${pvc.name}, ${pvc.namespace}, ${pv.name}, ${pvc.annotations['…']}"));
}

proptest! {
    #![proptest_config(seeded::cases(256))]

    #[test]
    fn any_annotation_is_one_directory_or_refused(value in ".{0,12}|[a-z./$]{0,6}") {
        let given = parameters("a-claim");
        let annotations = map(&[("oci-model-csi.dev/model", &value)]);
        if let Ok(prefix) = expand(MODEL, ClaimContext::Read(&given, &annotations)) {
            let segments: Vec<&str> = prefix.split('/').collect();
            prop_assert_eq!(segments, ["models", &*value, ""]);
            prop_assert!(crate::model::Prefix::parse(&prefix).is_ok());
        }
    }
}
