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
/// `/p/`, where `/n/` follows it.
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

/// The places of the segments between `/p/` and `/n/`.
fn tokens(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let starts = text.match_indices("/p/").map(|(at, mark)| at + mark.len());
    starts.filter_map(|start| {
        let length = text[start..].find('/').filter(|length| *length > 0)?;
        let end = start + length;
        text[end..].starts_with("/n/").then_some((start, end))
    })
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
        let twice = without_pars("/p/s3cret/n/p/s3cret/n/").unwrap();
        assert!(!twice.contains("s3cret"), "{twice}");
    }
}
