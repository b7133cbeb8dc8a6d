//! Results read off the hidden states: token log-probs, entropy, divergences between two models,
//! values.
//!
//! With z = logits / temperature: log p(y) = z_y - lse(z), H = lse(z) - sum_v p_v z_v. Everything
//! in f32. A NaN anywhere in a row of logits is a NaN in that row's results. The head is computed
//! on the rows it is given only, so gather the positions that count first. Logits that are only
//! made to be reduced are never whole ([`Decoder::head`] instead of [`Decoder::logits`]):
//! `dgpo_kernels::linear_log_probs` says how much of them exists at once.
use crate::{
    Backend, config::DecoderConfig, decoder::Decoder, init::NewParameters, linear::linear,
};
use burn::{
    module::{Module, ModuleMapper, Param},
    nn::Linear,
    tensor::{DType, Int, Tensor},
};
use dgpo_kernels::{
    linear_kl::linear_kl, linear_log_probs::linear_log_probs, log_probs::log_probs,
    log_softmax_kl::log_softmax_kl,
};

pub use dgpo_kernels::{
    linear_log_probs::{LinearHead, most_logits},
    log_softmax_kl::{Divergence, DivergenceRows},
    sample,
};

/// Distance between the seeds of a critic's trunk and of a head drawn for a given trunk, so that
/// the two never share numbers.
const HEAD_SEED_OFFSET: u64 = 0x5C0E_4EAD;

/// One row of logits a token.
#[derive(Clone, Debug)]
pub enum Logits<B: Backend> {
    /// Hidden states and the head that makes logits of them, a tile of the vocabulary at a time.
    Head(LinearHead<B>),
    /// `[N, V]` f32, f16 or bf16: logits that exist.
    Whole(Tensor<B, 2>),
}

impl<B: Backend> From<LinearHead<B>> for Logits<B> {
    fn from(head: LinearHead<B>) -> Self {
        Self::Head(head)
    }
}

impl<B: Backend> From<Tensor<B, 2>> for Logits<B> {
    fn from(logits: Tensor<B, 2>) -> Self {
        Self::Whole(logits)
    }
}

impl<B: Backend> Logits<B> {
    /// `[N, V]`, made if they do not exist.
    fn whole(self) -> Tensor<B, 2> {
        match self {
            Self::Head(head) => head.logits(),
            Self::Whole(logits) => logits,
        }
    }
}

/// `[N]` each, f32.
#[derive(Clone, Debug)]
pub struct TokenLogProbs<B: Backend> {
    /// log pi(label), nats, `[N]`.
    pub log_probs: Tensor<B, 1>,
    /// Entropy of the whole distribution, nats, `[N]`.
    pub entropy: Tensor<B, 1>,
}

/// log p(label) and entropy of each row at a temperature.
/// # Shapes
/// N rows of logits, labels `[N]` -> `[N]` each
pub fn token_log_probs<B: Backend>(
    logits: impl Into<Logits<B>>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> TokenLogProbs<B> {
    let (log_probs, entropy) = match logits.into() {
        Logits::Head(head) => linear_log_probs(head, labels, temperature),
        Logits::Whole(logits) => log_probs(logits, labels, temperature),
    };
    TokenLogProbs { log_probs, entropy }
}

/// log p(label) and entropy of the student and a divergence from the teacher, of each row at one
/// temperature. The teacher is a constant.
///
/// The divergence runs over the shared prefix of both vocabularies. Where one model's logits exist
/// and the other's do not, the others are made whole.
/// # Shapes
/// N rows of logits of both, labels `[N]` -> `[N]` each
pub fn token_divergence<B: Backend>(
    student: impl Into<Logits<B>>,
    teacher: impl Into<Logits<B>>,
    labels: Tensor<B, 1, Int>,
    divergence: Divergence,
    temperature: f64,
) -> DivergenceRows<B> {
    match (student.into(), teacher.into()) {
        (Logits::Head(student), Logits::Head(teacher)) => {
            linear_kl(student, teacher, labels, divergence, temperature)
        }
        (student, teacher) => {
            log_softmax_kl(student.whole(), teacher.whole(), labels, divergence, temperature)
        }
    }
}

/// The divergence of [`token_divergence`] alone.
pub fn row_divergence<B: Backend>(
    student: impl Into<Logits<B>>,
    teacher: impl Into<Logits<B>>,
    divergence: Divergence,
    temperature: f64,
) -> Tensor<B, 1> {
    let student = student.into();
    let labels = match &student {
        Logits::Head(head) => Tensor::zeros([head.hidden.dims()[0]], &head.hidden.device()),
        Logits::Whole(logits) => Tensor::zeros([logits.dims()[0]], &logits.device()),
    };
    token_divergence(student, teacher, labels, divergence, temperature).divergence
}

/// A decoder trunk with a scalar head (Linear(D, 1) with bias, zero bias at the start): the critic
/// of `method §4.7`.
#[derive(Module, Debug)]
pub struct Critic<B: Backend> {
    /// The decoder without its vocabulary head.
    pub trunk: Decoder<B>,
    /// The value head: D -> 1.
    pub score: Linear<B>,
}

impl<B: Backend> Critic<B> {
    /// Trunk copied from `model` (own parameters: training one leaves the other as it is), head
    /// drawn from the seed.
    pub fn from_decoder(model: &Decoder<B>, seed: u64) -> Self {
        let config = model.config();
        let weight = model.model.norm.weight.val();
        let score = new_score(&config, seed.wrapping_add(HEAD_SEED_OFFSET), &weight.device());
        Self { trunk: model.clone().map(&mut Fresh), score: score.map(&mut Cast(weight.dtype())) }
    }

    /// Everything drawn from the seed.
    pub fn init(config: &DecoderConfig, seed: u64, device: &B::Device) -> Self {
        Self {
            trunk: Decoder::init(config, seed, device),
            score: new_score(config, seed.wrapping_add(HEAD_SEED_OFFSET), device),
        }
    }

    /// hidden `[N, D]` of the trunk -> values `[N]` f32.
    pub fn values(&self, hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        let n_rows = hidden.dims()[0];
        linear(&self.score, hidden).reshape([n_rows]).cast(DType::F32)
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
        let hidden = |seed: u64| {
            Decoder::<Flex>::init(&config(false), seed, &Default::default())
                .hidden(ids(), None, None)
                .into_data()
        };
        assert_eq!(hidden(3), hidden(3));
        assert_ne!(hidden(3), hidden(4));
    }

    #[test]
    fn the_number_of_parameters_is_that_of_the_shape() {
        // Embedding 11 8; a layer: q 8 8 + 8, k and v 8 4 + 4, o 8 8, three of 8 12, two norms;
        // last norm; head.
        let trunk = 11 * 8 + 2 * (72 + 2 * 36 + 64 + 3 * 96 + 16) + 8;
        for (is_tied, want) in [(true, trunk), (false, trunk + 88)] {
            assert_eq!(
                Decoder::<Flex>::init(&config(is_tied), 0, &Default::default()).num_params(),
                want
            );
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
        let values = |critic: &Critic<Flex>| {
            critic.values(critic.trunk.hidden(ids(), None, None).reshape([6, 8])).into_data()
        };
        assert_eq!(values(&back.valid()), values(&inner));
    }

    /// Hidden states and labels of six tokens.
    fn rows(model: &Decoder<Flex>) -> (Tensor<Flex, 2>, Tensor<Flex, 1, Int>) {
        (
            model.hidden(ids(), None, None).reshape([6, 8]),
            Tensor::from_data([0, 6, 3, 4, 5, 6], &Default::default()),
        )
    }

    fn assert_close(got: Tensor<Flex, 1>, want: Tensor<Flex, 1>) {
        got.into_data()
            .assert_approx_eq::<f32>(&want.into_data(), burn::tensor::Tolerance::absolute(1e-6));
    }

    #[test]
    fn a_head_reads_as_its_logits_do() {
        for is_tied in [true, false] {
            for n_logits in [7, 11] {
                let student = Decoder::<Flex>::init(&config(is_tied), 1, &Default::default())
                    .with_logits_cut_to(n_logits);
                let teacher = Decoder::<Flex>::init(&config(!is_tied), 2, &Default::default());
                let (hidden, labels) = rows(&student);
                let (logits, teacher_logits) =
                    (student.logits(hidden.clone()), teacher.logits(hidden.clone()));
                assert_eq!(logits.dims(), [6, n_logits]);
                let head = token_log_probs(student.head(hidden.clone()), labels.clone(), 0.5);
                let whole = token_log_probs(logits.clone(), labels.clone(), 0.5);
                assert_close(head.log_probs, whole.log_probs);
                assert_close(head.entropy, whole.entropy);
                let whole = token_divergence(
                    logits,
                    teacher_logits.clone(),
                    labels.clone(),
                    Divergence::ReverseKl,
                    0.5,
                )
                .divergence;
                for teacher in
                    [Logits::from(teacher.head(hidden.clone())), Logits::from(teacher_logits)]
                {
                    let rows = token_divergence(
                        student.head(hidden.clone()),
                        teacher,
                        labels.clone(),
                        Divergence::ReverseKl,
                        0.5,
                    );
                    assert_close(rows.divergence, whole.clone());
                }
            }
        }
    }

    #[test]
    fn no_rows_have_no_log_probs() {
        let model = Decoder::<Flex>::init(&config(true), 1, &Default::default());
        let (hidden, labels) = rows(&model);
        let none = token_log_probs(model.head(hidden.slice(0..0)), labels.slice(0..0), 0.5);
        assert_eq!((none.log_probs.dims(), none.entropy.dims()), ([0], [0]));
    }
}
