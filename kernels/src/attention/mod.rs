//! Grouped-query attention as one operation: causal, or over the whole row (an encoder's).
//!
//! For row b, head h and query t, with kv head j = h / (H / K) and the visible keys s <= starts\[b\] + t, s < lengths\[b\]:
//!
//! ```text
//! p_s   = softmax_s( q_t . k_s / sqrt(hd) )          (f32)
//! out_t = sum_s p_s v_s
//! ```
//!
//! and backwards, with go the gradient of the output (P is computed again, nothing of size [Tq, Tk] is kept):
//!
//! ```text
//! dP_s = go_t . v_s           dS_s = P_s (dP_s - sum_u P_u dP_u) / sqrt(hd)
//! dq_t = sum_s dS_s k_s       dk_s = sum_t dS_s q_t       dv_s = sum_t P_s go_t        (sums also over the heads of the group)
//! ```
//!
//! What it avoids: scores exist for a block of queries only, never [B, H, Tq, Tk]; the H / K heads of a group share their keys as extra rows of one
//! product, so keys and values are never repeated; a block reads only the keys its last query sees; with slots, keys and values are read where they
//! lie in the cache.
//!
//! | | forward | backward |
//! |---|---|---|
//! | multiply-adds | B H Tq Tk hd (causal half of 2 B H Tq Tk hd) | 5/2 of the forward |
//! | exponentials | B H Tq Tk / 2 | the same |
//! | bytes (f32) | 4 (2 B H Tq hd + 2 B K Tk hd) | twice the forward |
//! | extra memory, reference | 128 (H / K) rows of scores a (B, K) pair | three times that |
//! | extra memory, CPU | 4 rows of scores and one head of keys a thread | that and one head of dk, dv |
//!
//! `reference.rs` is the plain-tensor form that every backend can run; `cpu.rs` are the loops of the CPU backend; the graph node is in
//! `crate::autodiff`.
pub(crate) mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::KernelOps;
use burn::tensor::{Tensor, TensorPrimitive};

/// Which keys the queries of each row see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CausalRows {
    /// [B] positions before the first query of the row: query t sees the keys 0..=starts\[b\]+t (never more than there are).
    pub starts: Vec<usize>,
    /// [B] which row of the keys and values belongs to each row of queries (a slot of a cache). `None`: the row of the same number.
    pub slots: Option<Vec<usize>>,
    /// [B] keys that the row has; those behind are padding that nobody sees. `None`: all there are.
    pub lengths: Option<Vec<usize>>,
}

impl CausalRows {
    /// Whole sequences: queries and keys are the same positions.
    pub fn whole(n_rows: usize) -> Self {
        Self { starts: vec![0; n_rows], slots: None, lengths: None }
    }

    /// Right-padded rows in which every query sees every key of its row: an encoder. `lengths` [B], at least 1 each.
    pub fn bidirectional(lengths: Vec<usize>) -> Self {
        // A start at the end of the row puts all of its keys before the first query.
        Self { starts: lengths.clone(), slots: None, lengths: Some(lengths) }
    }

    /// How many of `n_keys` stored keys row `b` has.
    pub(crate) fn n_keys(&self, b: usize, n_keys: usize) -> usize {
        self.lengths.as_ref().map_or(n_keys, |lengths| lengths[b].min(n_keys))
    }

    /// The row of keys and values of row `b`.
    pub(crate) fn slot(&self, b: usize) -> usize {
        self.slots.as_ref().map_or(b, |slots| slots[b])
    }
}

/// Causal grouped-query attention; the equation is in the module's documentation. Scale 1 / sqrt(hd), softmax in f32, result in the dtype of `q`.
///
/// Differentiable in q, k and v. Rows that name slots read a cache, which is a constant: no gradient flows.
/// Queries whose own position lies behind the last key (padding of a ragged batch) see all keys; their result is meaningless but harmless.
/// # Shapes
/// q [B, H, Tq, hd]; k, v [B or n_slots, K, Tk, hd] with H a multiple of K -> [B, H, Tq, hd]. Any strides.
/// # Panics
/// When shapes, starts or slots do not fit together (a bug of the caller).
pub fn causal_attention<B: KernelOps>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, rows: &CausalRows) -> Tensor<B, 4> {
    let [n_rows, n_heads, _, head_dim] = q.dims();
    let [n_key_rows, n_kv_heads, _, key_dim] = k.dims();
    assert_eq!(k.dims(), v.dims(), "keys and values must have one shape");
    assert_eq!(head_dim, key_dim, "queries and keys must have one head size");
    assert!(n_heads.is_multiple_of(n_kv_heads), "{n_heads} query heads are not a multiple of {n_kv_heads} kv heads");
    assert_eq!(rows.starts.len(), n_rows, "one start a row");
    if let Some(lengths) = &rows.lengths {
        assert!(lengths.len() == n_rows && lengths.iter().all(|&length| length > 0), "one length above 0 a row");
    }
    match &rows.slots {
        Some(slots) => assert!(slots.len() == n_rows && slots.iter().all(|&slot| slot < n_key_rows), "one slot below {n_key_rows} a row"),
        None => assert_eq!(n_key_rows, n_rows, "without slots, keys and queries have the same rows"),
    }
    let float = |tensor: Tensor<B, 4>| tensor.into_primitive().tensor();
    Tensor::from_primitive(TensorPrimitive::Float(B::causal_attention(float(q), float(k), float(v), rows)))
}
