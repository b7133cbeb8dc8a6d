//! The gradients of the cut backward pass against those of one pass through whole logits.
use super::*;
use crate::{
    testing::{Cpu, CpuTrain},
    trainer::optimizer::with_gradients,
};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::TensorData,
};
use dgpo_models::{
    config::{DecoderConfig, Family, RopeScaling},
    heads::{Divergence, Logits, token_divergence, token_log_probs},
};

const N_COLS: usize = 121;

/// Logits of 480 tokens over 9,000 entries are more than the 2^22 elements of a tile of the CPU;
/// those of one row of 120 tokens are less.
const VOCAB_SIZE: usize = 9000;

fn network(is_tied: bool, vocab_size: usize, seed: u64) -> Decoder<Cpu> {
    let config = DecoderConfig {
        family: Family::Qwen2,
        vocab_size,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        is_tied,
        has_qkv_bias: true,
        initializer_range: 0.3,
        bos_token_id: None,
        eos_token_ids: vec![],
    };
    Decoder::init(&config, seed, &Default::default())
}

/// Every token but a row's first; ids `[R, T]` spread over the vocabulary that both models have.
fn tokens(n_rows: usize) -> (Tensor<CpuTrain, 2, Int>, TokenIndex) {
    let ids: Vec<i64> = (0..n_rows * N_COLS).map(|i| (i * 7919 % 8000) as i64).collect();
    let trained: Vec<usize> = (0..ids.len()).filter(|i| i % N_COLS > 0).collect();
    let index = TokenIndex {
        hidden: trained.iter().map(|i| i - 1).collect(),
        labels: trained.iter().map(|&i| ids[i] as u32).collect(),
        at: trained,
    };
    (Tensor::from_data(TensorData::new(ids, [n_rows, N_COLS]), &Default::default()), index)
}

/// Every parameter's gradient.
struct Gradients<'a>(&'a GradientsParams, Vec<Vec<f32>>);
impl ModuleVisitor<Cpu> for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Cpu, D>>) {
        let grad = self.0.get::<Cpu, D>(param.id).expect("every parameter takes part");
        self.1.push(grad.into_data().to_vec().expect("f32"));
    }
}

fn gradients(network: &Decoder<Cpu>, grads: &GradientsParams) -> Vec<Vec<f32>> {
    let mut gradients = Gradients(grads, Vec::new());
    network.visit(&mut gradients);
    gradients.1
}

/// A student's loss with all terms the trainer has, or with those that need no teacher.
fn loss(
    student: Logits<CpuTrain>,
    teacher: Option<Logits<CpuTrain>>,
    tokens: &TokenIndex,
) -> Tensor<CpuTrain, 1> {
    let labels = tokens.labels_tensor(&Default::default());
    let rows = match teacher {
        Some(teacher) => {
            let rows = token_divergence(student, teacher, labels, Divergence::ForwardKl, 0.7);
            rows.divergence - rows.log_probs * 0.5 + rows.entropy * 0.1
        }
        None => {
            let rows = token_log_probs(student, labels, 0.7);
            rows.entropy * 0.1 - rows.log_probs
        }
    };
    rows.sum() / tokens.len() as f64
}

fn assert_equals_whole_logits(
    student: &Decoder<Cpu>,
    teacher: Option<&Decoder<Cpu>>,
    n_rows: usize,
) {
    let (ids, tokens) = tokens(n_rows);
    let model: Decoder<CpuTrain> = with_gradients(student.clone());
    let teacher_hidden = teacher
        .map(|teacher| (teacher, tokens.gather(teacher.hidden(ids.clone().inner(), None, None))));

    let mut sums = GradientsAccumulator::new();
    accumulate_decoder(&model, ids.clone(), &tokens, Activations::Kept, &mut sums, |head| {
        let teacher = teacher_hidden
            .clone()
            .map(|(teacher, hidden)| LinearHead::from_inner(teacher.head(hidden)).into());
        loss(head.into(), teacher, &tokens)
    });
    let got = gradients(student, &sums.grads());

    let logits = model.logits(tokens.gather(model.hidden(ids, None, None)));
    let teacher_logits =
        teacher_hidden.map(|(teacher, hidden)| Tensor::from_inner(teacher.logits(hidden)).into());
    let whole = loss(logits.into(), teacher_logits, &tokens).backward();
    let want = gradients(student, &GradientsParams::from_grads(whole, &model));

    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let largest = want.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        assert!(largest > 0.0, "parameter {i} has a gradient");
        for (got, want) in got.iter().zip(want) {
            // f32 sums over 480 tokens or 9,000 entries in another order.
            assert!(
                (got - want).abs() <= 2e-5 * largest,
                "parameter {i}: {got} instead of {want}, largest {largest}"
            );
        }
    }
}

#[test]
fn the_gradients_are_those_of_whole_logits_below_and_above_a_tile() {
    for n_rows in [1, 4] {
        for is_tied in [true, false] {
            assert_equals_whole_logits(&network(is_tied, VOCAB_SIZE, 1), None, n_rows);
            assert_equals_whole_logits(
                &network(is_tied, VOCAB_SIZE, 1),
                Some(&network(!is_tied, VOCAB_SIZE, 2)),
                n_rows,
            );
        }
    }
}

#[test]
fn the_gradients_are_those_of_whole_logits_of_a_cut_vocabulary() {
    for n_rows in [1, 4] {
        for is_tied in [true, false] {
            let student = network(is_tied, VOCAB_SIZE, 1).with_logits_cut_to(8800);
            assert_equals_whole_logits(&student, None, n_rows);
            assert_equals_whole_logits(&student, Some(&network(!is_tied, 8800, 2)), n_rows);
        }
    }
}
