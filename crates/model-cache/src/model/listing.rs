//! The objects under a prefix, stored compactly: all requests for the prefix share
//! a listing, whatever their filters, and it may have a hundred thousand objects.

use super::{ListedObject, Prefix};
use crate::error::{Error, Result};

/// The objects listed under one prefix.
#[derive(Debug)]
pub struct ObjectListing {
    prefix: Prefix,
    pages: Vec<ListingPage>,
    objects: usize,
    weight: u64,
}

/// The texts of a page in one string, and where each ends.
#[derive(Debug)]
struct ListingPage {
    text: Box<str>,
    entries: Box<[ListingEntry]>,
}

#[derive(Debug)]
struct ListingEntry {
    size: u64,
    name_end: u32,
    etag_end: u32,
    md5_end: u32,
    archived: bool,
}

/// One object of a [`ObjectListing`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed<'a> {
    /// Name below the prefix.
    pub(super) name: &'a str,
    pub(super) size: u64,
    pub(super) etag: &'a str,
    /// Empty when there is none.
    pub(super) md5: &'a str,
    pub(super) archived: bool,
}

impl ObjectListing {
    /// An empty listing of this prefix.
    pub fn new(prefix: Prefix) -> Self {
        Self { prefix, pages: Vec::new(), objects: 0, weight: 0 }
    }

    /// Adds a page.
    ///
    /// # Errors
    /// `Internal` for an object that is not under the prefix.
    pub fn push(&mut self, page: impl IntoIterator<Item = ListedObject>) -> Result<()> {
        let (mut text, mut entries) = (String::new(), Vec::new());
        for object in page {
            let Some(name) = object.name.strip_prefix(self.prefix.as_str()) else {
                return Err(Error::internal(format!(
                    "Object Storage listed {:?} under the prefix {:?}",
                    crate::text::shown(&object.name, 200),
                    self.prefix
                )));
            };
            let mut end = |part: &str| {
                text.push_str(part);
                u32::try_from(text.len()).map_err(|_| Error::internal("a page of 4 GiB"))
            };
            entries.push(ListingEntry {
                size: object.size,
                name_end: end(name)?,
                etag_end: end(&object.etag)?,
                md5_end: end(object.md5.as_deref().unwrap_or_default())?,
                archived: object.archived,
            });
        }
        self.objects += entries.len();
        let weight =
            text.len() + entries.len() * size_of::<ListingEntry>() + size_of::<ListingPage>();
        self.weight = self.weight.saturating_add(u64::try_from(weight).unwrap_or(u64::MAX));
        self.pages.push(ListingPage { text: text.into(), entries: entries.into() });
        Ok(())
    }

    /// The prefix.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// Its size in memory, in bytes.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// The whole name, the size and the ETag of the largest object.
    pub fn largest(&self) -> Option<(String, u64, String)> {
        let largest = self.iter().max_by_key(|object| object.size)?;
        Some((format!("{}{}", self.prefix, largest.name), largest.size, largest.etag.to_owned()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Listed<'_>> {
        self.pages.iter().flat_map(|page| {
            let mut start = 0;
            page.entries.iter().map(move |entry| {
                let mut part = |end: u32| {
                    let from = std::mem::replace(&mut start, end);
                    page.text.get(from as usize..end as usize).unwrap_or_default()
                };
                Listed {
                    name: part(entry.name_end),
                    etag: part(entry.etag_end),
                    md5: part(entry.md5_end),
                    size: entry.size,
                    archived: entry.archived,
                }
            })
        })
    }
}
