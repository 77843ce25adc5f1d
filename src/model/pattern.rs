//! The patterns of `include` and `exclude`, as the oci CLI has them
//! (Python's fnmatch): `*` crosses `/`, `?` is one character, `[...]` a set.

use crate::error::{Error, Result};

/// One pattern over a relative object name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
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
    /// Parses a pattern; an empty one, braces and an unclosed set are `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::invalid(format!("pattern {text:?} {why}")));
        if text.is_empty() {
            return refuse("is empty");
        }
        if text.len() > 1024 {
            return refuse("is longer than 1024 bytes");
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
                    let negated = rest.next_if(|c| matches!(c, '!' | '^')).is_some();
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
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// Whether the whole name matches. Time is at most pattern × name: a
    /// hostile pattern cannot make it exponential.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // Where to go on when the text after the last star did not fit.
        let mut retry: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.tokens.get(token) {
                Some(Token::AnyRun) => {
                    token += 1;
                    retry = Some((token, at));
                }
                Some(one) if one.takes(name[at]) => {
                    token += 1;
                    at += 1;
                }
                _ => match retry {
                    Some((after_star, from)) => {
                        token = after_star;
                        at = from + 1;
                        retry = Some((after_star, at));
                    }
                    None => return false,
                },
            }
        }
        self.tokens[token..].iter().all(|t| *t == Token::AnyRun)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Token {
    fn takes(&self, c: char) -> bool {
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
                text.split(',')
                    .map(|one| Pattern::parse(one.trim()).map_err(|e| e.context(key)))
                    .collect()
            })
        };
        Ok(Self { include: list("include", include)?, exclude: list("exclude", exclude)? })
    }

    /// Whether the relative name is selected; exclude wins.
    pub fn select(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|p| p.matches(name)))
            && !self.exclude.iter().any(|p| p.matches(name))
    }

    /// Whether every name is selected.
    pub fn is_everything(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// One text for equal filters, for digests.
    pub fn canonical(&self) -> String {
        let list = |patterns: &[Pattern]| {
            let mut texts: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
            texts.sort_unstable();
            texts.dedup();
            texts.join(",")
        };
        format!("{}\n{}", list(&self.include), list(&self.exclude))
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
    fn exclude_wins_over_include() {
        let filters = Filters::parse(Some("*.json, *.bin"), Some("training_*")).unwrap();
        assert!(filters.select("config.json"));
        assert!(!filters.select("training_args.bin"));
        assert!(!filters.select("README.md"));
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

    proptest! {
        #[test]
        fn matching_agrees_with_the_obvious_recursion(
            pattern in "[ab*?/]{1,8}", name in "[ab/]{0,10}"
        ) {
            let pattern = Pattern::parse(&pattern).unwrap();
            let chars: Vec<char> = name.chars().collect();
            prop_assert_eq!(pattern.matches(&name), naive(&pattern.tokens, &chars));
        }
    }
}
