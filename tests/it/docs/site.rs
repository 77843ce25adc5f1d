//! The index of the documentation and the site's navigation have every page.

use std::collections::BTreeSet;

use crate::support::documents::{files, read, shown};

#[test]
fn every_page_is_in_the_index_and_in_the_navigation() {
    let pages: BTreeSet<String> = files("docs", "md").iter().map(|path| shown(path)).collect();
    assert!(pages.len() > 20, "{pages:?}");
    let index = read("docs/README.md");
    let linked = |page: &str| index.contains(&format!("]({})", page.trim_start_matches("docs/")));
    let configuration = read("mkdocs.yml");
    let (_, navigation) = configuration.split_once("\nnav:\n").expect("the navigation");
    let listed: BTreeSet<&str> =
        navigation.lines().filter_map(|line| Some(line.split_once(": ")?.1)).collect();
    for page in &pages {
        assert!(page == "docs/README.md" || linked(page), "docs/README.md does not link {page}");
        assert!(listed.contains(page.as_str()), "mkdocs.yml: the navigation lacks {page}");
    }
    for page in listed.iter().filter(|page| page.starts_with("docs/")) {
        assert!(pages.contains(*page), "mkdocs.yml: {page} is not there");
    }
}
