//! SwiGLU in CubeCL: one unit an element.
use crate::cube::{ElementCubes, addresses, empty};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// 1 / (1 + e^-x) by an exponential that is at most 1.
#[cube]
fn logistic(x: f32) -> f32 {
    let e = (-x.abs()).exp();
    select(x >= 0.0, f32::new(1.0), e) / (1.0 + e)
}

#[cube(launch, address_type = "dynamic")]
fn gated<F: Float>(
    gate: &Tensor<F>,
    up: &Tensor<F>,
    out: &mut Tensor<F>,
    n: usize,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let g = f32::cast_from(gate[i]);
        out[i] = F::cast_from(g * logistic(g) * f32::cast_from(up[i]));
    }
}

#[cube(launch, address_type = "dynamic")]
fn gradients<F: Float>(
    gate: &Tensor<F>,
    up: &Tensor<F>,
    grad: &Tensor<F>,
    dgate: &mut Tensor<F>,
    dup: &mut Tensor<F>,
    n: usize,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let (g, dy) = (f32::cast_from(gate[i]), f32::cast_from(grad[i]));
        let s = logistic(g);
        dup[i] = F::cast_from(dy * g * s);
        dgate[i] = F::cast_from(dy * f32::cast_from(up[i]) * s * (1.0 + g * (1.0 - s)));
    }
}

pub(crate) fn forward<R: CubeRuntime>(gate: CubeTensor<R>, up: CubeTensor<R>) -> CubeTensor<R> {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let (n, dtype) = (gate.shape().num_elements(), gate.dtype);
    let out = empty(&gate, gate.shape(), dtype);
    if n > 0 {
        let cubes = ElementCubes::new(&gate, n);
        let address = addresses(&[&gate, &up]);
        let (gate, up, result) =
            (gate.into_tensor_arg(), up.into_tensor_arg(), out.clone().into_tensor_arg());
        gated::launch::<R>(
            &out.client,
            cubes.count,
            cubes.dim,
            address,
            gate,
            up,
            result,
            n,
            dtype.into(),
        );
    }
    out
}

pub(crate) fn backward<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let (gate, up, grad) = (into_contiguous(gate), into_contiguous(up), into_contiguous(grad));
    let (n, dtype) = (gate.shape().num_elements(), gate.dtype);
    let (dgate, dup) = (empty(&gate, gate.shape(), dtype), empty(&gate, gate.shape(), dtype));
    if n > 0 {
        let cubes = ElementCubes::new(&gate, n);
        gradients::launch::<R>(
            &dgate.client,
            cubes.count,
            cubes.dim,
            addresses(&[&gate, &up, &grad]),
            gate.into_tensor_arg(),
            up.into_tensor_arg(),
            grad.into_tensor_arg(),
            dgate.clone().into_tensor_arg(),
            dup.clone().into_tensor_arg(),
            n,
            dtype.into(),
        );
    }
    [dgate, dup]
}
