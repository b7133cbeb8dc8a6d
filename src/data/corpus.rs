//! Passages: JSON Lines {"id", "contents"}, memory-mapped with an offset table.
use super::DataError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `contents` is `"TITLE"\nTEXT`: the title line keeps its quotation marks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    pub id: String,
    pub contents: String,
}
impl Passage {
    /// First line of `contents`, quotation marks kept.
    pub fn title(&self) -> &str {
        self.contents.split('\n').next().unwrap_or_default()
    }
    /// Everything behind the first line.
    pub fn text(&self) -> &str {
        self.contents.split_once('\n').map_or("", |(_, text)| text)
    }
}

/// Opened corpus: plain files are mapped, gzip files are unpacked into memory once.
pub struct Corpus {
    _placeholder: (),
}
impl Corpus {
    /// Checks every line (a bad one is reported with file and line number) and builds the offset table. An empty corpus is an error.
    pub fn open(_path: &Path) -> Result<Self, DataError> {
        todo!()
    }
    pub fn from_passages(_passages: Vec<Passage>) -> Self {
        todo!()
    }
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Passage number `idx` (line order).
    pub fn passage(&self, _idx: usize) -> Result<Passage, DataError> {
        todo!()
    }
    /// Digest of the contents: an index remembers which corpus it was built from.
    pub fn fingerprint(&self) -> String {
        todo!()
    }
}
