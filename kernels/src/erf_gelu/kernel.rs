//! GELU in CubeCL: one unit an element, erf by the same rational function as on the CPU.
use crate::cube::{ElementCubes, addresses, empty};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

/// 1 / sqrt(2 pi)
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// See `erf` of the CPU loops.
#[cube]
fn erf(x: f32) -> f32 {
    let x2 = x * x;
    let p = -2.726_142_3e-10 * x2 + 2.770_681_4e-8;
    let p = p * x2 - 2.101_024e-6;
    let p = p * x2 - 5.692_506_4e-5;
    let p = p * x2 - 7.349_906_3e-4;
    let p = p * x2 - 2.954_6e-3;
    let p = p * x2 - 1.609_603_3e-2;
    let q = -1.456_607_2e-5 * x2 - 2.133_740_6e-4;
    let q = q * x2 - 1.682_827e-3;
    let q = q * x2 - 7.373_329e-3;
    let q = q * x2 - 1.426_473_9e-2;
    let above = select(x > 4.0, f32::new(1.0), x * p / q);
    select(x < -4.0, f32::new(-1.0), above)
}

#[cube(launch, address_type = "dynamic")]
fn gelu<F: Float>(x: &Tensor<F>, out: &mut Tensor<F>, n: usize, #[define(F)] _type: StorageType) {
    let i = ABSOLUTE_POS;
    if i < n {
        let value = f32::cast_from(x[i]);
        out[i] = F::cast_from(0.5 * value * (1.0 + erf(value * FRAC_1_SQRT_2)));
    }
}

#[cube(launch, address_type = "dynamic")]
fn gradient<F: Float>(
    x: &Tensor<F>,
    grad: &Tensor<F>,
    dx: &mut Tensor<F>,
    n: usize,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let value = f32::cast_from(x[i]);
        let density = (-0.5 * value * value).exp() * DENSITY_AT_ZERO;
        let slope = 0.5 * (1.0 + erf(value * FRAC_1_SQRT_2)) + value * density;
        dx[i] = F::cast_from(f32::cast_from(grad[i]) * slope);
    }
}

pub(crate) fn forward<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let (n, dtype) = (x.shape().num_elements(), x.dtype);
    let out = empty(&x, x.shape(), dtype);
    if n > 0 {
        let cubes = ElementCubes::new(&x, n);
        let address = addresses(&[&x]);
        gelu::launch::<R>(
            &out.client,
            cubes.count,
            cubes.dim,
            address,
            x.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n,
            dtype.into(),
        );
    }
    out
}

pub(crate) fn backward<R: CubeRuntime>(x: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
    let (x, grad) = (into_contiguous(x), into_contiguous(grad));
    let (n, dtype) = (x.shape().num_elements(), x.dtype);
    let dx = empty(&x, x.shape(), dtype);
    if n > 0 {
        let cubes = ElementCubes::new(&x, n);
        let address = addresses(&[&x, &grad]);
        let (x, grad, result) =
            (x.into_tensor_arg(), grad.into_tensor_arg(), dx.clone().into_tensor_arg());
        gradient::launch::<R>(
            &dx.client,
            cubes.count,
            cubes.dim,
            address,
            x,
            grad,
            result,
            n,
            dtype.into(),
        );
    }
    dx
}
