//! The patterns of `include` and `exclude`, as the oci CLI has them
//! (Python's fnmatch): `*` crosses `/`, `?` is one character, `[...]` a set, of
//! which `!` gives the complement and `^` is literal. Beyond the oci CLI, a
//! pattern that ends in `/` selects what is in that directory.

use super::matcher::Matcher;
use super::{Warning, WarningKind, shown};
use crate::error::{Error, Result, is_invisible};

/// Longest pattern, in bytes, as the longest object name.
const LONGEST: usize = 1024;

/// Patterns of one list.
const MOST: usize = 32;

/// Patterns that one warning names.
const MOST_NAMED: usize = 3;

/// Steps of comparing that one request may take: about a second of one core. 32
/// plain patterns over 100,000 names of usual length take a third.
const STEPS: u64 = 1_000_000_000;

/// One pattern over a relative object name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Literal(char),
    AnyOne,
    AnyRun,
    Set { negated: bool, ranges: Vec<(char, char)> },
}

/// Which relative names a model selects: any `include` (all names when there
/// is none), and no `exclude`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Pattern {
    /// Parses a pattern; an empty one, braces, an unclosed set, and what can
    /// match no name are `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let text = shown(text, 100);
            Err(Error::invalid(format!("pattern {text:?} {why}")))
        };
        if text.is_empty() {
            return refuse("is empty");
        }
        if text.len() > LONGEST {
            return refuse(&format!("is longer than {LONGEST} bytes"));
        }
        if let Some(why) = matches_no_name(text) {
            return refuse(why);
        }
        let mut tokens = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '{' | '}' => {
                    return refuse("has braces, which are not expanded: list patterns with commas");
                }
                '\0' => return refuse("contains a NUL"),
                // Runs of stars mean the same as one, and cost time in matching.
                '*' if tokens.last() == Some(&Token::AnyRun) => {}
                '*' => tokens.push(Token::AnyRun),
                '?' => tokens.push(Token::AnyOne),
                '[' => {
                    let negated = rest.next_if_eq(&'!').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        let Some(low) = rest.next() else {
                            return refuse("has a '[' without its ']'");
                        };
                        if low == ']' && !ranges.is_empty() {
                            break;
                        }
                        let mut ahead = rest.clone();
                        match (ahead.next(), ahead.next()) {
                            (Some('-'), Some(high)) if high != ']' => {
                                if high < low {
                                    return refuse("has a range that runs backwards");
                                }
                                ranges.push((low, high));
                                rest = ahead;
                            }
                            _ => ranges.push((low, low)),
                        }
                    }
                    tokens.push(Token::Set { negated, ranges });
                }
                c => tokens.push(Token::Literal(c)),
            }
        }
        if tokens.last() == Some(&Token::Literal('/')) {
            tokens.push(Token::AnyRun);
        }
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// A pattern that matches this name, whatever characters it has, and few
    /// others: what a message advises for `exclude`. `None` for a name that is
    /// too long for a message.
    pub fn advised_for(name: &str) -> Option<String> {
        const MOST_SHOWN: usize = 80;
        if name.is_empty() || name.len() > MOST_SHOWN {
            return None;
        }
        let last = name.chars().count() - 1;
        let mut advised = String::new();
        for (at, c) in name.chars().enumerate() {
            let plain = match c {
                '*' | '?' | '[' | '{' | '}' | ',' | '"' | '\'' => false,
                '/' => at != 0 && at != last && !advised.ends_with('/') && advised != ".",
                ' ' => at != 0 && at != last,
                c => !c.is_control() && !c.is_whitespace() && !is_invisible(c),
            };
            advised.push(if plain { c } else { '?' });
        }
        Some(advised)
    }

    /// Whether the whole name matches, in linear time.
    pub fn matches(&self, name: &str) -> bool {
        let mut endless = u64::MAX;
        Matcher::new(&self.tokens).compare(name, &mut endless).unwrap_or(false)
    }

    /// What whoever wrote a pattern that matches nothing may have meant.
    fn hint(&self) -> Option<&'static str> {
        if self.text.contains(char::is_whitespace) {
            return Some("patterns are separated by commas, not by spaces");
        }
        if self.text.contains("[^") {
            return Some("`[!…]` is a set's complement, and `^` is literal");
        }
        let plain = !self.text.contains(['*', '?', '[']);
        plain
            .then_some("a directory is written with a slash at its end, a file with its whole name")
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Why no name below a prefix can match a pattern, with what to write instead.
fn matches_no_name(text: &str) -> Option<&'static str> {
    let quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    Some(match text {
        _ if text.contains(['\n', '\r']) => {
            "has a line break, which no object name has: separate patterns with commas"
        }
        _ if quoted('"') || quoted('\'') => {
            "has quotes around it, which would be part of the name: remove the inner quotes"
        }
        _ if text.starts_with('/') => {
            "starts with '/': names are relative to the prefix, remove the slash"
        }
        _ if text.starts_with("./") => {
            "starts with './': names are relative to the prefix, remove it"
        }
        _ if text.contains("//") => "has '//', which no file's name has: write one slash",
        _ => return None,
    })
}

impl Token {
    /// The characters that it tells from others.
    pub(super) fn ranges(&self) -> Vec<(char, char)> {
        match self {
            Self::Literal(c) => vec![(*c, *c)],
            Self::AnyOne | Self::AnyRun => Vec::new(),
            Self::Set { ranges, .. } => ranges.clone(),
        }
    }

    pub(super) fn takes(&self, c: char) -> bool {
        match self {
            Self::Literal(literal) => *literal == c,
            Self::AnyOne => true,
            Self::AnyRun => false,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

impl Filters {
    /// Parses the comma-separated lists of the attributes `include` and `exclude`.
    pub fn parse(include: Option<&str>, exclude: Option<&str>) -> Result<Self> {
        let list = |key: &str, text: Option<&str>| -> Result<Vec<Pattern>> {
            text.map_or(Ok(Vec::new()), |text| {
                check_list(text).map_err(|e| e.context(key))?;
                if text.split(',').nth(MOST).is_some() {
                    let text = format!("{key} has more than {MOST} patterns; {MOST} are the most");
                    return Err(Error::invalid(text));
                }
                text.split(',')
                    .map(|one| Pattern::parse(one.trim()).map_err(|e| e.context(key)))
                    .collect()
            })
        };
        Ok(Self { include: list("include", include)?, exclude: list("exclude", exclude)? })
    }

    /// For the names of one request.
    pub fn selection(&self) -> Selection {
        let ready = |patterns: &[Pattern]| -> Vec<Matcher> {
            patterns.iter().map(|pattern| Matcher::new(&pattern.tokens)).collect()
        };
        let (include, exclude) = (ready(&self.include), ready(&self.exclude));
        let matched = vec![false; include.len() + exclude.len()];
        Selection { include, exclude, matched, left: STEPS }
    }

    /// A warning that names the patterns which matched none of the names that
    /// this selection was asked about.
    pub fn unmatched(&self, selection: &Selection) -> Option<Warning> {
        let keys = self.include.iter().map(|one| (one, "include"));
        let keys = keys.chain(self.exclude.iter().map(|one| (one, "exclude")));
        let unmatched = keys.zip(&selection.matched).filter(|(_, matched)| !**matched);
        let unmatched: Vec<(&Pattern, &str)> = unmatched.map(|(one, _)| one).collect();
        let named = unmatched.iter().take(MOST_NAMED);
        let named = named.map(|(one, key)| format!("\"{}\" of {key}", shown(&one.text, 60)));
        let named = named.collect::<Vec<_>>().join(", ");
        let more = match unmatched.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let hint = unmatched.iter().find_map(|(one, _)| one.hint()).unwrap_or(
            "a pattern is compared with the whole name below the prefix, of which `*` crosses `/`",
        );
        let text = format!("no name matches the pattern {named}{more}: {hint}");
        (!unmatched.is_empty()).then(|| Warning::new(WarningKind::Pattern, text))
    }

    /// Whether every name is selected.
    pub fn is_everything(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// One text for equal filters, for digests, and another for any others.
    pub fn canonical(&self) -> String {
        let list = |patterns: &[Pattern]| {
            // `d/` was the name `d/` alone once, and is what `d/*` is.
            let text = |pattern: &Pattern| match pattern.text.ends_with('/') {
                true => format!("{}*", pattern.text),
                false => pattern.text.clone(),
            };
            let mut texts: Vec<String> = patterns.iter().map(text).collect();
            texts.sort_unstable();
            texts.dedup();
            texts
        };
        let (include, exclude) = (list(&self.include), list(&self.exclude));
        let separates = |text: &String| text.contains([',', '\n']);
        if !include.iter().chain(&exclude).any(separates) {
            // The form of earlier versions, which has exactly one line break.
            return format!("{}\n{}", include.join(","), exclude.join(","));
        }
        let whole = |texts: Vec<String>| {
            let each = texts.iter().map(|text| format!("{}:{text}", text.len()));
            format!("{}\n{}", texts.len(), each.collect::<String>())
        };
        format!("\n{}\n{}", whole(include), whole(exclude))
    }
}

/// Refuses quotes around a whole list, which its parts do not show.
fn check_list(text: &str) -> Result<()> {
    let (text, quotes) = (text.trim(), ['"', '\'']);
    let quoted =
        quotes.iter().any(|q| text.len() > 1 && text.starts_with(*q) && text.ends_with(*q));
    // `'*.bin','*.onnx'` is told by its first pattern.
    if quoted && text.matches(quotes).count() == 2 && text.contains(',') {
        let text = shown(text, 100);
        return Err(Error::invalid(format!(
            "{text:?} has quotes around it, which would be part of the names: remove the inner \
             quotes"
        )));
    }
    Ok(())
}

/// What filters select of one listing. Whoever writes the patterns may have
/// written the names too, and must not keep a core busy for hours.
#[derive(Debug)]
pub struct Selection {
    include: Vec<Matcher>,
    exclude: Vec<Matcher>,
    /// Which patterns matched a name so far, those of `include` first.
    matched: Vec<bool>,
    left: u64,
}

impl Selection {
    /// Whether the relative name is selected; exclude wins.
    ///
    /// # Errors
    /// `Invalid` when comparing all names so far took too long.
    pub fn has(&mut self, name: &str) -> Result<bool> {
        if self.include.is_empty() && self.exclude.is_empty() {
            return Ok(true);
        }
        self.compare(name).ok_or_else(|| {
            Error::invalid(
                "comparing include and exclude with the names below the prefix takes too long: \
                 write fewer and shorter patterns, or name a longer prefix",
            )
        })
    }

    fn compare(&mut self, name: &str) -> Option<bool> {
        let left = &mut self.left;
        let (included, excluded) = self.matched.split_at_mut(self.include.len());
        let mut any = |patterns: &mut [Matcher], matched: &mut [bool]| {
            let mut any = false;
            for (pattern, matched) in patterns.iter_mut().zip(matched) {
                // One that matched nothing yet is compared, even if it decides nothing.
                if (!any || !*matched) && pattern.compare(name, left)? {
                    (any, *matched) = (true, true);
                }
            }
            Some(any)
        };
        let everything = self.include.is_empty();
        let included = any(&mut self.include, included)?;
        let excluded = any(&mut self.exclude, excluded)?;
        Some((included || everything) && !excluded)
    }
}

#[cfg(test)]
mod tests {
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
        // One that another one hides has matched all the same.
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
    fn what_takes_too_long_all_the_same_is_refused() {
        let run = "a".repeat(1000);
        let list = vec![format!("*{}b", "?".repeat(1000)); MOST].join(",");
        let filters = Filters::parse(None, Some(&list)).unwrap();
        let mut selection = Selection { left: 20_000_000, ..filters.selection() };
        let refused = (0..100_000).find_map(|_| selection.has(&run).err());
        let error = refused.expect("it took all the steps of the world");
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
    }

    #[test]
    fn what_people_write_is_far_from_taking_too_long() {
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
    fn naive(tokens: &[Token], name: &[char]) -> bool {
        match tokens.split_first() {
            None => name.is_empty(),
            Some((Token::AnyRun, rest)) => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
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
        #[test]
        fn the_pattern_that_a_message_advises_matches_the_name(name in "[ab*?/.,'\"\\[{} \t^!é\u{202e}]{1,12}") {
            let advised = Pattern::advised_for(&name).unwrap();
            let filters = Filters::parse(None, Some(&advised)).unwrap();
            prop_assert!(!filters.selection().has(&name).unwrap(), "{} for {:?}", advised, name);
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
    }
}
