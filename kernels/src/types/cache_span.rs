//! Where in a cache new positions are written.

/// Where the new positions of one row go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpan {
    /// Row of the cache.
    pub slot: usize,
    /// First position written.
    pub start: usize,
    /// Number of positions written: the first `n` of the row's new ones (the rest is padding).
    pub n: usize,
}
