//! Elements between a file's little-endian bytes and a tensor's dtype, transposing on the way where
//! the layouts differ.
//!
//! f32, f16 and bf16 in both directions. Widening is exact; narrowing rounds to nearest, ties to
//! even (the `half` crate's rounding). One pass over the data: 0.2 to 1 ns an element.

use crate::ModelError;
use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use safetensors::Dtype;
use std::path::Path;

/// Side of the square tiles of a transposition: 32 x 32 f32 are 4 KB, so the tile read and the tile
/// written stay in the first cache.
const TILE: usize = 32;

/// The stored dtype of a tensor dtype, if safetensors and this crate have one.
pub(super) fn stored_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 | DType::Flex32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// True for the dtypes that [`decode`] reads.
pub(super) fn is_readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Bytes of a file as f32 values.
pub(super) fn decode_f32(bytes: &[u8], from: Dtype) -> Vec<f32> {
    match from {
        Dtype::F16 => elements(bytes, None, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => elements(bytes, None, |b| bf16::from_le_bytes(b).to_f32()),
        _ => elements(bytes, None, f32::from_le_bytes),
    }
}

/// Number of finite values that become infinite when they are stored as `to`.
pub(super) fn n_overflowing(values: impl Iterator<Item = f32>, to: DType) -> usize {
    let is_infinite = |x: f32| match to {
        DType::F16 => f16::from_f32(x).is_infinite(),
        DType::BF16 => bf16::from_f32(x).is_infinite(),
        _ => false,
    };
    values.filter(|&x| x.is_finite() && is_infinite(x)).count()
}

/// The error for weights that do not fit a narrower dtype; none for an empty list.
pub(super) fn overflow(
    path: &Path,
    to: DType,
    tensors: Vec<(String, usize)>,
) -> Result<(), ModelError> {
    if tensors.is_empty() {
        return Ok(());
    }
    let (dtype, hint) = match to {
        DType::F16 => ("float16 (largest value 65504)", "bf16 has the range of float32"),
        _ => ("bfloat16", "keep float32"),
    };
    Err(ModelError::Overflow { path: path.to_owned(), dtype, tensors, hint })
}

/// Bytes of a file as tensor data of dtype `to`. `shape` is the file's; with `is_transposed` the
/// result is its transpose. `from` must be readable; `to` is f32 unless it is f16 or bf16.
pub(super) fn decode(
    bytes: &[u8],
    from: Dtype,
    shape: &[usize],
    to: DType,
    is_transposed: bool,
) -> TensorData {
    let matrix = (is_transposed && shape.len() == 2).then(|| (shape[0], shape[1]));
    let mut out_shape = shape.to_vec();
    if matrix.is_some() {
        out_shape.reverse();
    }
    match (from, to) {
        (Dtype::F16, DType::F16) => {
            TensorData::new(elements(bytes, matrix, f16::from_le_bytes), out_shape)
        }
        (Dtype::F16, DType::BF16) => TensorData::new(
            elements(bytes, matrix, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32())),
            out_shape,
        ),
        (Dtype::F16, _) => {
            TensorData::new(elements(bytes, matrix, |b| f16::from_le_bytes(b).to_f32()), out_shape)
        }
        (Dtype::BF16, DType::BF16) => {
            TensorData::new(elements(bytes, matrix, bf16::from_le_bytes), out_shape)
        }
        (Dtype::BF16, DType::F16) => TensorData::new(
            elements(bytes, matrix, |b| f16::from_f32(bf16::from_le_bytes(b).to_f32())),
            out_shape,
        ),
        (Dtype::BF16, _) => {
            TensorData::new(elements(bytes, matrix, |b| bf16::from_le_bytes(b).to_f32()), out_shape)
        }
        (_, DType::F16) => TensorData::new(
            elements(bytes, matrix, |b| f16::from_f32(f32::from_le_bytes(b))),
            out_shape,
        ),
        (_, DType::BF16) => TensorData::new(
            elements(bytes, matrix, |b| bf16::from_f32(f32::from_le_bytes(b))),
            out_shape,
        ),
        (_, _) => TensorData::new(elements(bytes, matrix, f32::from_le_bytes), out_shape),
    }
}

/// Tensor data as bytes of a file of dtype `to`, transposed if `is_transposed` (and a matrix).
pub(super) fn encode(data: &TensorData, to: Dtype, is_transposed: bool) -> Vec<u8> {
    let matrix = match data.shape.as_slice() {
        [rows, cols] if is_transposed => Some((*rows, *cols)),
        _ => None,
    };
    // Tensor data is in the machine's byte order; on a big-endian one `from_le_bytes` below would
    // be wrong, and burn does not run there.
    let bytes: &[u8] = &data.bytes;
    match (data.dtype, to) {
        (DType::F16, Dtype::F16) | (DType::BF16, Dtype::BF16) => {
            elements(bytes, matrix, |b: [u8; 2]| b).into_flattened()
        }
        (DType::F16, Dtype::BF16) => elements(bytes, matrix, |b| {
            bf16::from_f32(f16::from_le_bytes(b).to_f32()).to_le_bytes()
        })
        .into_flattened(),
        (DType::F16, _) => {
            elements(bytes, matrix, |b| f16::from_le_bytes(b).to_f32().to_le_bytes())
                .into_flattened()
        }
        (DType::BF16, Dtype::F16) => elements(bytes, matrix, |b| {
            f16::from_f32(bf16::from_le_bytes(b).to_f32()).to_le_bytes()
        })
        .into_flattened(),
        (DType::BF16, _) => {
            elements(bytes, matrix, |b| bf16::from_le_bytes(b).to_f32().to_le_bytes())
                .into_flattened()
        }
        (_, Dtype::F16) => {
            elements(bytes, matrix, |b| f16::from_f32(f32::from_le_bytes(b)).to_le_bytes())
                .into_flattened()
        }
        (_, Dtype::BF16) => {
            elements(bytes, matrix, |b| bf16::from_f32(f32::from_le_bytes(b)).to_le_bytes())
                .into_flattened()
        }
        (_, _) => elements(bytes, matrix, |b: [u8; 4]| b).into_flattened(),
    }
}

/// Every N-byte element converted, in order or, for a matrix of (rows, cols), in the order of its
/// transpose.
fn elements<const N: usize, T: Copy>(
    bytes: &[u8],
    matrix: Option<(usize, usize)>,
    convert: impl Fn([u8; N]) -> T,
) -> Vec<T> {
    let (source, _) = bytes.as_chunks::<N>();
    let Some((rows, cols)) = matrix else { return source.iter().map(|&b| convert(b)).collect() };
    let Some(&first) = source.first() else { return Vec::new() };
    let mut out = vec![convert(first); source.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for col_tile in (0..cols).step_by(TILE) {
            for col in col_tile..cols.min(col_tile + TILE) {
                for row in row_tile..rows.min(row_tile + TILE) {
                    out[col * rows + row] = convert(source[row * cols + col]);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_decode_is_the_transpose() {
        // 33 x 70 spans tile borders in both directions.
        let (rows, cols) = (33, 70);
        let bytes: Vec<u8> = (0..rows * cols).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let data = decode(&bytes, Dtype::F32, &[rows, cols], DType::F32, true);
        assert_eq!(data.shape.as_slice(), [cols, rows]);
        let values = data.to_vec::<f32>().unwrap();
        for (row, col) in [(0, 0), (0, 69), (32, 0), (32, 69), (31, 32), (17, 5)] {
            assert_eq!(values[col * rows + row], (row * cols + col) as f32);
        }
        assert_eq!(encode(&data, Dtype::F32, true), bytes);
    }

    #[test]
    fn narrowing_to_bf16_rounds_to_nearest_even() {
        // bf16 keeps 7 fraction bits: the spacing at 1 is 2^-7, so 1 + 2^-8 and 1 + 3 * 2^-8 are
        // ties.
        let ulp = 2f32.powi(-7);
        let cases = [
            (1.0 + ulp / 2.0, 1.0),
            (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
            (1.0 + 0.51 * ulp, 1.0 + ulp),
            (-1.0 - ulp / 2.0, -1.0),
        ];
        for (value, expected) in cases {
            let data = decode(&f32::to_le_bytes(value), Dtype::F32, &[1], DType::BF16, false);
            assert_eq!(data.to_vec::<bf16>().unwrap()[0].to_f32(), expected);
            let bytes = encode(&TensorData::new(vec![value], [1]), Dtype::BF16, false);
            assert_eq!(decode_f32(&bytes, Dtype::BF16), [expected]);
        }
    }

    #[test]
    fn every_half_survives_widening() {
        let bytes: Vec<u8> = (0..=u16::MAX)
            .filter(|b| !f16::from_bits(*b).is_nan())
            .flat_map(u16::to_le_bytes)
            .collect();
        let wide = decode(&bytes, Dtype::F16, &[bytes.len() / 2], DType::F32, false);
        assert_eq!(encode(&wide, Dtype::F16, false), bytes);
        let bytes: Vec<u8> = (0..=u16::MAX)
            .filter(|b| !bf16::from_bits(*b).is_nan())
            .flat_map(u16::to_le_bytes)
            .collect();
        let wide = decode(&bytes, Dtype::BF16, &[bytes.len() / 2], DType::F32, false);
        assert_eq!(encode(&wide, Dtype::BF16, false), bytes);
    }
}
