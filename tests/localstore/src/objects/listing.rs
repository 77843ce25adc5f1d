//! ListObjects as a pure function over the sorted names.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::object::Object;

/// The parameters of ListObjects, checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListQuery {
    pub(crate) prefix: String,
    /// Names at or after this one.
    pub(crate) start: Option<String>,
    /// Names after this one.
    pub(crate) start_after: Option<String>,
    /// Names before this one.
    pub(crate) end: Option<String>,
    /// Whether names are folded at the first `/` after the prefix.
    pub(crate) delimited: bool,
    /// At least 1; objects and prefixes count.
    pub(crate) limit: usize,
}

/// One page.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) prefixes: Vec<String>,
    /// The first name that did not fit: the next page's `start`.
    pub(crate) next_start_with: Option<String>,
}

/// In the byte order of the UTF-8 names, which is the order of Rust's strings.
pub(crate) fn list(objects: &BTreeMap<String, Arc<Object>>, query: &ListQuery) -> Page {
    let mut page = Page::default();
    let mut from = Bound::Included(query.prefix.clone());
    if let Some(start) = query.start.as_ref().filter(|start| **start > query.prefix) {
        from = Bound::Included(start.clone());
    }
    if let Some(after) = &query.start_after {
        let (Bound::Included(lowest) | Bound::Excluded(lowest)) = &from else { return page };
        if after >= lowest {
            from = Bound::Excluded(after.clone());
        }
    }
    loop {
        let Some((name, object)) = objects.range((from, Bound::Unbounded)).next() else {
            return page;
        };
        let past_end = query.end.as_ref().is_some_and(|end| name >= end);
        let Some(rest) = name.strip_prefix(&query.prefix).filter(|_| !past_end) else {
            return page;
        };
        if page.objects.len() + page.prefixes.len() == query.limit {
            page.next_start_with = Some(name.clone());
            return page;
        }
        if let Some(slash) = rest.find('/').filter(|_| query.delimited) {
            let folded = &name[..query.prefix.len() + slash];
            page.prefixes.push(format!("{folded}/"));
            // '0' is the byte after '/': past all names with this prefix.
            from = Bound::Included(format!("{folded}0"));
        } else {
            page.objects.push(Arc::clone(object));
            from = Bound::Excluded(name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::super::digest::Checksums;
    use super::super::object::{Described, Meta};
    use super::*;

    const NAMES: [&str; 8] =
        ["a", "a/1", "a/2", "a/b/3", "a0", "models/x", "models/y/z", "models2/x"];

    fn objects() -> BTreeMap<String, Arc<Object>> {
        let object = |name: &&str| {
            let meta = Meta::new(name, 0, Described::default(), Checksums::default());
            ((*name).to_owned(), Arc::new(Object::new(meta, Content::Synthetic { seed: 0 })))
        };
        NAMES.iter().map(object).collect()
    }

    /// All pages: objects and prefixes in the order in which they came.
    fn all(query: &ListQuery) -> Vec<String> {
        let objects = objects();
        let mut query = query.clone();
        let mut found = Vec::new();
        for _ in 0..100 {
            let page = list(&objects, &query);
            let mut entries: Vec<String> =
                page.objects.iter().map(|object| object.meta.name.clone()).collect();
            entries.extend(page.prefixes);
            assert!(entries.len() <= query.limit);
            entries.sort();
            found.extend(entries);
            match page.next_start_with {
                Some(next) => query.start = Some(next),
                None => return found,
            }
        }
        panic!("the listing does not end");
    }

    #[test]
    fn pages_of_any_size_show_every_name_once_in_byte_order() {
        for limit in 1..10 {
            assert_eq!(all(&ListQuery { limit, ..ListQuery::default() }), NAMES, "limit {limit}");
        }
    }

    #[test]
    fn a_delimiter_folds_what_follows_the_slash() {
        for limit in 1..10 {
            let query = |prefix: &str| ListQuery {
                prefix: prefix.to_owned(),
                delimited: true,
                limit,
                ..ListQuery::default()
            };
            assert_eq!(all(&query("")), ["a", "a/", "a0", "models/", "models2/"]);
            assert_eq!(all(&query("a/")), ["a/1", "a/2", "a/b/"]);
            assert_eq!(all(&query("models")), ["models/", "models2/"]);
            assert!(all(&query("none")).is_empty());
        }
    }

    #[test]
    fn start_is_inclusive_start_after_and_end_are_exclusive() {
        let some = |name: &str| Some(name.to_owned());
        let base = ListQuery { limit: 3, ..ListQuery::default() };
        let start = ListQuery { start: some("a0"), ..base.clone() };
        assert_eq!(all(&start), NAMES[4..]);
        let start_after = ListQuery { start_after: some("a0"), ..base.clone() };
        assert_eq!(all(&start_after), NAMES[5..]);
        let end = ListQuery { end: some("a0"), ..base.clone() };
        assert_eq!(all(&end), NAMES[..4]);
        let both = ListQuery { start: some("a/2"), end: some("models/y"), ..base.clone() };
        assert_eq!(all(&both), NAMES[2..6]);
        let before_prefix =
            ListQuery { prefix: "models/".to_owned(), start_after: some("a"), ..base };
        assert_eq!(all(&before_prefix), NAMES[5..7]);
    }
}
