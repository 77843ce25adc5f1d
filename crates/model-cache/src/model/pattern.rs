//! The patterns of `include` and `exclude`, as the oci CLI has them
//! (Python's fnmatch): `*` crosses `/`, `?` is one character, `[...]` a set, of
//! which `!` gives the complement and `^` is literal. Beyond the oci CLI, a
//! pattern that ends in `/` selects what is in that directory.

use super::matcher::{Matcher, NamesBelow};
use super::{Warning, WarningKind};
use crate::error::{Error, Result, is_invisible};
use crate::text::shown;

/// The longest pattern in bytes: as the longest object name.
const LONGEST: usize = 1024;

/// The most patterns in one list.
const MOST: usize = 32;

/// The most patterns that one warning names.
const MOST_NAMED: usize = 3;

/// The most steps of comparing for one request: about a second of one core. 32
/// plain patterns over 100,000 names of usual length take a third.
const STEPS: u64 = 1_000_000_000;

/// One pattern over a relative object name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    tokens: Vec<PatternToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PatternToken {
    Literal(char),
    AnyOne,
    AnyRun,
    Set { negated: bool, ranges: Vec<(char, char)> },
}

/// The filters of a model: any `include` (all names when there
/// is none), and no `exclude`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Pattern {
    /// Parses a pattern; an empty one, braces, an unclosed set, and a pattern that
    /// matches no name are `Invalid`.
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
                '*' if tokens.last() == Some(&PatternToken::AnyRun) => {}
                '*' => tokens.push(PatternToken::AnyRun),
                '?' => tokens.push(PatternToken::AnyOne),
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
                    tokens.push(PatternToken::Set { negated, ranges });
                }
                c => tokens.push(PatternToken::Literal(c)),
            }
        }
        if tokens.last() == Some(&PatternToken::Literal('/')) {
            tokens.push(PatternToken::AnyRun);
        }
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// A pattern that matches this name, whatever characters it has, and few
    /// others: messages suggest it for `exclude`. `None` for a name that is
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

    /// What the author of a pattern that matches nothing may have meant.
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

impl PatternToken {
    /// The ranges of characters that the token distinguishes.
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

    /// Starts selecting the names of one request.
    pub fn selection(&self) -> NameSelection {
        let ready = |patterns: &[Pattern]| -> Vec<Matcher> {
            patterns.iter().map(|pattern| Matcher::new(&pattern.tokens)).collect()
        };
        let (include, exclude) = (ready(&self.include), ready(&self.exclude));
        let matched = vec![false; include.len() + exclude.len()];
        NameSelection { include, exclude, matched, left: STEPS }
    }

    /// A warning that names the patterns which matched none of the names that
    /// were passed to this selection.
    pub fn unmatched(&self, selection: &NameSelection) -> Option<Warning> {
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
            "a pattern is compared with the whole name below the prefix, and `*` matches `/` too",
        );
        let text = format!("no name matches the pattern {named}{more}: {hint}");
        (!unmatched.is_empty()).then(|| Warning::new(WarningKind::Pattern, text))
    }

    /// Whether every name is selected.
    pub fn is_everything(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// A text for digests: equal filters have the same text, others a different one.
    pub fn canonical(&self) -> String {
        let list = |patterns: &[Pattern]| {
            // In earlier versions `d/` matched only the name `d/`; now it means `d/*`.
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
        // In earlier versions `^` was the complement of a set; now it is literal.
        let is_other = |text: &String| text.contains("[^");
        if !include.iter().chain(&exclude).any(|text| separates(text) || is_other(text)) {
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
    // The first pattern of `'*.bin','*.onnx'` has its own message.
    if quoted && text.matches(quotes).count() == 2 && text.contains(',') {
        let text = shown(text, 100);
        return Err(Error::invalid(format!(
            "{text:?} has quotes around it, which would be part of the names: remove the inner \
             quotes"
        )));
    }
    Ok(())
}

fn too_long() -> Error {
    Error::invalid(
        "comparing include and exclude with the names below the prefix takes too long: write fewer \
         and shorter patterns, or name a longer prefix",
    )
}

/// What filters select of one listing. The author of the patterns may have
/// written the names too, and must not keep a core busy for hours.
#[derive(Debug)]
pub struct NameSelection {
    include: Vec<Matcher>,
    exclude: Vec<Matcher>,
    /// Which patterns have matched a name so far, those of `include` first.
    matched: Vec<bool>,
    left: u64,
}

impl NameSelection {
    /// Whether the relative name is selected; exclude wins.
    ///
    /// # Errors
    /// `Invalid` when comparing all names so far took too long.
    pub fn has(&mut self, name: &str) -> Result<bool> {
        if self.include.is_empty() && self.exclude.is_empty() {
            return Ok(true);
        }
        self.compare(name).ok_or_else(too_long)
    }

    /// Whether `exclude` leaves out all that is in a directory, whose name ends with a slash. Its
    /// names need not be known then: each pattern that can match one of them counts as matched.
    ///
    /// # Errors
    /// As [`NameSelection::has`].
    pub fn leaves_out(&mut self, directory: &str) -> Result<bool> {
        self.compare_below(directory).ok_or_else(too_long)
    }

    fn compare_below(&mut self, directory: &str) -> Option<bool> {
        let left = &mut self.left;
        let mut below = Vec::new();
        for pattern in &mut self.exclude {
            below.push(pattern.compare_beginning(directory, left)?);
        }
        if !below.contains(&NamesBelow::All) {
            return Some(false);
        }
        let mut of_include = Vec::new();
        for pattern in &mut self.include {
            of_include.push(pattern.compare_beginning(directory, left)?);
        }
        for (matched, below) in self.matched.iter_mut().zip(of_include.iter().chain(&below)) {
            *matched |= *below != NamesBelow::None;
        }
        Some(true)
    }

    fn compare(&mut self, name: &str) -> Option<bool> {
        let left = &mut self.left;
        let (included, excluded) = self.matched.split_at_mut(self.include.len());
        let mut any = |patterns: &mut [Matcher], matched: &mut [bool]| {
            let mut any = false;
            for (pattern, matched) in patterns.iter_mut().zip(matched) {
                // A pattern that has matched nothing yet is compared, even if it decides nothing.
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
#[path = "pattern_tests.rs"]
mod tests;
