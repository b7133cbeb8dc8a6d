//! Which keys of a batch of sequences are seen by which queries.

/// Which keys the queries of each row see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CausalRows {
    /// `[B]` positions before the first query of the row: query t sees the keys 0..=starts\[b\]+t
    /// (never more than there are).
    pub starts: Vec<usize>,
    /// `[B]` which row of the keys and values belongs to each row of queries (a slot of a cache).
    /// `None`: the row of the same number.
    pub slots: Option<Vec<usize>>,
    /// `[B]` keys that the row has; those behind are padding that nobody sees. `None`: all there
    /// are.
    pub lengths: Option<Vec<usize>>,
}

impl CausalRows {
    /// Whole sequences: queries and keys are the same positions.
    pub fn whole(n_rows: usize) -> Self {
        Self { starts: vec![0; n_rows], slots: None, lengths: None }
    }

    /// Right-padded rows in which every query sees every key of its row: an encoder. `lengths`
    /// `[B]`, at least 1 each.
    pub fn bidirectional(lengths: Vec<usize>) -> Self {
        // A start at the end of the row puts all of its keys before the first query.
        Self { starts: lengths.clone(), slots: None, lengths: Some(lengths) }
    }

    /// Number of the `n_keys` stored keys that row `b` has.
    pub(crate) fn n_keys(&self, b: usize, n_keys: usize) -> usize {
        self.lengths.as_ref().map_or(n_keys, |lengths| lengths[b].min(n_keys))
    }

    /// The row of keys and values of row `b`.
    pub(crate) fn slot(&self, b: usize) -> usize {
        self.slots.as_ref().map_or(b, |slots| slots[b])
    }
}
