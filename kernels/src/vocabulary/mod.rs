//! Parts that the operations over the vocabulary share: sums over a row of logits, taken a tile of
//! columns at a time.
//!
//! A tile is `[N, W]` logits of the vocabulary entries `offset..offset + W`: the whole row where
//! the logits exist, and a few thousand columns at a time where they are products of hidden states
//! and a head. Each row keeps a few running numbers, the *packed* row, and each tile is folded into
//! it:
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
//! KL(p_t || p_s) = A / S_t - ln S_t + ln S_s
//! when m_s, m_t change by -d_s, -d_t:   A <- e^(d_t) (A + S_t (d_t - d_s))
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
//! d log p(y) / dz_v = [v = y] - p_v
//! d H / dz_v        = -p_v (ln p_v + H)
//! d D / dz_v        = a_v - p_v sum a
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
mod packed;
mod tiles;

pub(crate) use packed::{COLUMNS, ENTROPY, LOG_PROB, MAX, ONE_COLUMNS, SUM, Span, VALUE};
pub(crate) use tiles::Tiles;
