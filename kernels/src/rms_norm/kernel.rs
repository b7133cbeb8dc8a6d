//! RMSNorm in CubeCL: one cube a row, whose units share the row's sums; the weight's gradient by
//! blocks of rows, then over the blocks.
use crate::cube::{ElementCubes, MAX_ROUNDS, addresses, empty, row_cubes, unit_count};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Rows whose share of the weight's gradient one unit adds up; part of the result's last bit. More
/// where there would be more blocks than [`MAX_BLOCKS`], over which a unit walks as well
/// ([`MAX_ROUNDS`]).
const ROWS_PER_BLOCK: usize = 64;
const MAX_BLOCKS: usize = 4096;

fn rows_per_block(n_rows: usize) -> usize {
    n_rows.div_ceil(MAX_BLOCKS).next_power_of_two().clamp(ROWS_PER_BLOCK, MAX_ROUNDS)
}

/// Sum of entry 0..units of `shared` from `at` on, left in `shared[at]`.
#[cube]
fn reduce(shared: &mut SharedMemory<f32>, at: usize, #[comptime] units: usize) {
    let unit = UNIT_POS_X as usize;
    sync_cube();
    let half = RuntimeCell::<usize>::new(units / 2);
    while half.read() > 0 {
        let h = half.read();
        if unit < h {
            shared[at + unit] = shared[at + unit] + shared[at + unit + h];
        }
        sync_cube();
        half.store(h / 2);
    }
}

#[cube(launch, address_type = "dynamic")]
fn normalise<F: Float, W: Float>(
    x: &Tensor<F>,
    weight: &Tensor<W>,
    out: &mut Tensor<F>,
    n_rows: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(F, W)] _types: [StorageType; 2],
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(units);
    if row < n_rows {
        let mut squares = f32::new(0.0);
        let mut i = unit;
        while i < width {
            let value = f32::cast_from(x[row * width + i]);
            squares += value * value;
            i += units;
        }
        shared[unit] = squares;
        reduce(&mut shared, 0, units);
        let r = 1.0 / (shared[0] / f32::cast_from(width) + eps).sqrt();
        let mut i = unit;
        while i < width {
            let n = F::cast_from(f32::cast_from(x[row * width + i]) * r);
            out[row * width + i] = n * F::cast_from(weight[i]);
            i += units;
        }
    }
}

/// dx, and 1 / rms of each row for the weight's gradient.
#[cube(launch, address_type = "dynamic")]
fn input_gradient<F: Float, W: Float>(
    x: &Tensor<F>,
    weight: &Tensor<W>,
    grad: &Tensor<F>,
    dx: &mut Tensor<F>,
    inverse_rms: &mut Tensor<f32>,
    n_rows: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(F, W)] _types: [StorageType; 2],
) {
    let row = CUBE_POS;
    let unit = UNIT_POS_X as usize;
    let mut shared = SharedMemory::<f32>::new(2 * units);
    if row < n_rows {
        let mut squares = f32::new(0.0);
        let mut product = f32::new(0.0);
        let mut i = unit;
        while i < width {
            let value = f32::cast_from(x[row * width + i]);
            squares += value * value;
            product += value * f32::cast_from(grad[row * width + i]) * f32::cast_from(weight[i]);
            i += units;
        }
        shared[unit] = squares;
        shared[units + unit] = product;
        reduce(&mut shared, 0, units);
        reduce(&mut shared, units, units);
        let r = 1.0 / (shared[0] / f32::cast_from(width) + eps).sqrt();
        let mean = shared[units] * r / f32::cast_from(width);
        let mut i = unit;
        while i < width {
            let g = f32::cast_from(grad[row * width + i]) * f32::cast_from(weight[i]);
            dx[row * width + i] =
                F::cast_from(r * (g - f32::cast_from(x[row * width + i]) * r * mean));
            i += units;
        }
        if unit == 0 {
            inverse_rms[row] = r;
        }
    }
}

/// Of each block of rows, its share of dw: [blocks, D].
#[cube(launch, address_type = "dynamic")]
fn weight_gradient_of_blocks<F: Float>(
    x: &Tensor<F>,
    grad: &Tensor<F>,
    inverse_rms: &Tensor<f32>,
    partial: &mut Tensor<f32>,
    n_rows: usize,
    width: usize,
    n: usize,
    #[comptime] rows: usize,
    #[define(F)] _type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let column = at % width;
        let mut row = at / width * rows;
        let end = min(row + rows, n_rows);
        let mut sum = f32::new(0.0);
        while row < end {
            let i = row * width + column;
            sum += f32::cast_from(grad[i]) * f32::cast_from(x[i]) * inverse_rms[row];
            row += 1;
        }
        partial[at] = sum;
    }
}

#[cube(launch, address_type = "dynamic")]
fn sum_of_blocks<W: Float>(
    partial: &Tensor<f32>,
    dw: &mut Tensor<W>,
    n_blocks: usize,
    width: usize,
    #[define(W)] _type: StorageType,
) {
    let column = ABSOLUTE_POS;
    if column < width {
        let mut sum = f32::new(0.0);
        let mut block = 0;
        while block < n_blocks {
            sum += partial[block * width + column];
            block += 1;
        }
        dw[column] = W::cast_from(sum);
    }
}

pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f64,
) -> CubeTensor<R> {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let [n_rows, width] = x.shape().dims();
    let out = empty(&x, x.shape(), x.dtype);
    if n_rows == 0 {
        return out;
    }
    let (units, types) = (unit_count(&x, width), [x.dtype.into(), weight.dtype.into()]);
    normalise::launch::<R>(
        &out.client,
        row_cubes(n_rows),
        CubeDim::new_1d(units as u32),
        addresses(&[&x]),
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        n_rows,
        width,
        eps as f32,
        units,
        types,
    );
    out
}

pub(crate) fn backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
    eps: f64,
) -> [CubeTensor<R>; 2] {
    let (x, weight, grad) = (into_contiguous(x), into_contiguous(weight), into_contiguous(grad));
    let [n_rows, width] = x.shape().dims();
    let rows_per_block = rows_per_block(n_rows);
    let n_blocks = n_rows.div_ceil(rows_per_block).max(1);
    let dx = empty(&x, x.shape(), x.dtype);
    let dw = empty(&x, weight.shape(), weight.dtype);
    let inverse_rms = empty(&x, Shape::new([n_rows.max(1)]), DType::F32);
    let partial = empty(&x, Shape::new([n_blocks, width]), DType::F32);
    let (units, types) = (unit_count(&x, width), [x.dtype.into(), weight.dtype.into()]);
    if n_rows > 0 {
        input_gradient::launch::<R>(
            &dx.client,
            row_cubes(n_rows),
            CubeDim::new_1d(units as u32),
            addresses(&[&x]),
            x.clone().into_tensor_arg(),
            weight.into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            inverse_rms.clone().into_tensor_arg(),
            n_rows,
            width,
            eps as f32,
            units,
            types,
        );
    }
    let blocks = ElementCubes::new(&x, n_blocks * width);
    let dtype = x.dtype.into();
    weight_gradient_of_blocks::launch::<R>(
        &dx.client,
        blocks.count,
        blocks.dim,
        addresses(&[&x, &partial]),
        x.clone().into_tensor_arg(),
        grad.into_tensor_arg(),
        inverse_rms.into_tensor_arg(),
        partial.clone().into_tensor_arg(),
        n_rows,
        width,
        n_blocks * width,
        rows_per_block,
        dtype,
    );
    let columns = ElementCubes::new(&x, width);
    let dtype = dw.dtype.into();
    sum_of_blocks::launch::<R>(
        &dx.client,
        columns.count,
        columns.dim,
        addresses(&[&partial]),
        partial.into_tensor_arg(),
        dw.clone().into_tensor_arg(),
        n_blocks,
        width,
        dtype,
    );
    [dx, dw]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_unit_walks_further_than_a_driver_lets_it() {
        for n_rows in [1, 70_000, 1 << 22, 200_000_000] {
            let rows = rows_per_block(n_rows);
            assert!(rows <= MAX_ROUNDS && n_rows.div_ceil(rows) <= MAX_ROUNDS, "{n_rows}");
        }
        assert_eq!(rows_per_block(1 << 18), ROWS_PER_BLOCK);
    }
}
