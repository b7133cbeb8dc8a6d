//! Grouped-query attention as one operation: causal, or over the whole row (an encoder's).
//!
//! For row b, head h and query t, with kv head j = h / (H / K) and the visible keys s <=
//! starts\[b\] + t, s < lengths\[b\]:
//!
//! ```text
//! p_s   = softmax_s( q_t . k_s / sqrt(hd) )          (f32)
//! out_t = sum_s p_s v_s
//! ```
//!
//! and backwards, with go the gradient of the output (P is computed again, nothing of size
//! `[Tq, Tk]` is kept):
//!
//! ```text
//! dP_s = go_t . v_s           dS_s = P_s (dP_s - sum_u P_u dP_u) / sqrt(hd)
//! dq_t = sum_s dS_s k_s       dk_s = sum_t dS_s q_t       dv_s = sum_t P_s go_t
//!                             (these two sums also over the heads of the group)
//! ```
//!
//! What it avoids: scores exist for a block of queries only, never `[B, H, Tq, Tk]`; the H / K
//! heads of a group share their keys as extra rows of one product, so keys and values are never
//! repeated; a block reads only the keys its last query sees; with slots, keys and values are read
//! where they lie in the cache.
//!
//! | | forward | backward |
//! |---|---|---|
//! | multiply-adds | B H Tq Tk hd (causal half of 2 B H Tq Tk hd) | 5/2 of the forward |
//! | exponentials | B H Tq Tk / 2 | the same |
//! | bytes (f32) | 4 (2 B H Tq hd + 2 B K Tk hd) | twice the forward |
//! | extra memory, reference | 128 (H / K) rows of scores a (B, K) pair | three times that |
//! | extra memory, CPU | 4 rows of scores, one head of keys (16 bits: and of values) a thread | that and one head of dk, dv |
//! | extra memory, CubeCL | 64 MiB of f32 scores, and P | twice that, and f32 dk, dv |
//!
//! # On a GPU: two problems, two shapes
//!
//! **Many queries** (training, prefill; `chunks.rs`) is limited by multiplications, and only burn's
//! matrix products reach the tensor cores. So the products stay products, and what is fused is
//! everything between two of them. Plain operations would scale, mask, take the maximum, subtract,
//! exponentiate, sum, divide and cast: eight passes over the scores and a mask as large as they
//! are. `softmax.rs` has one kernel for each direction:
//!
//! | kernel | bytes for each score (s: size of the dtype of q) | flops |
//! |---|---|---|
//! | `masked_softmax` | 8 + s: reads S twice, writes P | 2 exponentials, about 6 others |
//! | `softmax_gradients` | 16 + 2 s: reads S, dP twice, writes P, dS | 2 exponentials, about 12 others |
//!
//! The second read of a row (4 Tk bytes) mostly comes from a cache. There is no mask tensor: query
//! t of row b sees the first min(starts\[b\] + t + 1, lengths\[b\]) keys, which a kernel computes
//! from two integers. The backward kernel computes P again from S, in f32, rather than keep it: a
//! kept P is `[B, H, Tq, Tk]`, what this operation exists to avoid. Chunks of at most 256 queries
//! hold the scores in 64 MiB, so memory grows linearly with T. A prefill over slots first gathers
//! the live positions of its rows (not the capacity, and 0 behind the end of a row, so that what a
//! slot held before reaches no product): 2 B K Tk hd elements moved for B H Tq Tk hd multiply-adds,
//! so 1 for each Tq H / (2 K).
//!
//! **Few queries** (the decode step; `decode.rs`) is limited by memory: each key takes part in H /
//! K multiplications for each new query. The bar is to read every live key and value once, 2 B K Tk
//! hd s bytes, and nothing else of that size. One cube serves all heads of a group, so a key is
//! read once and not H / K times; it stays in the cache's buffer; scores and probabilities live in
//! shared memory. With few rows there are too few (row, kv head) pairs to fill a GPU, so the
//! positions are split over several cubes as well, whose results (hd + 1 numbers each) a second
//! kernel joins: the softmax of parts is exact when each part brings its maximum and sum.
//!
//! Keys are cached as [n_slots, K, hd, capacity] (`KEY_POSITION_DIM` 3): a unit computes the scores
//! of neighbouring positions, so neighbouring units read neighbouring memory, and a dot product is
//! a loop in one unit. With [.., capacity, hd] either neighbouring units would read hd elements
//! apart, or a score would be a sum across units. The price is paid by `cache_write`, which
//! scatters K hd elements a token; it writes 1 position where attention reads all.
//!
//! `reference.rs` is the plain-tensor form that every backend can run; `cpu.rs` are the loops of
//! the CPU backend; `kernel.rs` chooses between the two CubeCL forms.
mod autodiff;
#[cfg(feature = "cube")]
mod chunks;
mod cpu;
mod cpu_heads;
mod cpu_products;
#[cfg(feature = "cube")]
mod decode;
#[cfg(feature = "cube")]
mod kernel;
pub(crate) mod reference;
#[cfg(feature = "cube")]
mod softmax;
#[cfg(test)]
mod tests;

pub use crate::types::CausalRows;

use crate::operation::*;
use burn::tensor::{Tensor, TensorPrimitive};

operation! {
    /// Attention on a backend's own tensors.
    AttentionOps: Backend, own;

    /// See [`causal_attention`].
    forward causal_attention([q, k, v], [], &rows: CausalRows) -> (like(&q));
    /// Gradients of q, k and v, given the gradient of the result. Not for rows that name slots.
    backward causal_attention_backward([q, k, v, grad], [], &rows: CausalRows)
        -> [like(&q), like(&k), like(&v)];
}

/// Causal grouped-query attention; the equation is in the module's documentation. Scale 1 /
/// sqrt(hd), softmax in f32, result in the dtype of `q`.
///
/// Differentiable in q, k and v. Rows that name slots read a cache, which is a constant: no
/// gradient flows. Queries whose own position lies behind the last key (padding of a ragged batch)
/// see all keys; their result is meaningless but harmless.
/// # Shapes
/// q `[B, H, Tq, hd]`; k, v [B or n_slots, K, Tk, hd] with H a multiple of K -> `[B, H, Tq, hd]`.
/// Any strides.
/// # Panics
/// When shapes, starts or slots do not fit together (a bug of the caller).
pub fn causal_attention<B: AttentionOps>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    rows: &CausalRows,
) -> Tensor<B, 4> {
    let [n_rows, n_heads, _, head_dim] = q.dims();
    let [n_key_rows, n_kv_heads, _, key_dim] = k.dims();
    assert_eq!(k.dims(), v.dims(), "keys and values must have one shape");
    assert_eq!(head_dim, key_dim, "queries and keys must have one head size");
    assert!(
        n_heads.is_multiple_of(n_kv_heads),
        "{n_heads} query heads are not a multiple of {n_kv_heads} kv heads"
    );
    assert_eq!(rows.starts.len(), n_rows, "one start a row");
    if let Some(lengths) = &rows.lengths {
        assert!(
            lengths.len() == n_rows && lengths.iter().all(|&length| length > 0),
            "one length above 0 a row"
        );
    }
    match &rows.slots {
        Some(slots) => assert!(
            slots.len() == n_rows && slots.iter().all(|&slot| slot < n_key_rows),
            "one slot below {n_key_rows} a row"
        ),
        None => {
            assert_eq!(n_key_rows, n_rows, "without slots, keys and queries have the same rows")
        }
    }
    let float = |tensor: Tensor<B, 4>| tensor.into_primitive().tensor();
    Tensor::from_primitive(TensorPrimitive::Float(B::causal_attention(
        float(q),
        float(k),
        float(v),
        rows,
    )))
}
