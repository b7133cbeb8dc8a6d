//! Layout of a packed row, and the columns of a tile.

/// Results: log p(label), entropy, divergence.
pub(crate) const LOG_PROB: usize = 0;
pub(crate) const ENTROPY: usize = 1;
pub(crate) const VALUE: usize = 2;
/// Sums of the student (or the only model) over its whole vocabulary.
pub(crate) const MAX: usize = 3;
pub(crate) const SUM: usize = 4;
pub(crate) const MOMENT: usize = 5;
pub(crate) const LABEL_Z: usize = 6;
/// Columns of a packed row of one model.
pub(crate) const ONE_COLUMNS: usize = 7;
/// Sums of both models over the shared prefix.
pub(crate) const S_MAX: usize = 7;
pub(crate) const S_SUM: usize = 8;
pub(crate) const T_MAX: usize = 9;
pub(crate) const T_SUM: usize = 10;
pub(crate) const T_MOMENT: usize = 11;
/// A and B of the sums; in the second pass, the divergence's sum and sum a.
pub(crate) const FORWARD: usize = 12;
pub(crate) const REVERSE: usize = 13;
/// Columns of a packed row of two models.
pub(crate) const COLUMNS: usize = 14;

/// Columns of a tile and where they belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First and one past the last column of the tile that counts.
    pub start: usize,
    pub end: usize,
    /// Vocabulary entry of the tile's column 0.
    pub offset: usize,
}

impl Span {
    /// The columns of a tile that is the whole row.
    pub(crate) fn whole(n_columns: usize) -> Self {
        Self { start: 0, end: n_columns, offset: 0 }
    }
}
