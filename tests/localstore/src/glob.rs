//! Patterns of fault rules and permissions: `*` crosses `/`, `?` is one character.

/// Whether `text` as a whole matches `pattern`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at_pattern, mut at_text) = (0, 0);
    // Where to resume when the rest after the last star did not match.
    let mut after_star: Option<(usize, usize)> = None;
    while at_text < text.len() {
        match pattern.get(at_pattern) {
            Some('*') => {
                at_pattern += 1;
                after_star = Some((at_pattern, at_text));
            }
            Some(&expected) if expected == '?' || expected == text[at_text] => {
                at_pattern += 1;
                at_text += 1;
            }
            _ => {
                let Some((resume, from)) = after_star else { return false };
                at_pattern = resume;
                at_text = from + 1;
                after_star = Some((resume, at_text));
            }
        }
    }
    pattern[at_pattern..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_cross_slashes_and_the_whole_text_must_match() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "a/b", true),
            ("a*b*c", "a/x/bb/c", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*.safetensors", "models/x.safetensors", true),
            ("*.safetensors", "models/x.safetensors.json", false),
            ("ü*", "üñ", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} against {text}");
        }
    }
}
