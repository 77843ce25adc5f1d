//! Two rules of CONTRIBUTING.md that clippy cannot check: no sleeps in place of waiting, and no
//! files in async code.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;

use crate::support::documents::{files, production, shown};

/// The sleeps of the integration tests: a file, how many, and why each is not a wait for a state.
const SLEEPS: [(&str, usize, &str); 12] = [
    ("tests/it/crash.rs", 1, "the instant of the kill is what varies"),
    ("tests/it/kill_points.rs", 1, "the instant of the kill is random"),
    ("tests/it/memory.rs", 1, "retries to remove a control group, with a bound"),
    ("tests/it/power_loss.rs", 2, "what is older than 30 s must survive; the instant is random"),
    ("tests/it/soak.rs", 3, "random pauses of pods, the period of a sample, the time of a round"),
    ("tests/it/space.rs", 3, "nothing happens in two periods of the check of the disk"),
    ("tests/it/support/invariants.rs", 2, "the interval of a bounded wait; of samples"),
    ("tests/it/support/kubelet.rs", 2, "kubelet's own pause between calls"),
    ("tests/it/support/load.rs", 1, "random pauses of pods"),
    ("tests/it/support/run.rs", 1, "the interval of `eventually`"),
    ("tests/it/workload_identity.rs", 1, "nothing happens in this time"),
    ("tests/it/docs/habits.rs", 1, "the word that this test looks for"),
];

/// Async code that calls the file system, with the reason.
const FILES_IN_ASYNC: [(&str, &str); 1] =
    [("src/socket.rs", "a few calls before the first request is accepted")];

#[test]
fn no_test_sleeps_but_those_that_say_why() {
    let mut found = BTreeMap::new();
    for path in files("tests/it", "rs").into_iter().chain(files("tests/localstore/tests", "rs")) {
        let sleeps = fs::read_to_string(&path).unwrap().matches("::sleep(").count();
        if sleeps > 0 {
            found.insert(shown(&path), sleeps);
        }
    }
    let listed: BTreeMap<String, usize> =
        SLEEPS.iter().map(|(file, count, _)| ((*file).to_owned(), *count)).collect();
    assert_eq!(found, listed, "wait for a state with `eventually`, or add the reason to the list");
}

#[test]
fn no_async_code_calls_the_file_system() {
    let (mut found, mut blocks) = (Vec::new(), 0);
    for (place, source) in production() {
        blocks += async_blocks(&blanked(&source)).len();
        found.extend(file_calls(&source).into_iter().map(|line| format!("{place}:{line}")));
    }
    assert!(blocks > 200, "{blocks} async functions and blocks");
    let excused = |place: &&String| {
        FILES_IN_ASYNC.iter().any(|(file, _)| place.starts_with(&format!("{file}:")))
    };
    let strays: Vec<_> = found.iter().filter(|place| !excused(place)).collect();
    assert!(strays.is_empty(), "use `blocking` (CONTRIBUTING.md, Blocking): {strays:#?}");
    for (file, _) in FILES_IN_ASYNC {
        assert!(found.iter().any(|place| place.starts_with(file)), "{file} is excused for nothing");
    }
}

#[test]
fn files_in_async_code_are_found_and_those_in_blocking_closures_are_not() {
    for (source, lines) in [
        ("async fn f() {\n    std::fs::read(p);\n}\nfn g() { fs::read(p); }", vec![2]),
        ("fn f() { spawn(async move {\n x.y();\n File::open(p) }) }", vec![3]),
        ("async fn f() { blocking(move || { fs::read(p) }).await; }", vec![]),
        ("async fn f() { spawn_blocking(move || fs::read(p)).await; fs::read(p) }", vec![1]),
        ("async fn f() { tokio::fs::read(p).await; /* fs::read */ \"fs::read(\"; }", vec![]),
        ("trait T { async fn f(); }\nfn g() { fs::read(p) }", vec![]),
    ] {
        assert_eq!(file_calls(source), lines, "{source}");
    }
}

/// The lines of async code that call `std::fs` outside closures for threads that may block.
fn file_calls(source: &str) -> Vec<usize> {
    let code = blanked(source);
    let elsewhere: Vec<Range<usize>> = ["blocking(", "thread::spawn("]
        .iter()
        .flat_map(|call| code.match_indices(call).map(|(at, call)| at + call.len() - 1))
        .map(|at| at..end_of(&code, at))
        .collect();
    let mut lines = Vec::new();
    for block in async_blocks(&code) {
        for call in ["fs::", "File::open(", "File::create(", "OpenOptions::new("] {
            let calls = code[block.clone()].match_indices(call).map(|(at, _)| block.start + at);
            for at in calls.filter(|at| !elsewhere.iter().any(|range| range.contains(at))) {
                let of_tokio =
                    code[..at].ends_with("tokio::") || code[..at].ends_with("tokio::fs::");
                if !of_tokio {
                    lines.push(code[..at].matches('\n').count() + 1);
                }
            }
        }
    }
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// The bodies of async functions, closures and blocks.
fn async_blocks(code: &str) -> Vec<Range<usize>> {
    let begins = code.match_indices("async ").filter(|(at, _)| {
        !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '#')
    });
    let bodies = begins.filter_map(|(at, _)| {
        let open = at + code[at..].find('{')?;
        let declared_only = code[at..open].contains(';');
        (!declared_only).then(|| open..end_of(code, open))
    });
    bodies.collect()
}

/// Where the bracket that opens at `open` is closed.
fn end_of(code: &str, open: usize) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in code[open..].bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + at;
        }
    }
    code.len()
}

/// The code with comments, strings and characters as blanks, at the same offsets.
fn blanked(source: &str) -> String {
    let mut code = source.as_bytes().to_vec();
    let mut at = 0;
    while at < code.len() {
        let rest = &source.as_bytes()[at..];
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|two| two == b"*/").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'"' {
            length_of_string(rest)
        } else if rest[0] == b'\'' && rest.get(2) == Some(&b'\'') {
            3
        } else if rest.starts_with(b"'\\") {
            rest[2..].iter().position(|byte| *byte == b'\'').map_or(rest.len(), |end| end + 3)
        } else {
            at += 1;
            continue;
        };
        for byte in &mut code[at..at + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += length;
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn length_of_string(rest: &[u8]) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.iter().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            _ => escaped = *byte == b'\\' && !escaped,
        }
    }
    rest.len()
}
