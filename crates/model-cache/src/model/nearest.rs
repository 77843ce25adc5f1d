//! Suggests the name that a misspelled one most likely means.

/// The candidate that `word` is most likely a misspelling of; `None` when it
/// resembles none.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = word.to_lowercase().replace(['-', '_'], "");
    let allowed = 2.max(plain.chars().count() / 3);
    candidates
        .into_iter()
        .map(|one| (distance(&plain, one), one))
        .filter(|(distance, one)| *distance <= allowed && *distance < one.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, one)| one)
}

/// All candidates, the most similar to `word` first: names with the same beginning before others.
pub fn nearest_first<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    let plain = word.to_lowercase();
    let mut ranked: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|one| (strsim::jaro_winkler(&plain, &one.to_lowercase()), one))
        .collect();
    ranked.sort_by(|(a, one), (b, other)| b.total_cmp(a).then(one.cmp(other)));
    ranked.into_iter().map(|(_, one)| one).collect()
}

fn distance(plain: &str, candidate: &str) -> usize {
    let candidate = candidate.to_lowercase();
    let typos = strsim::damerau_levenshtein(plain, &candidate);
    // `bucketName` is far from `bucket`, and still means it.
    let within = plain.len() >= 3 && (plain.contains(&candidate) || candidate.contains(plain));
    if within { typos.min(2) } else { typos }
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

    #[test]
    fn names_with_the_same_beginning_come_first() {
        let names = ["marker", "llama3-8b", "phi3-mini", "phi3"];
        assert_eq!(nearest_first("phi4", names)[..2], ["phi3", "phi3-mini"]);
        assert_eq!(nearest_first("Llama3-8B-Instruct", names)[0], "llama3-8b");
    }
}
