//! Suggests the name that a misspelled one most likely means.

/// The candidate that `word` is most likely a misspelling of; `None` when it
/// resembles none.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = word.to_lowercase().replace(['-', '_'], "");
    let allowed = 2.max(plain.chars().count() / 3);
    let distance = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let typos = strsim::damerau_levenshtein(&plain, &candidate);
        // `bucketName` is far from `bucket`, and still means it.
        let within = plain.len() >= 3 && (plain.contains(&candidate) || candidate.contains(&plain));
        if within { typos.min(2) } else { typos }
    };
    candidates
        .into_iter()
        .map(|one| (distance(one), one))
        .filter(|(distance, one)| *distance <= allowed && *distance < one.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, one)| one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_the_one_that_was_meant() {
        let keys = ["dir", "requireMount", "maxSize", "minFree", "minFreeInodes", "bucket"];
        for (typed, meant) in [
            ("maxSzie", Some("maxSize")),
            ("max_size", Some("maxSize")),
            ("maxsize", Some("maxSize")),
            ("MinFreeInode", Some("minFreeInodes")),
            ("require-mount", Some("requireMount")),
            ("dri", Some("dir")),
            ("bucketName", Some("bucket")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
    }
}
