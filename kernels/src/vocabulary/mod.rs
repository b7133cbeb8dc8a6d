//! What the operations over the vocabulary share: sums over a row of logits, taken a tile of
//! columns at a time.
//!
//! A tile is [N, W] logits of the vocabulary entries `offset..offset + W`: the whole row where the
//! logits exist, and a few thousand columns at a time where they are products of hidden states and
//! a head. Each row keeps a few running numbers, the *packed* row, and each tile is folded into it:
//!
//! ```text
//! z = logit / temperature      m = max z      S = sum e^(z - m)      M = sum e^(z - m) (z - m)
//! when m grows to m', d = m - m':   S <- e^d S      M <- e^d (M + d S)
//! log p(y) = (z_y - m) - ln S       H = ln S - M / S
//! ```
//!
//! (m is kept as a logit, and differences of logits are divided by the temperature, not logits.) m
//! and S stay apart: m + ln S would round away the digits of ln S where logits are far from 0. With
//! two models, of the shared prefix of their vocabularies, A = sum e^(z_t - m_t) ((z_t - m_t) -
//! (z_s - m_s)) and B, the same with the models exchanged:
//!
//! ```text
//! KL(p_t || p_s) = A / S_t - ln S_t + ln S_s        when m_s, m_t change by -d_s, -d_t:   A <- e^(d_t) (A + S_t (d_t - d_s))
//! ```
//!
//! which is exactly 0 for equal models. A logit of -inf stands for probability 0 and is read as
//! -1e30: it adds nothing where its own model is the weight, and a very large finite number (whose
//! gradient is finite) where only the other one is. NaN, +inf or nothing but -inf in a row is NaN
//! in the row's results and gradients.
//!
//! The gradient of a tile is a function of its logits, the packed row and the gradient of the three
//! results ([`COLUMNS`] says where they lie):
//!
//! ```text
//! d log p(y) / dz_v = [v = y] - p_v          d H / dz_v = -p_v (ln p_v + H)          d D / dz_v = a_v - p_v sum a
//! sums         a_v - p_v sum a = f (p_s - p_t) + r p_s (ln p_s - ln p_t - KL(p_s || p_t))
//! mixture      a = p_s (a (ln p_s - ln m) + a) - (a p_s + b p_t) w p_s / m
//! variation    a = 1/2 sign(p_s - p_t) p_s
//! ```
pub(crate) mod budget;
mod cpu;
mod cpu_grad;
mod cpu_normalisers;
mod cpu_rows;
#[cfg(feature = "cube")]
mod kernel;
#[cfg(feature = "cube")]
mod kernel_grad;
#[cfg(feature = "cube")]
mod launch;
pub(crate) mod linear;
mod tiles;

use crate::nan::LOG_ZERO;

pub(crate) use tiles::Tiles;

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
    pub fn whole(n_columns: usize) -> Self {
        Self { start: 0, end: n_columns, offset: 0 }
    }
}
