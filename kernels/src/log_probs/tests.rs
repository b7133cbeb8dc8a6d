use super::*;
use crate::vocabulary::ONE_COLUMNS as COLUMNS;
use burn::{
    backend::{Autodiff, Flex},
    tensor::{TensorData, backend::Backend},
};

type Train = Autodiff<Flex>;

const VOCAB: usize = 37;
const LABELS: [i64; 3] = [0, 36, 20];

fn logits() -> Vec<f64> {
    (0..3 * VOCAB)
        .map(|i| {
            8.0 * ((i as f64 + 1.0) * 0.618_033_988_749_894_9).fract() - 4.0
                + (i / VOCAB) as f64 * 30.0
        })
        .collect()
}

/// log p and H of each row by definition, f64.
fn literal(logits: &[f64], temperature: f64) -> Vec<(f64, f64)> {
    let row = |(z, label): (&[f64], &i64)| {
        let total: f64 = z.iter().map(|x| (x / temperature).exp()).sum();
        let p: Vec<f64> = z.iter().map(|x| (x / temperature).exp() / total).collect();
        (p[*label as usize].ln(), -p.iter().map(|p| p * p.ln()).sum::<f64>())
    };
    logits.chunks(VOCAB).zip(&LABELS).map(row).collect()
}

fn tensor<B: Backend>(values: &[f64]) -> Tensor<B, 2> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, [3, VOCAB]), &Default::default())
}

fn labels<B: Backend>() -> Tensor<B, 1, Int> {
    Tensor::from_data(LABELS, &Default::default())
}

fn packed(reference: FloatTensor<Flex>) -> Vec<f32> {
    reference::tensor::<Flex>(reference).into_data().to_vec().unwrap()
}

#[test]
fn values_are_the_definition() {
    for temperature in [1.0, 0.7] {
        let want = literal(&logits(), temperature);
        let plain = packed(reference::forward::<Flex>(
            tensor::<Flex>(&logits()).into_primitive().tensor(),
            labels::<Flex>().into_primitive(),
            temperature,
        ));
        let (log_p, entropy) = log_probs(tensor::<Flex>(&logits()), labels(), temperature);
        let (log_p, entropy): (Vec<f32>, Vec<f32>) =
            (log_p.into_data().to_vec().unwrap(), entropy.into_data().to_vec().unwrap());
        for (row, (want_log_p, want_entropy)) in want.into_iter().enumerate() {
            for (got, want) in [
                (log_p[row], want_log_p),
                (plain[row * COLUMNS], want_log_p),
                (entropy[row], want_entropy),
                (plain[row * COLUMNS + 1], want_entropy),
            ] {
                assert!((f64::from(got) - want).abs() < 1e-5, "row {row}: {got} instead of {want}");
            }
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    let (temperature, weights) = (0.7, [(1.0, 0.5), (-0.3, 2.0), (0.0, 1.0)]);
    let loss = |logits: &[f64]| {
        literal(logits, temperature)
            .iter()
            .zip(weights)
            .map(|(x, w)| x.0 * w.0 + x.1 * w.1)
            .sum::<f64>()
    };
    let want: Vec<f64> = (0..3 * VOCAB)
        .map(|i| {
            let at = |delta: f64| {
                let mut moved = logits();
                moved[i] += delta;
                loss(&moved)
            };
            (at(1e-5) - at(-1e-5)) / 2e-5
        })
        .collect();
    let z = tensor::<Train>(&logits()).require_grad();
    let (log_p, entropy) = log_probs(z.clone(), labels(), temperature);
    let weigh = |f: fn((f64, f64)) -> f64| {
        Tensor::<Train, 1>::from_data(weights.map(|w| f(w) as f32), &Default::default())
    };
    let grads = (log_p * weigh(|w| w.0) + entropy * weigh(|w| w.1)).sum().backward();
    let cpu: Vec<f32> = z.grad(&grads).unwrap().into_data().to_vec().unwrap();
    let grad: Vec<f32> =
        weights.iter().flat_map(|w| [w.0 as f32, w.1 as f32, 0.0, 0.0, 0.0, 0.0, 0.0]).collect();
    let grad =
        Tensor::<Flex, 2>::from_data(TensorData::new(grad, [3, COLUMNS]), &Default::default())
            .into_primitive()
            .tensor();
    let (z, y) =
        (tensor::<Flex>(&logits()).into_primitive().tensor(), labels::<Flex>().into_primitive());
    let out = reference::forward::<Flex>(z.clone(), y.clone(), temperature);
    let plain = packed(reference::backward::<Flex>(z, y, out, grad, temperature));
    for (i, want) in want.into_iter().enumerate() {
        for got in [cpu[i], plain[i]] {
            assert!((f64::from(got) - want).abs() < 1e-5, "{i}: {got} instead of {want}");
        }
    }
}

#[test]
fn minus_infinity_is_impossible_and_nan_surfaces() {
    let z = Tensor::<Train, 2>::from_data(
        [[0.0, f32::NEG_INFINITY, 0.0], [0.0, f32::NAN, 0.0]],
        &Default::default(),
    )
    .require_grad();
    let (log_p, entropy) =
        log_probs(z.clone(), Tensor::from_data([0, 0], &Default::default()), 1.0);
    let values: Vec<f32> =
        Tensor::cat(vec![log_p.clone(), entropy.clone()], 0).into_data().to_vec().unwrap();
    let ln_2 = std::f32::consts::LN_2;
    assert!((values[0] + ln_2).abs() < 1e-6 && (values[2] - ln_2).abs() < 1e-6);
    assert!(values[1].is_nan() && values[3].is_nan());
    let grads = (log_p + entropy).sum().backward();
    let grad: Vec<f32> = z.grad(&grads).unwrap().into_data().to_vec().unwrap();
    assert!((grad[0] - 0.5).abs() < 1e-6 && grad[1] == 0.0 && grad[3].is_nan(), "{grad:?}");
}
