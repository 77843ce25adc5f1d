//! Percent-encoding of names, once, for the signature and the wire alike.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but `A-Z a-z 0-9 - . _ ~`, as the official Python client does it: `/` is
/// `%2F`, so that `//`, a leading `/` and `..` inside a name survive every parser.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One path segment or query value.
pub(crate) fn strict(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, STRICT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_outside_the_unreserved_set_is_encoded() {
        assert_eq!(
            strict("llama/ünï/we ird+name%20#?&=~(x).bin").to_string(),
            "llama%2F%C3%BCn%C3%AF%2Fwe%20ird%2Bname%2520%23%3F%26%3D~%28x%29.bin"
        );
        assert_eq!(strict("/a//../b").to_string(), "%2Fa%2F%2F..%2Fb");
        assert_eq!(strict("x'!*:;@,$[]").to_string(), "x%27%21%2A%3A%3B%40%2C%24%5B%5D");
    }
}
