use super::*;
use crate::suite::hidden_definitions;
use burn::{backend::Flex, tensor::TensorData};

fn row(values: &[f32]) -> Vec<f32> {
    let data = TensorData::new(values.to_vec(), [1, values.len()]);
    let row = Tensor::<Flex, 2>::from_data(data, &Default::default());
    erf_gelu(row).into_data().to_vec().unwrap()
}

#[test]
fn erf_is_within_four_parts_in_ten_million() {
    let x: Vec<f64> = (-500..=500).map(|i| f64::from(i as f32 * 0.01)).collect();
    let got = row(&x.iter().map(|x| *x as f32).collect::<Vec<_>>());
    for ((x, got), want) in x.iter().zip(got).zip(hidden_definitions::erf_gelu(&x)) {
        // erf's own error times |x| / 2, and the rounding of f32.
        let tolerance = 4e-7 * x.abs().max(1.0);
        assert!((f64::from(got) - want).abs() < tolerance, "gelu({x}) = {got}, not {want}");
    }
}

#[test]
fn far_out_it_is_the_identity_or_nothing() {
    let y = row(&[30.0, 1e30, -30.0, -1e30, 0.0, f32::INFINITY, f32::NAN]);
    assert_eq!(y[..6], [30.0, 1e30, 0.0, 0.0, 0.0, f32::INFINITY]);
    assert!(y[6].is_nan());
}
