//! Attention on a CubeCL runtime: a few queries over a cache go to the kernel of `decode.rs`,
//! everything else to the products of `chunks.rs`.
use super::{chunks, decode};
use crate::types::CausalRows;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

pub(crate) use chunks::backward;

pub(crate) fn forward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    rows: &CausalRows,
) -> CubeTensor<R> {
    match decode::DecodePlan::new(&q, &k, &v, rows) {
        Some(plan) => decode::forward(&plan, q, k, v, rows),
        None => chunks::forward(q, k, v, rows),
    }
}
