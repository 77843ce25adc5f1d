//! The string literals of a Rust source, each with the calls that it is an argument of.

/// A string literal.
pub(crate) struct Literal {
    pub(crate) line: usize,
    /// Without its escapes, and on one line where a backslash continues it.
    pub(crate) text: String,
    /// Functions, macros and attributes around it, the outermost first: `Error::new`, `format!`,
    /// `#`. Of `Error::new(ErrorKind::Internal, …)` the kind.
    pub(crate) calls: Vec<String>,
}

/// All of them but those in comments. Macros are no exception.
pub(crate) fn literals(source: &str) -> Vec<Literal> {
    let mut found = Vec::new();
    let mut calls: Vec<String> = Vec::new();
    let mut at = 0;
    let line = |at: usize| source[..at].matches('\n').count() + 1;
    let named = |calls: &[String]| calls.iter().filter(|call| !call.is_empty()).cloned().collect();
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some((begin, close)) = raw(&source[..at], rest) {
            let text = rest[begin..].split(&close).next().unwrap();
            found.push(Literal { line: line(at), text: text.to_owned(), calls: named(&calls) });
            at += begin + text.len() + close.len();
        } else if c == '"' {
            let length = quoted_length(&rest[1..]);
            let text = unescaped(&rest[1..=length]);
            found.push(Literal { line: line(at), text, calls: named(&calls) });
            at += length + 2;
        } else if c == '\'' {
            at += character_length(rest);
        } else {
            match c {
                '(' | '[' | '{' => calls.push(name_before(&source[..at], rest)),
                ')' | ']' | '}' => drop(calls.pop()),
                _ => {}
            }
            at += c.len_utf8();
        }
    }
    found
}

/// Where the text of a raw string begins, and what ends it.
fn raw(before: &str, rest: &str) -> Option<(usize, String)> {
    let in_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'));
    let after = after.filter(|_| !in_word)?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let begins = after[hashes..].starts_with('"');
    let begin = rest.len() - after.len() + hashes + 1;
    begins.then(|| (begin, format!("\"{}", "#".repeat(hashes))))
}

/// The bytes up to the quote that ends a string.
fn quoted_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return at,
            _ => escaped = byte == b'\\' && !escaped,
        }
    }
    text.len()
}

/// The bytes of `'x'` or `'\''`; one for a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest[1..].chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), Some(_)) => 3 + rest[3..].find('\'').map_or(0, |end| end + 1),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 1,
    }
}

/// What a parenthesis is the list of arguments of; `#` for an attribute.
fn name_before(before: &str, rest: &str) -> String {
    if rest.starts_with('[') {
        return if before.ends_with('#') { "#".to_owned() } else { String::new() };
    }
    if !rest.starts_with('(') {
        return String::new();
    }
    if rest[1..].trim_start().starts_with("ErrorKind::Internal") {
        return "ErrorKind::Internal".to_owned();
    }
    let of_name = |c: char| c.is_alphanumeric() || "_:!".contains(c);
    let begin = before.char_indices().rev().take_while(|(_, c)| of_name(*c)).last();
    begin.map_or_else(String::new, |(at, _)| before[at..].to_owned())
}

fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => plain.push('\n'),
            Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
            Some(other) => plain.push(other),
            None => {}
        }
    }
    plain
}
