//! What is read off the hidden states: token log-probs, entropy, values.
//!
//! With z = logits / temperature: log p(y) = z_y - lse(z), H = lse(z) - sum_v p_v z_v. Everything in f32. A NaN anywhere in a row of logits is a NaN in
//! that row's results. The head is computed on the rows it is given only, so gather the positions that count first; [N, V] exists `chunk_rows` rows at
//! a time.
use crate::{Backend, config::DecoderConfig, decoder::Decoder, init::NewParameters};
use burn::{
    module::{Module, ModuleMapper, Param},
    nn::Linear,
    tensor::{DType, Int, Tensor},
};
use dgpo_kernels::log_probs::log_probs;

pub use dgpo_kernels::{
    log_softmax_kl::{Divergence, DivergenceRows, log_softmax_kl, row_divergence},
    sample,
};

/// Distance between the seeds of a critic's trunk and of a head drawn for a given trunk, so that the two never share numbers.
const HEAD_SEED_OFFSET: u64 = 0x5C0E_4EAD;

/// [N] each, f32.
#[derive(Clone, Debug)]
pub struct TokenLogProbs<B: Backend> {
    pub log_probs: Tensor<B, 1>,
    pub entropy: Tensor<B, 1>,
}

/// log p(label) and entropy at a temperature, from logits. logits [N, V] f32, labels [N].
pub fn log_probs_of_logits<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>, temperature: f64) -> TokenLogProbs<B> {
    let (log_probs, entropy) = log_probs(logits, labels, temperature);
    TokenLogProbs { log_probs, entropy }
}

/// The same from hidden states [N, D], `chunk_rows` rows of logits at a time: [N, V] is never whole.
pub fn token_log_probs<B: Backend>(
    model: &Decoder<B>,
    hidden: Tensor<B, 2>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
    chunk_rows: usize,
) -> TokenLogProbs<B> {
    let n_rows = labels.dims()[0];
    let (log_probs, entropy): (Vec<_>, Vec<_>) = (0..n_rows)
        .step_by(chunk_rows.max(1))
        .map(|start| {
            let rows = start..(start + chunk_rows.max(1)).min(n_rows);
            let chunk = log_probs_of_logits(model.logits(hidden.clone().slice(rows.clone())), labels.clone().slice(rows), temperature);
            (chunk.log_probs, chunk.entropy)
        })
        .unzip();
    match log_probs.is_empty() {
        true => {
            let none = Tensor::zeros([0], (&hidden.device(), DType::F32));
            TokenLogProbs { log_probs: none.clone(), entropy: none }
        }
        false => TokenLogProbs { log_probs: Tensor::cat(log_probs, 0), entropy: Tensor::cat(entropy, 0) },
    }
}

/// A decoder trunk with a scalar head (Linear(D, 1) with bias, zero bias at the start).
#[derive(Module, Debug)]
pub struct Critic<B: Backend> {
    pub trunk: Decoder<B>,
    pub score: Linear<B>,
}

impl<B: Backend> Critic<B> {
    /// Trunk copied from `model` (own parameters: training one leaves the other as it is), head drawn from the seed.
    pub fn from_decoder(model: &Decoder<B>, seed: u64) -> Self {
        let config = model.config();
        let weight = model.model.norm.weight.val();
        let score = new_score(&config, seed.wrapping_add(HEAD_SEED_OFFSET), &weight.device());
        Self { trunk: model.clone().map(&mut Fresh), score: score.map(&mut Cast(weight.dtype())) }
    }

    /// Everything drawn from the seed.
    pub fn init(config: &DecoderConfig, seed: u64, device: &B::Device) -> Self {
        Self { trunk: Decoder::init(config, seed, device), score: new_score(config, seed.wrapping_add(HEAD_SEED_OFFSET), device) }
    }

    /// hidden [N, D] of the trunk -> values [N] f32.
    pub fn values(&self, hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        let n_rows = hidden.dims()[0];
        self.score.forward(hidden).reshape([n_rows]).cast(DType::F32)
    }
}

fn new_score<B: Backend>(config: &DecoderConfig, seed: u64, device: &B::Device) -> Linear<B> {
    NewParameters::new(seed, config.initializer_range, device).linear(config.hidden_size, 1, true)
}

/// The same values under new identities, as leaves of their own.
struct Fresh;

impl<B: Backend> ModuleMapper<B> for Fresh {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        Param::from_tensor(param.val().detach())
    }
}

struct Cast(DType);

impl<B: Backend> ModuleMapper<B> for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        Param::from_tensor(param.val().detach().cast(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Family, RopeScaling};
    use burn::{
        backend::{Autodiff, Flex},
        module::AutodiffModule,
    };

    type Train = Autodiff<Flex>;

    fn config(is_tied: bool) -> DecoderConfig {
        DecoderConfig {
            family: Family::Qwen2,
            vocab_size: 11,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 100.0,
            rope_scaling: RopeScaling::None,
            is_tied,
            has_qkv_bias: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: vec![],
        }
    }

    fn ids<B: Backend>() -> Tensor<B, 2, Int> {
        Tensor::from_data([[1, 2, 3], [4, 5, 6]], &Default::default())
    }

    #[test]
    fn a_seed_gives_the_same_model_and_another_seed_another() {
        let hidden = |seed: u64| Decoder::<Flex>::init(&config(false), seed, &Default::default()).hidden(ids(), None, None).into_data();
        assert_eq!(hidden(3), hidden(3));
        assert_ne!(hidden(3), hidden(4));
    }

    #[test]
    fn the_number_of_parameters_is_that_of_the_shape() {
        // Embedding 11 8; a layer: q 8 8 + 8, k and v 8 4 + 4, o 8 8, three of 8 12, two norms; last norm; head.
        let trunk = 11 * 8 + 2 * (72 + 2 * 36 + 64 + 3 * 96 + 16) + 8;
        for (is_tied, want) in [(true, trunk), (false, trunk + 88)] {
            assert_eq!(Decoder::<Flex>::init(&config(is_tied), 0, &Default::default()).num_params(), want);
            assert_eq!(config(is_tied).n_parameters(), want);
        }
    }

    #[test]
    fn a_critic_starts_as_a_copy_with_parameters_of_its_own() {
        let model = Decoder::<Train>::init(&config(true), 1, &Default::default());
        let critic = Critic::from_decoder(&model, 7);
        let hidden = critic.trunk.hidden(ids(), None, None);
        assert_eq!(hidden.to_data(), model.hidden(ids(), None, None).to_data());
        let grads = critic.values(hidden.reshape([6, 8])).sum().backward();
        assert!(critic.trunk.model.norm.weight.val().grad(&grads).is_some());
        assert!(model.model.norm.weight.val().grad(&grads).is_none());
        assert_ne!(critic.trunk.model.norm.weight.id, model.model.norm.weight.id);
        let bias: Vec<f32> = critic.score.bias.as_ref().unwrap().val().to_data().to_vec().unwrap();
        assert_eq!(bias, [0.0]);
    }

    #[test]
    fn inference_copies_and_back_keep_configuration_and_values() {
        let critic = Critic::<Train>::init(&config(true), 1, &Default::default());
        let inner = critic.valid();
        assert_eq!(inner.trunk.config(), critic.trunk.config());
        let back = Critic::<Train>::from_inner(inner.clone());
        let values = |critic: &Critic<Flex>| critic.values(critic.trunk.hidden(ids(), None, None).reshape([6, 8])).into_data();
        assert_eq!(values(&back.valid()), values(&inner));
    }

    #[test]
    fn chunks_of_the_head_do_not_change_log_probs() {
        let model = Decoder::<Flex>::init(&config(true), 1, &Default::default());
        let hidden = model.hidden(ids(), None, None).reshape([6, 8]);
        let labels = Tensor::<Flex, 1, Int>::from_data([0, 10, 3, 4, 5, 6], &Default::default());
        let whole = log_probs_of_logits(model.logits(hidden.clone()), labels.clone(), 0.5);
        for chunk_rows in [1, 4, 100] {
            let chunked = token_log_probs(&model, hidden.clone(), labels.clone(), 0.5, chunk_rows);
            chunked.log_probs.into_data().assert_approx_eq::<f32>(&whole.log_probs.to_data(), burn::tensor::Tolerance::absolute(1e-6));
            chunked.entropy.into_data().assert_approx_eq::<f32>(&whole.entropy.to_data(), burn::tensor::Tolerance::absolute(1e-6));
        }
        let none = token_log_probs(&model, hidden.slice(0..0), labels.slice(0..0), 0.5, 4);
        assert_eq!(none.log_probs.dims(), [0]);
    }
}
