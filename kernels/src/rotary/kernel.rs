//! The rotation in CubeCL: one unit a pair of elements.
use crate::cube::{ElementCubes, addresses, empty};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

#[cube(launch, address_type = "dynamic")]
fn turn<F: Float, T: Float>(
    x: &Tensor<F>,
    cos: &Tensor<T>,
    sin: &Tensor<T>,
    out: &mut Tensor<F>,
    n_pairs: usize,
    half: usize,
    heads: usize,
    n_positions: usize,
    #[define(F, T)] _types: [StorageType; 2],
) {
    let pair = ABSOLUTE_POS;
    if pair < n_pairs {
        let i = pair % half;
        let token = pair / half / heads;
        let at = pair / half * (2 * half) + i;
        let angle = token % n_positions * half + i;
        let (c, s) = (f32::cast_from(cos[angle]), f32::cast_from(sin[angle]));
        let (a, b) = (f32::cast_from(x[at]), f32::cast_from(x[at + half]));
        out[at] = F::cast_from(a * c - b * s);
        out[at + half] = F::cast_from(b * c + a * s);
    }
}

pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
) -> CubeTensor<R> {
    let (x, cos, sin) = (into_contiguous(x), into_contiguous(cos), into_contiguous(sin));
    let ([n_tokens, width], [n_positions, half]) = (x.shape().dims(), cos.shape().dims());
    let n_pairs = n_tokens * width / 2;
    let out = empty(&x, x.shape(), x.dtype);
    if n_pairs > 0 {
        let (cubes, types) = (ElementCubes::new(&x, n_pairs), [x.dtype.into(), cos.dtype.into()]);
        turn::launch::<R>(
            &out.client,
            cubes.count,
            cubes.dim,
            addresses(&[&x]),
            x.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n_pairs,
            half,
            width / (2 * half),
            n_positions,
            types,
        );
    }
    out
}
