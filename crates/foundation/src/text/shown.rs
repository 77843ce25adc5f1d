//! Text from elsewhere in messages.

use crate::error::is_invisible;

/// Prepares text from elsewhere for a message: at most `most` characters, on one
/// line. Characters that a terminal would act on, that change the direction of
/// reading or that are invisible are shown as `\u{202e}`.
pub fn shown(text: &str, most: usize) -> String {
    let (mut short, mut length) = (String::new(), 0);
    for c in text.chars() {
        let hidden = c.is_control() || is_invisible(c);
        length += if hidden { c.escape_default().count() } else { 1 };
        if length > most {
            short.push('…');
            break;
        }
        match hidden {
            true => short.extend(c.escape_default()),
            false => short.push(c),
        }
    }
    short
}

/// The first `limit` characters of text from elsewhere, on one line.
pub fn excerpt(text: &str, limit: usize) -> String {
    let mut short: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(limit)
        .collect::<String>()
        .trim()
        .to_owned();
    if text.chars().nth(limit).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_and_bidirectional_characters_are_shown_as_code_points() {
        let hostile =
            "a\u{202e}gpj.\u{2066}b\u{200b}\u{feff}\u{ad}\u{e0041}\u{2028}\u{1b}[2J\n\u{fe0f}";
        let text = shown(hostile, 100);
        assert!(text.chars().all(|c| c.is_ascii() && !c.is_control()), "{text:?}");
        assert!(text.starts_with("a\\u{202e}gpj.\\u{2066}b\\u{200b}"), "{text}");
        for plain in ["modèle-é.bin", "模型 権重", "نموذج", "a b-c_d.e", "e\u{301}"] {
            assert_eq!(shown(plain, 100), plain);
        }
        assert_eq!(shown("abc", 2), "ab…");
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(shown(&"\u{202e}".repeat(500), 20), "\\u{202e}\\u{202e}…", "as it is shown");
    }

    #[test]
    fn text_from_elsewhere_is_cut_and_kept_on_one_line() {
        assert_eq!(excerpt("a\nb\tc", 10), "a b c");
        assert_eq!(excerpt("äöüß", 2), "äö…");
    }
}
