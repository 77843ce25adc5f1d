use proptest::prelude::*;

use super::*;

fn matches(pattern: &str, name: &str) -> bool {
    Pattern::parse(pattern).unwrap().matches(name)
}

#[test]
fn patterns_match_as_the_oci_cli_matches() {
    for (pattern, name, expected) in [
        ("*", "", true),
        ("*", "a/b/c", true),
        ("*.safetensors", "sub/model-1.safetensors", true),
        ("*.safetensors", "model.safetensors.index.json", false),
        ("?", "ä", true),
        ("?", "", false),
        ("a?c", "a/c", true),
        ("[abc]x", "bx", true),
        ("[!abc]x", "bx", false),
        ("[!abc]x", "dx", true),
        ("model-[0-9][0-9].bin", "model-07.bin", true),
        ("[]]", "]", true),
        ("[a-]", "-", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-b-b", false),
        ("sub/*", "sub/", true),
        ("[^a]", "^", true),
        ("[^a]", "a", true),
        ("[^a]", "b", false),
        ("[!^]", "^", false),
        ("[!!]", "!", false),
        ("[a!]", "!", true),
        ("original/", "original/", true),
        ("original/", "original/consolidated.00.pth", true),
        ("original/", "original/a/b", true),
        ("original/", "original", false),
        ("original/", "x/original/a", false),
        ("*/", "a/b", true),
        ("*/", "a", false),
    ] {
        assert_eq!(matches(pattern, name), expected, "{pattern} over {name}");
    }
}

#[test]
fn patterns_that_cannot_mean_what_was_meant_are_refused() {
    for bad in ["", "*.{json,txt}", "[abc", "[", "[z-a]"] {
        assert!(Pattern::parse(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn patterns_that_can_match_no_name_are_refused_with_what_to_write() {
    for (list, remedy) in [
        ("*.bin\n*.onnx\n", "separate patterns with commas"),
        ("*.bin\r\n*.onnx", "separate patterns with commas"),
        ("a, *.bin\n*.onnx", "separate patterns with commas"),
        ("/original/*", "remove the slash"),
        ("/", "remove the slash"),
        ("./original/*", "remove it"),
        ("original//x", "write one slash"),
        ("\"*.bin\"", "remove the inner quotes"),
        ("'*.bin'", "remove the inner quotes"),
        ("'*.bin','*.onnx'", "remove the inner quotes"),
        ("'*.bin, *.onnx'", "remove the inner quotes"),
        ("\"*.bin,*.onnx\"", "remove the inner quotes"),
    ] {
        let error = Filters::parse(None, Some(list)).expect_err(list);
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
        assert!(error.message().starts_with("exclude: "), "{error}");
        assert!(error.message().contains(remedy), "{list:?}: {error}");
        assert!(!error.message().contains('\n'), "{error}");
    }
    for good in ["*.bin\n", "*.bin,\n*.onnx\n", "it's", "'", "\"", "a/./b", ".git/*", "a'*b'"] {
        assert!(Filters::parse(None, Some(good)).is_ok(), "{good:?} was refused");
    }
}

#[test]
fn a_pattern_that_matched_nothing_is_a_warning_with_what_was_meant() {
    let warned = |include, exclude, names: &[&str]| {
        let filters = Filters::parse(include, exclude).unwrap();
        let mut selection = filters.selection();
        for name in names {
            selection.has(name).unwrap();
        }
        filters.unmatched(&selection).map(|warning| warning.text)
    };
    let names = ["config.json", "original/w.pth", "w.bin"];
    assert_eq!(warned(Some("*.json, *"), Some("*.pth"), &names), None);
    assert_eq!(warned(None, None, &names), None);
    // A pattern that another one hides has matched anyway.
    assert_eq!(warned(Some("*,config.json"), Some("*.bin,w.bin"), &names), None);
    for (pattern, hint) in [
        ("*.bin *.onnx", "separated by commas"),
        ("original", "slash at its end"),
        ("[^n]*", "`[!…]`"),
        ("*.onnx", "the whole name below the prefix"),
    ] {
        let text = warned(None, Some(pattern), &names).unwrap();
        assert!(text.contains(&format!("\"{pattern}\" of exclude")), "{text}");
        assert!(text.contains(hint), "{text}");
    }
    let many = vec!["x\u{202e}".repeat(150); MOST].join(",");
    let text = warned(Some(&many), Some(&many), &names).unwrap();
    assert!(text.contains(" and 61 more"), "{text}");
    assert!(text.chars().count() < 800 && !text.contains('\u{202e}'), "{text}");
}

#[test]
fn a_directory_is_left_out_where_exclude_matches_all_that_can_be_in_it() {
    for (exclude, directory, left_out) in [
        ("original/", "original/", true),
        ("original/", "original/deeper/", true),
        ("*/blobs/", "models--a--b/blobs/", true),
        ("ori*", "original/", true),
        ("*", "original/", true),
        ("original/", "originals/", false),
        ("original", "original/", false),
        ("original/*.pth", "original/", false),
        ("*.pth", "original/", false),
        ("blobs/", "sub/blobs/", false),
        ("original/?*", "original/", false),
    ] {
        let filters = Filters::parse(None, Some(exclude)).unwrap();
        let found = filters.selection().leaves_out(directory).unwrap();
        assert_eq!(found, left_out, "{exclude} for {directory}");
    }
    let everything = Filters::parse(Some("*.json"), None).unwrap();
    assert!(!everything.selection().leaves_out("original/").unwrap());
}

#[test]
fn a_pattern_that_can_match_in_a_directory_that_is_left_out_is_no_warning() {
    let filters =
        Filters::parse(Some("*.json, weights/*"), Some("original/, original/x, other/, x"))
            .unwrap();
    let mut selection = filters.selection();
    assert!(selection.leaves_out("original/").unwrap());
    let text = filters.unmatched(&selection).unwrap().text;
    for (pattern, is_named) in [
        ("*.json", false),
        ("original/", false),
        ("original/x", false),
        ("weights/*", true),
        ("x", true),
    ] {
        assert_eq!(text.contains(&format!("\"{pattern}\" of")), is_named, "{pattern}: {text}");
    }
}

#[test]
fn a_directory_with_and_without_its_star_is_one_request() {
    let text = |list| Filters::parse(None, Some(list)).unwrap().canonical();
    assert_eq!(text("original/"), text("original/*"));
    assert_ne!(text("original/"), text("original"));
}

#[test]
fn exclude_wins_over_include() {
    let filters = Filters::parse(Some("*.json, *.bin"), Some("training_*")).unwrap();
    let mut selection = filters.selection();
    for (name, selected) in
        [("config.json", true), ("training_args.bin", false), ("README.md", false)]
    {
        assert_eq!(selection.has(name).unwrap(), selected, "{name}");
    }
}

#[test]
fn a_list_has_so_many_patterns_at_most() {
    let list = |patterns: usize| vec!["*.json"; patterns].join(",");
    Filters::parse(Some(&list(MOST)), Some(&list(MOST))).unwrap();
    for (include, exclude) in [(MOST + 1, 1), (1, MOST + 1)] {
        let error =
            Filters::parse(Some(&list(include)), Some(&list(exclude))).expect_err("was taken");
        assert!(error.message().ends_with("more than 32 patterns; 32 are the most"), "{error}");
    }
}

#[test]
fn patterns_and_names_that_are_made_for_it_take_linear_time() {
    let run = "a".repeat(1000);
    let made = [
        format!("*{run}b*"),
        format!("*{}b*", "?".repeat(480)),
        format!("*{}b*", "[0-9a]".repeat(100)),
        format!("{}b", "*a".repeat(500)),
    ];
    for pattern in &made {
        let filters = Filters::parse(None, Some(pattern)).unwrap();
        let mut selection = filters.selection();
        assert!(selection.has(&run).unwrap());
        let taken = STEPS - selection.left;
        // A character costs a word for each 64 tokens, and no more.
        let most = 1000 * (pattern.len() as u64 / 64 + 1);
        assert!(taken <= most, "{taken} steps for {pattern}");
    }
}

#[test]
fn a_comparison_that_still_takes_too_long_is_refused() {
    let run = "a".repeat(1000);
    let list = vec![format!("*{}b", "?".repeat(1000)); MOST].join(",");
    let filters = Filters::parse(None, Some(&list)).unwrap();
    let mut selection = NameSelection { left: 20_000_000, ..filters.selection() };
    let refused = (0..100_000).find_map(|_| selection.has(&run).err());
    let error = refused.expect("it took all the steps of the world");
    assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
}

#[test]
fn usual_patterns_are_far_from_taking_too_long() {
    let written = vec!["*model-[0-9]*of-*.safetensors"; MOST].join(",");
    let filters = Filters::parse(None, Some(&written)).unwrap();
    let mut selection = filters.selection();
    assert!(selection.has(&format!("transformer/{}.json", "layer-".repeat(14))).unwrap());
    let taken = STEPS - selection.left;
    assert!(taken * 100_000 < STEPS, "{taken} steps for one of 100,000 names");
}

#[test]
fn a_hostile_pattern_takes_no_exponential_time() {
    let pattern = Pattern::parse(&"*a".repeat(200)).unwrap();
    assert!(!pattern.matches(&"a".repeat(199)));
    assert!(pattern.matches(&"a".repeat(1000)));
}

/// The obvious recursion, slow and plainly right.
fn naive(tokens: &[PatternToken], name: &[char]) -> bool {
    match tokens.split_first() {
        None => name.is_empty(),
        Some((PatternToken::AnyRun, rest)) => {
            (0..=name.len()).any(|skip| naive(rest, &name[skip..]))
        }
        Some((one, rest)) => {
            name.split_first().is_some_and(|(c, tail)| one.takes(*c) && naive(rest, tail))
        }
    }
}

#[test]
fn long_patterns_match_across_the_borders_of_words() {
    for length in [62, 63, 64, 65, 127, 128, 129, 500] {
        let pattern = Pattern::parse(&format!("{}*é", "?".repeat(length))).unwrap();
        assert!(pattern.matches(&format!("{}é", "x".repeat(length))), "{length}");
        assert!(pattern.matches(&format!("{}é", "ö".repeat(length + 70))), "{length}");
        assert!(!pattern.matches(&format!("{}é", "x".repeat(length - 1))), "{length}");
        let literal = Pattern::parse(&"a".repeat(length)).unwrap();
        assert!(literal.matches(&"a".repeat(length)), "{length}");
        assert!(!literal.matches(&"a".repeat(length + 1)), "{length}");
    }
}

proptest! {
    #![proptest_config(seeded::cases(256))]

    #[test]
    fn the_pattern_that_a_message_advises_matches_the_name(name in "[ab*?/.,'\"\\[{} \t^!é\u{202e}]{1,12}") {
        let advised = Pattern::advised_for(&name).unwrap();
        let filters = Filters::parse(None, Some(&advised)).unwrap();
        prop_assert!(!filters.selection().has(&name).unwrap(), "{} for {:?}", advised, name);
    }

    #[test]
    fn no_name_in_a_directory_that_is_left_out_is_selected(
        exclude in "[ab*?/]{1,6}", directory in "[ab]{1,3}/", rest in "[ab/]{1,5}"
    ) {
        let Ok(filters) = Filters::parse(None, Some(&exclude)) else { return Ok(()) };
        let mut selection = filters.selection();
        if selection.leaves_out(&directory).unwrap() {
            let name = directory + &rest;
            prop_assert!(!selection.has(&name).unwrap(), "{}", name);
        } else {
            prop_assert!(exclude != directory && exclude != "*", "{} keeps {}", exclude, directory);
        }
    }

    #[test]
    fn matching_agrees_with_the_obvious_recursion(
        pattern in "([abé*?/]|\\[[ac]\\]|\\[!b-ö\\]){1,8}", name in "[abéz/]{0,10}"
    ) {
        // Some can match no name and are refused.
        let Ok(pattern) = Pattern::parse(&pattern) else { return Ok(()) };
        let chars: Vec<char> = name.chars().collect();
        prop_assert_eq!(pattern.matches(&name), naive(&pattern.tokens, &chars));
    }
}

#[test]
fn filters_that_differ_have_texts_that_differ_whatever_is_in_them() {
    let patterns = |texts: &[&str]| -> Vec<Pattern> {
        let tokens = Vec::new;
        texts.iter().map(|t| Pattern { text: (*t).to_owned(), tokens: tokens() }).collect()
    };
    let lists: [&[&str]; 10] = [
        &[],
        &["a"],
        &["a", "b"],
        &["a,b"],
        &["a\nb"],
        &["b\nc"],
        &["c"],
        &["b"],
        &["1:a"],
        &["a", "1:b"],
    ];
    let mut seen = std::collections::HashMap::new();
    for include in lists {
        for exclude in lists {
            let filters = Filters { include: patterns(include), exclude: patterns(exclude) };
            let before = seen.insert(filters.canonical(), (include, exclude));
            assert_eq!(before, None, "is the text of {include:?}, {exclude:?} too");
        }
    }
    let plain = Filters::parse(Some("b, a,b"), Some("c")).unwrap();
    assert_eq!(plain.canonical(), "a,b\nc", "as earlier versions wrote it");
    // Earlier versions selected other names by it: what they cached is not meant.
    let caret = Filters::parse(Some("[^a]*"), None).unwrap();
    assert_ne!(caret.canonical(), "[^a]*\n");
}
