//! Tools that launches on CubeCL runtimes (CUDA, wgpu) share.
//!
//! [`fusion`] is about `Fusion<CubeBackend>`, the type that burn's `Wgpu` and `Cuda` are.
pub(crate) mod fusion;
pub(crate) mod numbers;

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{CubeCount, CubeDim, CubeElement, prelude::AddressType};

/// Units (threads) of a cube at most.
const MAX_UNITS: usize = 256;
/// Cubes along one axis of a launch that every runtime allows.
const MAX_CUBES: usize = 65_535;

/// Rounds of all its loops together that a unit may make. A software Vulkan driver (Mesa 22.3.6)
/// ends every loop of a unit that has made so many, and the results are wrong without a word.
pub(crate) const MAX_ROUNDS: usize = 65_535;

/// A row-major tensor of this runtime with undefined elements.
pub(crate) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: Shape,
    dtype: DType,
) -> CubeTensor<R> {
    let buffer = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, buffer, dtype)
}

/// The same with rows padded as the runtime likes them best: [.., n, m] with a stride of m or a
/// little more in dimension n.
pub(crate) fn aligned_empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: Shape,
    dtype: DType,
) -> CubeTensor<R> {
    let layout = like.client.empty_tensor(shape.clone(), dtype.size());
    let mut tensor = CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        shape,
        layout.memory,
        dtype,
    );
    *tensor.meta.strides_mut() = layout.strides;
    tensor
}

/// A few integers for a kernel to look things up in.
pub(crate) fn table<R: CubeRuntime>(like: &CubeTensor<R>, numbers: &[u32]) -> CubeTensor<R> {
    let buffer = like.client.create_from_slice(u32::as_bytes(numbers));
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        Shape::new([numbers.len()]),
        buffer,
        DType::U32,
    )
}

/// One cube a row; a kernel leaves at once where its number is past the last row.
pub(crate) fn row_cubes(n_rows: usize) -> CubeCount {
    let y = n_rows.div_ceil(MAX_CUBES).max(1);
    CubeCount::Static(n_rows.div_ceil(y) as u32, y as u32, 1)
}

/// A launch of one unit an element; a kernel leaves at once where its unit is past the last one.
pub(crate) struct ElementCubes {
    pub count: CubeCount,
    pub dim: CubeDim,
}

impl ElementCubes {
    pub(crate) fn new<R: CubeRuntime>(like: &CubeTensor<R>, n: usize) -> Self {
        let units = unit_count(like, n);
        Self { count: row_cubes(n.div_ceil(units)), dim: CubeDim::new_1d(units as u32) }
    }
}

/// A power of two, not far above the columns there are.
pub(crate) fn unit_count<R: CubeRuntime>(like: &CubeTensor<R>, n_columns: usize) -> usize {
    let most = (like.client.properties().hardware.max_cube_dim.0 as usize).min(MAX_UNITS);
    n_columns.next_power_of_two().clamp(2, 1 << most.ilog2())
}

/// Integers wide enough for the positions in each of these tensors: 2^32 elements and more take 64
/// bits (where a runtime allows such a tensor at all).
pub(crate) fn addresses<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// The matrix with the elements of a row side by side (a copy only where they are not).
pub(crate) fn with_row_stride<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    match tensor.meta.strides()[tensor.shape().num_dims() - 1] {
        1 => tensor,
        _ => into_contiguous(tensor),
    }
}
