//! Span of a cache into which new positions are written.

/// Place of one row's new positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpan {
    /// Row of the cache.
    pub slot: usize,
    /// First position written.
    pub start: usize,
    /// Number of positions written: the first `n` of the row's new ones (the rest is padding).
    pub n: usize,
}
