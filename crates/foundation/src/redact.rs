//! Pre-authenticated requests in text: their URLs are credentials, so no text that leaves the
//! process may have one.

/// What replaces the credential in a URL.
const HIDDEN: &str = "…";

/// Whether a text has the URL of a pre-authenticated request, or enough of it to use it:
/// `/p/TOKEN/n/NAMESPACE/b/BUCKET/o`, or any URL of the web with `/p/`.
pub fn has_par(text: &str) -> bool {
    let is_url = text.contains("http://") || text.contains("https://");
    let of_url = is_url && text.contains("/p/");
    of_url || tokens(text).any(|(_, end)| is_path_of_bucket(&text[end..]))
}

/// The same text without the credentials of pre-authenticated requests: the path segment after
/// `/p/`, where `/n/` follows it, or where it is in a URL of the web, which may have been cut short.
pub fn without_pars(text: &str) -> Option<String> {
    let mut hidden = String::new();
    let mut done = 0;
    for (start, end) in tokens(text) {
        hidden.push_str(&text[done..start]);
        hidden.push_str(HIDDEN);
        done = end;
    }
    (done > 0).then(|| hidden + &text[done..])
}

/// The places of the segments after `/p/` that are credentials.
fn tokens(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let starts = text.match_indices("/p/").map(|(at, mark)| (at, at + mark.len()));
    starts.filter_map(|(before, start)| {
        let is_end = |c: char| c == '/' || ends_url(c);
        let end = text[start..].find(is_end).map_or(text.len(), |length| start + length);
        let is_token = text[end..].starts_with("/n/") || is_in_url(&text[..before]);
        (end > start && is_token).then_some((start, end))
    })
}

/// What no URL has, and what text has around one.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || "\"'`<>\\".contains(c)
}

/// Whether a text ends within a URL of the web.
fn is_in_url(before: &str) -> bool {
    let word = before.rsplit(ends_url).next().unwrap_or_default();
    word.contains("http://") || word.contains("https://")
}

/// Whether the rest begins as the path of objects in a bucket.
fn is_path_of_bucket(rest: &str) -> bool {
    let mut segments = rest.split('/').skip(1);
    let mut next = || segments.next().unwrap_or_default();
    let (n, namespace, b, bucket, o) = (next(), next(), next(), next(), next());
    n == "n" && b == "b" && o == "o" && !namespace.is_empty() && !bucket.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://objectstorage.us-ashburn-1.oraclecloud.com/p/s3cret/n/ns/b/bk/o/m/";

    #[test]
    fn a_url_is_found_whole_in_other_text_and_without_its_host() {
        for text in [
            URL,
            "see https://ns.objectstorage.x.oci.customer-oci.com/p/s3cret/n/ns/b/bk/o/",
            "/p/s3cret/n/ns/b/bk/o",
            "m/p/x/p/s3cret/n/ns/b/bk/o/",
            "http://127.0.0.1:80/p/s3cret",
        ] {
            assert!(has_par(text), "{text}");
        }
        for text in
            ["models/p/x/n/y/", "/n/ns/b/bk/o/p/x", "oci://bucket@ns/m/p/x", "/p//n/a/b/c/o"]
        {
            assert!(!has_par(text), "{text}");
        }
    }

    #[test]
    fn the_credential_alone_is_hidden() {
        let shown = without_pars(&format!("a {URL} b {URL}")).unwrap();
        let expected = URL.replace("s3cret", "…");
        assert_eq!(shown, format!("a {expected} b {expected}"));
        assert_eq!(without_pars("models/p/x/y/z"), None);
        assert_eq!(without_pars("see https://h/ and models/p/x/y/z"), None);
        let twice = without_pars("/p/s3cret/n/p/s3cret/n/").unwrap();
        assert!(!twice.contains("s3cret"), "{twice}");
    }

    #[test]
    fn a_url_that_was_cut_short_has_no_part_of_its_credential() {
        for (text, expected) in [
            ("https://h/p/s3cr", "https://h/p/…"),
            ("volume=\"https://h/p/s3cr…\" x", "volume=\"https://h/p/…\" x"),
            ("https://h/p/s3cret/n", "https://h/p/…/n"),
            ("to http://h:80/p/s3cret and on", "to http://h:80/p/… and on"),
            ("https://h/p/", ""),
        ] {
            assert_eq!(without_pars(text).unwrap_or_default(), expected, "{text}");
        }
    }
}
