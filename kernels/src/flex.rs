//! The operations on the CPU backend: loops over its memory.
use crate::{
    attention::{self, CausalRows},
    cache_write::{self, CacheSpan},
    select::{fused_ops, names::*},
    vocabulary::budget::CPU_TILE_ELEMENTS,
};
use burn::backend::Flex;

impl KernelOps for Flex {
    const KEY_POSITION_DIM: usize = 3;
    const TOKENS_AT_ONCE: usize = 1024;
    const TILE_ELEMENTS: usize = CPU_TILE_ELEMENTS;

    fused_ops!(cpu);

    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, rows: &CausalRows) -> FloatTensor<Self> {
        attention::cpu::forward(q, k, v, rows)
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> [FloatTensor<Self>; 3] {
        attention::cpu::backward(q, k, v, grad, rows)
    }

    fn cache_write(cache: FloatTensor<Self>, values: FloatTensor<Self>, spans: &[CacheSpan], position_dim: usize) -> FloatTensor<Self> {
        cache_write::cpu::forward(cache, values, spans, position_dim)
    }
}
