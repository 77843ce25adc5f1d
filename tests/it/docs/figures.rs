//! Figures in documents are those of the code.
//!
//! Each figure with a unit (a time, a size, a percentage, a count) is in `figures.tsv`: the words
//! of the documents that state it, and where it comes from. A source is one of
//!
//! - `file: NAME`, a constant, whose value is compared with the figure;
//! - `file: text … text`, code in which `…` is the value;
//! - `file: text`, code that must be there, where no value can be read;
//! - `fact: reason`, for figures that no code of ours has.
//!
//! A statement with several figures has a source for each of them, in order. Figures in backticks
//! are quotations, which other tests compare.

#![allow(clippy::float_cmp, reason = "figures are written down, not computed")]

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;

use super::{documents, without_blocks};
use crate::support::documents::{read, root};

/// What a figure measures.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Unit {
    Milliseconds,
    Bytes,
    Count,
}

/// A figure of a document, in the smallest unit.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    place: Range<usize>,
    value: f64,
    unit: Unit,
}

/// Units of times and sizes, and what one of them is in the smallest.
const UNITS: [(&str, f64, Unit); 21] = [
    ("ms", 1.0, Unit::Milliseconds),
    ("s", 1e3, Unit::Milliseconds),
    ("second", 1e3, Unit::Milliseconds),
    ("seconds", 1e3, Unit::Milliseconds),
    ("minute", 6e4, Unit::Milliseconds),
    ("minutes", 6e4, Unit::Milliseconds),
    ("h", 3.6e6, Unit::Milliseconds),
    ("hour", 3.6e6, Unit::Milliseconds),
    ("hours", 3.6e6, Unit::Milliseconds),
    ("day", 8.64e7, Unit::Milliseconds),
    ("days", 8.64e7, Unit::Milliseconds),
    ("bytes", 1.0, Unit::Bytes),
    ("KiB", 1024.0, Unit::Bytes),
    ("MiB", 1_048_576.0, Unit::Bytes),
    ("GiB", 1_073_741_824.0, Unit::Bytes),
    ("TiB", 1_099_511_627_776.0, Unit::Bytes),
    ("KB", 1e3, Unit::Bytes),
    ("MB", 1e6, Unit::Bytes),
    ("MB/s", 1e6, Unit::Bytes),
    ("GB", 1e9, Unit::Bytes),
    ("%", 1.0, Unit::Count),
];

/// What is counted, directly after the number or after one adjective.
const COUNTED: [&str; 26] = [
    "answers",
    "attempts",
    "bits",
    "buckets",
    "calls",
    "characters",
    "connections",
    "cores",
    "descriptors",
    "digits",
    "directories",
    "entries",
    "events",
    "files",
    "lines",
    "models",
    "names",
    "objects",
    "patterns",
    "pods",
    "requests",
    "revisions",
    "rounds",
    "sizes",
    "times",
    "volumes",
];

/// Numbers in words. Below three they count with units of time only: `two models` is no figure.
const WORDS: [(&str, f64); 21] = [
    ("half a", 0.5),
    ("half an", 0.5),
    ("quarter of a", 0.25),
    ("a", 1.0),
    ("an", 1.0),
    ("one", 1.0),
    ("two", 2.0),
    ("three", 3.0),
    ("four", 4.0),
    ("five", 5.0),
    ("six", 6.0),
    ("seven", 7.0),
    ("eight", 8.0),
    ("nine", 9.0),
    ("ten", 10.0),
    ("twelve", 12.0),
    ("fifteen", 15.0),
    ("sixteen", 16.0),
    ("twenty", 20.0),
    ("thirty", 30.0),
    ("sixty", 60.0),
];

#[test]
fn every_figure_of_a_document_is_the_codes() {
    let rows = rows();
    let (mut used, mut seen, mut wrong) = (BTreeSet::new(), 0, Vec::new());
    // Its figures are measurements, each with the command that gives it.
    let stated = documents().into_iter().filter(|(place, _)| place != "docs/performance.md");
    for (place, text) in stated {
        let text = without_measurements(&without_blocks(&text));
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = figures(&text);
        for figure in &found {
            seen += 1;
            let around = |range: &Range<usize>| {
                range.start <= figure.place.start && figure.place.end <= range.end
            };
            let row = rows.iter().enumerate().find_map(|(number, row)| {
                let range = row.places(&text).into_iter().find(|range| around(range))?;
                Some((number, row, range))
            });
            let Some((number, row, range)) = row else {
                let shown = around_of(&text, &figure.place);
                wrong.push(format!("{place}: in no row: …{shown}…"));
                continue;
            };
            used.insert(number);
            let of_row: Vec<_> = found
                .iter()
                .filter(|one| range.start <= one.place.start && one.place.end <= range.end)
                .collect();
            if of_row.len() != row.sources.len() {
                wrong.push(format!("{}: {} figures", row.statement, of_row.len()));
                continue;
            }
            let at = of_row.iter().position(|one| *one == figure).unwrap();
            if let Err(why) = agrees(figure, &row.sources[at]) {
                wrong.push(format!("{place}: {:?}: {why}", row.statement));
            }
        }
    }
    let unused = rows.iter().enumerate().filter(|(number, _)| !used.contains(number));
    wrong.extend(unused.map(|(_, row)| format!("no document says {:?}", row.statement)));
    assert!(wrong.is_empty(), "see tests/it/docs/figures.tsv:\n{}", wrong.join("\n"));
    assert!(seen > 100, "{seen} figures");
}

/// A document without what a script writes into it, which is measured.
fn without_measurements(text: &str) -> String {
    let mut parts = text.split("<!-- figures of ");
    let before = parts.next().unwrap_or_default().to_owned();
    parts.fold(before, |text, part| {
        let (_, after) = part.split_once("<!-- end of figures -->").expect("an end of figures");
        text + after
    })
}

/// Some of the text around a place.
fn around_of(text: &str, place: &Range<usize>) -> String {
    let before: Vec<char> = text[..place.start].chars().rev().take(60).collect();
    let after = text[place.start..].chars().take(place.len() + 30);
    before.into_iter().rev().chain(after).collect()
}

/// A row of `figures.tsv`.
struct Row {
    statement: String,
    sources: Vec<String>,
}

impl Row {
    fn places(&self, text: &str) -> Vec<Range<usize>> {
        let found = text.match_indices(&self.statement);
        found.map(|(at, statement)| at..at + statement.len()).collect()
    }
}

fn rows() -> Vec<Row> {
    let text = read("tests/it/docs/figures.tsv");
    let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows = rows.map(|line| {
        let mut cells = line.split('\t').map(str::to_owned);
        Row { statement: cells.next().unwrap(), sources: cells.collect() }
    });
    rows.collect()
}

/// Whether a figure is what its source says.
fn agrees(figure: &Figure, source: &str) -> Result<(), String> {
    let (file, code) = source.split_once(": ").ok_or(format!("{source}: no source"))?;
    if file == "fact" {
        return Ok(());
    }
    let text = source_text(file)?;
    let is_name = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    let pattern = match code {
        name if name.bytes().all(is_name) => format!("const {name}: … = …;"),
        text => text.to_owned(),
    };
    let Some((before, after)) = pattern.rsplit_once('…') else {
        let there = text.contains(&pattern);
        return there.then_some(()).ok_or(format!("{file} has no {pattern:?}"));
    };
    let (head, between) = before.split_once('…').unwrap_or((before, ""));
    let begin = text.find(head).ok_or(format!("{file} has no {head:?}"))? + head.len();
    let begin = begin + text[begin..].find(between).ok_or("no such type")? + between.len();
    let end = text[begin..].find(after).ok_or(format!("{file} has no {after:?}"))?;
    let (value, is_time) = evaluated(text[begin..begin + end].trim())?;
    let value = match figure.unit {
        // A time without its type is in seconds, such as a shell's.
        Unit::Milliseconds if !is_time => value * 1e3,
        _ => value,
    };
    let same = (value - figure.value).abs() < 1e-6;
    same.then_some(()).ok_or(format!("{source} is {value}, not {}", figure.value))
}

/// The text of a file, by its path from the root, `src` or the `src` of a crate.
fn source_text(path: &str) -> Result<String, String> {
    let crates = fs::read_dir(root().join("crates")).into_iter().flatten().flatten();
    let crates = crates.map(|entry| entry.path().join("src"));
    let bases = [root().to_owned(), root().join("src")].into_iter().chain(crates);
    let mut found = bases.map(|base| base.join(path)).filter(|path| path.is_file());
    let path = found.next().ok_or(format!("there is no {path}"))?;
    Ok(fs::read_to_string(path).unwrap().split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The value of an expression of constants, in milliseconds if it is a time.
fn evaluated(code: &str) -> Result<(f64, bool), String> {
    for (call, factor) in [("Duration::from_secs(", 1e3), ("Duration::from_millis(", 1.0)] {
        if let Some(inner) = code.strip_prefix(call) {
            let (value, _) = evaluated(inner.trim_end_matches(')'))?;
            return Ok((value * factor, true));
        }
    }
    if let Some((base, shift)) = code.split_once("<<") {
        return Ok((evaluated(base.trim())?.0 * evaluated(shift.trim())?.0.exp2(), false));
    }
    if let Some((one, other)) = code.split_once('*') {
        return Ok((evaluated(one.trim())?.0 * evaluated(other.trim())?.0, false));
    }
    let named = [("KIB", 1024.0), ("MIB", 1_048_576.0), ("GIB", 1_073_741_824.0)];
    if let Some((_, value)) = named.iter().find(|(name, _)| *name == code) {
        return Ok((*value, false));
    }
    for (ending, seconds) in [("s", 1e3), ("m", 6e4), ("h", 3.6e6), ("d", 8.64e7)] {
        if let Some(Ok(number)) = code.strip_suffix(ending).map(str::parse::<f64>) {
            return Ok((number * seconds, true));
        }
    }
    let number = code.trim_end_matches('%').replace('_', "").parse();
    number.map(|number| (number, false)).map_err(|_| format!("{code:?} has no value"))
}

/// The figures of a text outside backticks. In a range, the first number has the unit of the last.
fn figures(text: &str) -> Vec<Figure> {
    let mut found = Vec::new();
    let (mut quoted, mut next) = (false, 0);
    for (at, c) in text.char_indices() {
        quoted ^= c == '`';
        let begins = !text[..at].ends_with(|c: char| c.is_alphanumeric() || ".,-_".contains(c));
        if quoted || !begins || at < next {
            continue;
        }
        let Some((value, length, in_words)) = number(&text[at..]) else { continue };
        let rest = &text[at + length..];
        let (other, tail) = match rest.strip_prefix(" to ").and_then(number) {
            Some((_, other, _)) => (" to ".len() + other, &rest[" to ".len() + other..]),
            None => (0, rest),
        };
        let Some((factor, unit, own)) = unit(tail, !in_words) else { continue };
        let an_ordinal = unit == Unit::Milliseconds && factor == 1e3 && value == 1.0;
        let a_few = unit == Unit::Count && value < 3.0;
        if in_words && (an_ordinal || a_few) {
            continue;
        }
        let length = if other == 0 { length + own } else { length };
        next = at + length;
        found.push(Figure { place: at..at + length, value: value * factor, unit });
    }
    found
}

/// The unit at the beginning of a text, and its length; what is counted may have an adjective.
fn unit(text: &str, adjective: bool) -> Option<(f64, Unit, usize)> {
    let rest = text.strip_prefix([' ', '-'])?;
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && !"%/".contains(c));
    let first = word(rest).unwrap_or(rest.len());
    if let Some((_, factor, unit)) = UNITS.iter().find(|(name, ..)| *name == &rest[..first]) {
        return Some((*factor, *unit, 1 + first));
    }
    if COUNTED.contains(&&rest[..first]) {
        return Some((1.0, Unit::Count, 1 + first));
    }
    let second = rest[first..].strip_prefix(' ').filter(|_| adjective)?;
    let end = word(second).unwrap_or(second.len());
    COUNTED.contains(&&second[..end]).then_some((1.0, Unit::Count, 2 + first + end))
}

/// The number at the beginning of a text, its length, and whether it is a word.
fn number(text: &str) -> Option<(f64, usize, bool)> {
    let word = WORDS.iter().rev().filter(|(word, _)| {
        text.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', '-']))
    });
    if let Some((word, value)) = word.max_by_key(|(word, _)| word.len()) {
        return Some((*value, word.len(), true));
    }
    let length = text.find(|c: char| !c.is_ascii_digit() && !".,".contains(c))?;
    let digits = text[..length].trim_end_matches(['.', ',']);
    let value = digits.replace(',', "").parse().ok()?;
    (digits.len() == length).then_some((value, length, false))
}

#[test]
fn figures_are_found_with_their_values() {
    let found =
        |text: &str| -> Vec<f64> { figures(text).into_iter().map(|figure| figure.value).collect() };
    assert_eq!(found("after 1.5 s, two minutes and 16 KiB"), [1500.0, 120_000.0, 16384.0]);
    assert_eq!(
        found("10 to 12 s, 1 MiB to 1 GiB, less than 20,000 files"),
        [10_000.0, 12_000.0, 1_048_576.0, 1_073_741_824.0, 20_000.0]
    );
    assert_eq!(found("half a second, half an hour, `5 s`, v1.5 s"), [500.0, 1.8e6]);
    assert_eq!(found("one model, a second model, 64 part sizes"), [64.0]);
    assert_eq!(evaluated("Duration::from_secs(5 * 60)"), Ok((300_000.0, true)));
    assert_eq!(evaluated("16 << 10"), Ok((16384.0, false)));
    assert_eq!(evaluated("10m"), Ok((600_000.0, true)));
}
