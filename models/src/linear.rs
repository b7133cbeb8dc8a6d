//! Layers that give every row of a matrix the same bias or weight, over any number of rows.
//!
//! burn's own layers, but for matrices of more rows than one sum should run over
//! (`dgpo_kernels::rows`): there the gradient of the one row for all is summed in blocks. Values
//! are the same either way.
use crate::Backend;
use burn::{
    nn::{Embedding, LayerNorm, Linear},
    tensor::{Int, Tensor, module},
};
use dgpo_kernels::rows::{WHOLE_ROWS, expand_rows, in_blocks, select_rows};

/// y = x W + b. x `[N, D_in]` -> [N, D_out]
pub(crate) fn linear<B: Backend>(layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let n_rows = x.dims()[0];
    match &layer.bias {
        Some(bias) if n_rows > WHOLE_ROWS => {
            module::linear(x, layer.weight.val(), None) + expand_rows(bias.val(), n_rows)
        }
        _ => layer.forward(x),
    }
}

/// y = gamma (x - mean) / sqrt(var + eps) + beta. x `[N, D]` -> `[N, D]`
pub(crate) fn layer_norm<B: Backend>(layer: &LayerNorm<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    in_blocks(x, |x| layer.forward(x))
}

/// The embeddings of tokens. ids of N tokens -> `[N, D]`
pub(crate) fn embedding<B: Backend>(layer: &Embedding<B>, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let n_tokens = ids.shape().num_elements();
    select_rows(layer.weight.val(), ids.reshape([n_tokens]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::{Autodiff, Flex},
        module::Param,
        tensor::TensorData,
    };

    type Train = Autodiff<Flex>;
    /// With a rest behind the last block of any size.
    const N: usize = 65_537;
    const D: usize = 2;

    fn leaf<const R: usize>(values: Vec<f32>, shape: [usize; R]) -> Tensor<Train, R> {
        Tensor::<Train, R>::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn row(values: [f32; D]) -> Param<Tensor<Train, 1>> {
        Param::from_tensor(leaf(values.to_vec(), [D]).require_grad())
    }

    /// Of one sign, so that a relative error means something.
    fn upstream() -> Vec<f32> {
        (0..N * D).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 + 0.1).collect()
    }

    fn column_sums(x: impl Iterator<Item = f64>) -> [f64; D] {
        let mut sums = [0.0; D];
        x.enumerate().for_each(|(i, x)| sums[i % D] += x);
        sums
    }

    /// One line of 65,537 f32 is off by 6e-6 to 3e-5 of the sum; blocks of 4,096 by a tenth of
    /// that, of 64 by less.
    fn assert_sums(got: Tensor<Flex, 1>, want: [f64; D], tolerance: f64) {
        for (got, want) in got.into_data().iter::<f64>().zip(want) {
            assert!((got - want).abs() <= tolerance * want.abs(), "{got} instead of {want}");
        }
    }

    #[test]
    fn the_bias_gradient_of_many_rows_is_their_sum_in_f64() {
        let layer = Linear {
            weight: Param::from_tensor(leaf(vec![1.0, 0.5, -1.0, 2.0], [2, D])),
            bias: Some(row([0.25, -0.5])),
        };
        let y = linear(&layer, leaf(vec![1.0; N * 2], [N, 2]));
        assert_eq!(y.clone().slice(N - 1..N).into_data().to_vec::<f32>().unwrap(), [0.25, 2.0]);
        let grads = (y * leaf(upstream(), [N, D])).sum().backward();
        let want = column_sums(upstream().into_iter().map(f64::from));
        assert_sums(layer.bias.as_ref().unwrap().val().grad(&grads).unwrap(), want, 1e-6);
    }

    #[test]
    fn the_gradients_of_a_layer_norm_over_many_rows_are_their_sums_in_f64() {
        let mut layer =
            burn::nn::LayerNormConfig::new(D).with_epsilon(0.0).init::<Train>(&Default::default());
        (layer.gamma, layer.beta) = (row([2.0, 3.0]), Some(row([0.25, -0.5])));
        // Normalised exactly: (-1, 1).
        let x = leaf((0..N).flat_map(|_| [1.0, 3.0]).collect(), [N, D]);
        let few = layer_norm(&layer, x.clone().slice(0..2));
        let y = layer_norm(&layer, x);
        assert_eq!(y.clone().slice(N - 2..N).into_data(), few.into_data());
        let grads = (y * leaf(upstream(), [N, D])).sum().backward();
        let [a, b] = column_sums(upstream().into_iter().map(f64::from));
        assert_sums(layer.beta.as_ref().unwrap().val().grad(&grads).unwrap(), [a, b], 3e-6);
        assert_sums(layer.gamma.val().grad(&grads).unwrap(), [-a, b], 3e-6);
    }
}
