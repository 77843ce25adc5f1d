//! What a scan takes for a model, and what for a problem.

use super::*;

fn scan(root: &str, names: &[&str]) -> Vec<ScannedModel> {
    let mut scan = Scan::new(root, 1000);
    let mut names = names.to_vec();
    names.sort_unstable();
    for name in names {
        let md5 = Some("1B2M2Y8AsgTpgAmY7PhCfg==".to_owned());
        let (name, etag) = (name.to_owned(), "e".to_owned());
        let object = ObjectSummary { name, size: 1, etag, md5, ..ObjectSummary::default() };
        scan.add(&object).unwrap();
    }
    scan.models(true)
}

fn prefixes(root: &str, names: &[&str]) -> Vec<String> {
    scan(root, names).into_iter().map(|scanned| scanned.model.prefix).collect()
}

#[test]
fn a_model_is_the_topmost_directory_with_a_file_that_loaders_open() {
    for (root, names, expected) in [
        ("m/", &["m/a/config.json", "m/b/w.gguf"][..], &["m/a/", "m/b/"][..]),
        // Everything below belongs to it, also what comes before its own files.
        ("m/", &["m/a/audio/config.json", "m/a/model_index.json"], &["m/a/"]),
        ("", &["m/a/v1/w.safetensors", "m/a/v2/w.safetensors"], &["m/a/v1/", "m/a/v2/"]),
        // Loose files beside models are no model.
        ("m/", &["m/README.md", "m/a/config.json"], &["m/a/"]),
        // The prefix may be a model itself.
        ("m/a/", &["m/a/config.json", "m/a/sub/config.json"], &["m/a/"]),
        // Without any such file, the topmost directory with objects counts.
        ("m/", &["m/x/one", "m/y/deep/two", "m/y/deep/er/three"], &["m/x/", "m/y/deep/"]),
        ("m/", &["m/a-b/config.json", "m/a/config.json"], &["m/a-b/", "m/a/"]),
        ("m/", &["m/"], &[]),
    ] {
        assert_eq!(prefixes(root, names), expected, "{names:?}");
    }
}

#[test]
fn names_that_no_directory_can_show_are_problems() {
    let problems = |names: &[&str]| {
        let scanned = scan("m/", names).remove(0);
        scanned.model.problems.into_iter().map(|one| (one.kind, one.objects)).collect::<Vec<_>>()
    };
    assert_eq!(problems(&["m/a/config.json"]), []);
    let collision = ["m/a/config.json", "m/a/w", "m/a/w-1", "m/a/w.x", "m/a/w/1", "m/a/w/2"];
    assert_eq!(problems(&collision), [(ProblemKind::Collision, 2)]);
    let unsafe_names = ["m/a/config.json", "m/a/../b", "m/a/x//y"];
    assert_eq!(problems(&unsafe_names), [(ProblemKind::UnsafeName, 2)]);
}

#[test]
fn names_of_one_directory_that_differ_only_in_case_or_form_are_problems() {
    for (names, twins) in [
        (&["m/a/Config.json", "m/a/config.json", "m/a/model.gguf"][..], 1),
        (&["m/a/config.json", "m/a/x/README", "m/a/y/readme"], 0),
        (&["m/a/config.json", "m/a/X/1", "m/a/X/2", "m/a/x/1"], 1),
        (&["m/a/config.json", "m/a/caf\u{e9}", "m/a/cafe\u{301}"], 1),
        (&["m/a/config.json", "m/a/caf\u{c9}", "m/a/caf\u{e9}"], 1),
    ] {
        let model = scan("m/", names).remove(0).model;
        let found: Vec<_> = model.problems.iter().map(|one| (one.kind, one.objects)).collect();
        let expected: Vec<_> =
            (twins > 0).then_some((ProblemKind::NameTwins, twins)).into_iter().collect();
        assert_eq!(found, expected, "{names:?}");
    }
    // Models beside each other are none of each other's files.
    let models = scan("m/", &["m/A/config.json", "m/a/config.json"]);
    assert!(models.iter().all(|scanned| scanned.model.problems.is_empty()));
}

#[test]
fn a_model_with_more_objects_than_the_driver_mounts_is_one_that_has_a_problem() {
    let mut scan = Scan::new("m/", 2);
    for name in ["m/a/1", "m/a/2", "m/b/1", "m/b/2", "m/b/config.json"] {
        let md5 = Some("1B2M2Y8AsgTpgAmY7PhCfg==".to_owned());
        let object = ObjectSummary { name: name.to_owned(), md5, ..ObjectSummary::default() };
        scan.add(&object).unwrap();
    }
    let models = scan.models(false);
    assert_eq!(models[0].model.problems, []);
    let problem = &models[1].model.problems[0];
    assert_eq!((problem.kind, problem.objects), (ProblemKind::TooManyObjects, 3));
}

#[test]
fn what_is_wrong_above_a_model_is_not_its_problem() {
    let scanned = scan("", &["models/llama", "models/llama/config.json"]).remove(0);
    let found = (scanned.model.prefix.as_str(), scanned.model.problems.len());
    assert_eq!(found, ("models/llama/", 0));
}

#[test]
fn a_stray_file_at_the_root_hides_no_model_from_a_pattern() {
    let mut scan = Scan::new("m/", 1000);
    for name in ["m/config.json", "m/llama/config.json"] {
        let object = ObjectSummary { name: name.to_owned(), size: 1, ..Default::default() };
        scan.add(&object).unwrap();
    }
    let models = scan.models(false);
    assert_eq!(models.len(), 1);
    assert_eq!(models[0].model.prefix, "m/llama/");
}

#[test]
fn the_shards_of_a_model_are_those_of_all_its_directories_once() {
    let names = ["m/a/config.json", "m/a/x/1.safetensors", "m/a/x/deep/2.safetensors"];
    let scanned = scan("m/", &names).remove(0);
    assert_eq!(scanned.shards, ["m/a/x/1.safetensors", "m/a/x/deep/2.safetensors"]);
}

#[test]
fn names_of_many_levels_do_not_take_memory_for_each() {
    let deep = format!("m/a/config.json{}", "/x".repeat(400));
    assert_eq!(prefixes("m/", &["m/a/config.json", &deep]), ["m/a/"]);
}
