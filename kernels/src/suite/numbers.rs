//! Numbers on the host: test inputs without a generator, rounding to a device's types, and how far
//! a result is off.
use burn::tensor::{DType, Device, Tensor, TensorData, backend::Backend};

/// The float types of the operations.
pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The float types that the device computes with.
pub fn dtypes_of<B: Backend>(device: &Device<B>) -> Vec<DType> {
    DTYPES.into_iter().filter(|dtype| B::supports_dtype(device, *dtype)).collect()
}

/// Distance of 1 to the next number of a type.
pub fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => f64::from(f32::EPSILON),
    }
}

/// `n` numbers spread over -0.5..0.5, different for every salt: fractional parts of multiples of an
/// irrational.
pub fn numbers(n: usize, salt: f64) -> Vec<f64> {
    (0..n).map(|i| ((i as f64 + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 0.5).collect()
}

/// The same, `by` times as large and as a type can hold them.
pub fn scaled(n: usize, salt: f64, by: f64, dtype: DType) -> Vec<f64> {
    rounded(&numbers(n, salt).iter().map(|x| by * x).collect::<Vec<_>>(), dtype)
}

/// The numbers as a type can hold them.
pub fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    let data =
        TensorData::new(values.iter().map(|&x| x as f32).collect::<Vec<_>>(), [values.len()]);
    to_f64(data.convert_dtype(dtype))
}

/// A tensor of these numbers.
pub fn tensor_on<B: Backend, const D: usize>(
    values: &[f64],
    shape: [usize; D],
    dtype: DType,
    device: &Device<B>,
) -> Tensor<B, D> {
    let data = TensorData::new(values.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape)
        .convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

/// The elements of a tensor, row-major.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    to_f64(tensor.into_data())
}

fn to_f64(data: TensorData) -> Vec<f64> {
    let floats = data.convert::<f32>().to_vec::<f32>().expect("converted to f32");
    floats.into_iter().map(f64::from).collect()
}

/// The largest |got - want| / (1 + |want|); infinite where only one of the two is NaN, or the
/// counts differ.
pub fn worst_error(got: &[f64], want: &[f64]) -> f64 {
    worst_share(got, want, &want.iter().map(|want| 1.0 + want.abs()).collect::<Vec<_>>())
}

/// The largest |got - want| as a share of what each may be off by; infinite where only one of the
/// two is NaN, or the counts differ.
pub fn worst_share(got: &[f64], want: &[f64], allowed: &[f64]) -> f64 {
    if got.len() != want.len() || want.len() != allowed.len() {
        return f64::INFINITY;
    }
    let share = |((got, want), allowed): ((&f64, &f64), &f64)| match (got.is_nan(), want.is_nan()) {
        (true, true) => 0.0,
        (false, false) if got == want => 0.0,
        // A difference of infinities is NaN, which `max` would pass over.
        (false, false) => Some((got - want).abs() / allowed)
            .filter(|share| !share.is_nan())
            .unwrap_or(f64::INFINITY),
        _ => f64::INFINITY,
    };
    got.iter().zip(want).zip(allowed).map(share).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_on_one_side_only_is_an_infinite_error() {
        assert_eq!(worst_error(&[f64::NAN, 1.0], &[f64::NAN, 3.0]), 0.5);
        for (got, want) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, 1.0)] {
            assert_eq!(worst_error(&[got, 0.0], &[want, 0.0]), f64::INFINITY);
        }
        assert_eq!(worst_error(&[1.0], &[]), f64::INFINITY);
    }

    #[test]
    fn where_nothing_may_be_off_every_error_is_infinite() {
        assert_eq!(worst_share(&[1.0, 3.0], &[1.0, 2.0], &[0.0, 4.0]), 0.25);
        assert_eq!(worst_share(&[1e-9], &[0.0], &[0.0]), f64::INFINITY);
        assert_eq!(worst_share(&[1.0], &[0.0], &[f64::NAN]), f64::INFINITY);
    }
}
