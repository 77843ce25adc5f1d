use crate::config::Config;

#[test]
fn a_model_of_the_prefetch_list_is_a_uri_or_a_mapping() {
    let config = Config::parse(
        "prefetch:
- oci://b/p
- uri: oci://b/p
  nodeSelector: {pool: gpu, example.com/rack: 7, model-cache: true, empty: \"\"}
- {uri: oci://b/p, nodeSelector: {}}
- {uri: oci://b/q, keepRevisions: 2}
",
        "config.yaml",
    )
    .unwrap();
    let [plain, selected, kept] = &config.prefetch[..] else { panic!("each once: {config:?}") };
    assert_eq!(plain.uri, selected.uri);
    assert!(plain.node_selector.is_empty());
    assert_eq!((plain.keep_revisions, kept.keep_revisions), (None, Some(2)));
    let labels: Vec<String> =
        selected.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["empty=", "example.com/rack=7", "model-cache=true", "pool=gpu"]);
}

#[test]
fn a_wrong_model_of_the_prefetch_list_is_refused_with_its_line() {
    let mut messages = Vec::new();
    for (entry, right) in [
        ("models/phi3/", "is not a model URI"),
        ("7", "a model URI, or a mapping"),
        ("[oci://b/p]", "a model URI, or a mapping"),
        ("", "a model URI, or a mapping"),
        ("{nodeSelector: {a: b}}", "`uri` is missing"),
        ("{uri: s3://b/p}", "is not a model URI"),
        ("{uri: oci://b/p, nodeSelector: a=b}", "section with keys"),
        ("{uri: oci://b/p, nodeSelector: {-a: b}}", "`-a` is not the key of a label"),
        ("{uri: oci://b/p, nodeSelector: {Example.com/a: b}}", "is not the key of a label"),
        ("{uri: oci://b/p, nodeSelector: {a/b/c: b}}", "is not the key of a label"),
        ("{uri: oci://b/p, nodeSelector: {a: b c}}", "`b c` is not the value of a label"),
        ("{uri: oci://b/p, nodeSelector: {a: [b]}}", "single value"),
        ("{uri: oci://b/p, nodeSelector: {a: b, a: c}}", "set twice"),
        ("{uri: oci://b/p, keepRevisions: 0}", "from 1 to 16"),
        ("{uri: oci://b/p, keepRevisions: 17}", "from 1 to 16"),
        ("{uri: oci://b/p, keepRevisions: all}", "from 1 to 16"),
    ] {
        let text = format!("# a comment\nprefetch:\n- {entry}\n");
        let message = Config::parse(&text, "config.yaml").unwrap_err().message().to_owned();
        assert!(message.starts_with("config.yaml, line 3, column "), "{message}");
        assert!(message.contains(right), "{right:?} is not in {message:?}");
        messages.push(format!("{entry}\n    {message}"));
    }
    insta::assert_snapshot!(messages.join("\n"));
}
