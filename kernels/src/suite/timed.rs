//! Operations as something to time: fused, as the reference in plain tensor operations, and the
//! bare matrix products that they cannot do without.
//!
//! The reference is timed without its hand-written backward pass: burn differentiates it, as it
//! would what one writes without this crate. A job keeps its inputs on the device, runs, waits for
//! the device, and only then lets go of its results: kernel fusion leaves out what nobody holds.
use super::{
    Matrix, Op, Rows, Turns,
    hidden::{empty_cache, slots},
    hidden_definitions::AttentionShape,
    probes::wait_for,
    sampling::samplings,
};
use crate::{
    KernelOps,
    attention::{self, CausalRows},
    cache_write::{self, CacheSpan},
    erf_gelu,
    linear_kl::{self, linear_kl},
    linear_log_probs::{self, HeadLayout, HeadShape, LinearHead, linear_log_probs},
    log_probs::{self, column},
    log_softmax_kl::{self, Divergence, DivergenceRows},
    rms_norm, rotary,
    sample::{self, RowSampling},
    swiglu,
    types::DivergencePlan,
    vocabulary::{ENTROPY, LOG_PROB, budget::are_kept},
};
use burn::{
    backend::Autodiff,
    tensor::{
        DType, Device, Distribution, Int, Tensor, TensorData, TensorPrimitive,
        backend::{AutodiffBackend, Backend},
        ops::{FloatTensor, FloatTensorOps, IntTensor},
    },
};
use std::any::Any;

/// Which way an operation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The body that the backend picks.
    Fused,
    /// The reference: plain tensor operations, one after the other.
    Unfused,
    /// The matrix products of the whole logits alone: as many as the fused body computes.
    AllProducts,
    /// Those that no way can leave out: logits, d hidden and d weight of the student, logits of the
    /// teacher.
    LeastProducts,
}

/// Extent of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The results alone.
    Forward,
    /// And the gradients of the sum of all results.
    Training,
}

/// Something to time; it waits for the device itself.
pub type Job<'a> = Box<dyn FnMut() + 'a>;

/// A run, and whatever must live until the device has done it.
type Run<'a> = Box<dyn FnMut() -> Box<dyn Any> + 'a>;

const RMS_EPS: f64 = 1e-6;

/// The job, or `None` where there is no such body or pass of this operation.
pub fn prepare<'a, B: KernelOps>(
    op: &Op,
    dtype: DType,
    body: Body,
    pass: Pass,
    device: &'a Device<B>,
) -> Option<Job<'a>> {
    let has_gradient = !matches!(op, Op::Decode(_) | Op::CacheWrite(_) | Op::Sample(_));
    if pass == Pass::Training && !has_gradient {
        return None;
    }
    let mut job = match body {
        Body::Fused | Body::Unfused => whole::<B>(op, dtype, body == Body::Fused, pass, device),
        Body::AllProducts | Body::LeastProducts => {
            products::<B>(op, dtype, body == Body::AllProducts, pass, device)?
        }
    };
    Some(Box::new(move || {
        let results = job();
        wait_for::<B>(device);
        drop(results);
    }))
}

/// The operation, fused or as its reference.
fn whole<'a, B: KernelOps>(
    op: &Op,
    dtype: DType,
    is_fused: bool,
    pass: Pass,
    device: &'a Device<B>,
) -> Run<'a> {
    let op = op.clone();
    if let Op::CacheWrite(shape) = op {
        return write_cache::<B>(shape, dtype, is_fused, device);
    }
    let inputs = Inputs::<B>::random(&op, dtype, device);
    match pass {
        Pass::Forward => run(move || apply(&op, is_fused, inputs.clone())),
        Pass::Training => run(move || {
            let inputs = inputs.lift();
            let leaves = inputs.leaves.clone();
            let sum = Autodiff::<B>::float_sum(apply(&op, is_fused, inputs));
            let grads = Autodiff::<B>::backward(sum);
            leaves.iter().map(|leaf| Autodiff::<B>::grad(leaf, &grads)).collect::<Vec<_>>()
        }),
    }
}

fn run<'a, R: 'static>(mut f: impl FnMut() -> R + 'a) -> Run<'a> {
    Box::new(move || Box::new(f()))
}

/// Inputs of an operation, on a device.
#[derive(Clone)]
struct Inputs<B: Backend> {
    /// Inputs with a gradient.
    leaves: Vec<FloatTensor<B>>,
    /// Inputs without one: a teacher, tables of angles, a cache.
    constants: Vec<FloatTensor<B>>,
    /// A label a row.
    labels: IntTensor<B>,
}

impl<B: KernelOps> Inputs<B> {
    fn random(op: &Op, dtype: DType, device: &Device<B>) -> Self {
        let random =
            |shape: &[usize]| random::<B>(shape, Distribution::Normal(0.0, 1.0), dtype, device);
        let head = |rows: &Rows, n_vocab, layout| {
            let head = random_head::<B>(rows, n_vocab, layout, dtype, device);
            [head.hidden, head.weight].map(|x| x.into_primitive().tensor())
        };
        let mut labels = Vec::new();
        let mut label = |rows: &Rows| {
            labels = (0..rows.n_rows).map(|i| (i * 611 % rows.n_vocab) as i64).collect();
        };
        let mut constants = Vec::new();
        let leaves = match op {
            Op::LogProbs(r) | Op::Sample(r) => {
                label(r);
                vec![random(&[r.n_rows, r.n_vocab])]
            }
            Op::LogSoftmaxKl(r, _) => {
                label(r);
                constants.push(random(&[r.n_rows, r.n_teacher_vocab]));
                vec![random(&[r.n_rows, r.n_vocab])]
            }
            Op::LinearLogProbs(r, layout) => {
                label(r);
                head(r, r.n_vocab, *layout).into()
            }
            Op::LinearKl(r, layout, _) => {
                label(r);
                constants.extend(head(r, r.n_teacher_vocab, HeadLayout::VocabRows));
                head(r, r.n_vocab, *layout).into()
            }
            Op::RmsNorm(m) => vec![random(&[m.n_rows, m.width]), random(&[m.width])],
            Op::Swiglu(m) => [0, 1].map(|_| random(&[m.n_rows, m.width])).into(),
            Op::ErfGelu(m) => vec![random(&[m.n_rows, m.width])],
            Op::Rotary(t) => {
                let shape = [t.n_positions, t.half];
                let table = || self::random::<B>(&shape, Distribution::Default, DType::F32, device);
                constants = vec![table(), table()];
                vec![random(&[t.n_rows, 2 * t.n_heads * t.half])]
            }
            Op::Attention(s) => vec![random(&s.queries()), random(&s.keys()), random(&s.keys())],
            Op::Decode(s) | Op::CacheWrite(s) => {
                constants.extend([B::KEY_POSITION_DIM, 2].map(|dim| {
                    let cache = empty_cache::<B>(s, dim, dtype, device);
                    cache.swap_dims(2, dim).into_primitive().tensor()
                }));
                vec![random(&s.queries())]
            }
        };
        let n_labels = labels.len();
        let labels = Tensor::<B, 1, Int>::from_data(TensorData::new(labels, [n_labels]), device);
        Self { leaves, constants, labels: labels.into_primitive() }
    }

    /// The same as leaves and constants of a graph.
    fn lift(&self) -> Inputs<Autodiff<B>> {
        let constants = |x: &[FloatTensor<B>]| -> Vec<FloatTensor<Autodiff<B>>> {
            x.iter().cloned().map(Autodiff::<B>::from_inner).collect()
        };
        let leaf = |x| Autodiff::<B>::float_set_require_grad(x, true);
        Inputs {
            leaves: constants(&self.leaves).into_iter().map(leaf).collect(),
            constants: constants(&self.constants),
            labels: self.labels.clone(),
        }
    }
}

fn random<B: Backend>(
    shape: &[usize],
    distribution: Distribution,
    dtype: DType,
    device: &Device<B>,
) -> FloatTensor<B> {
    let n = shape.iter().product::<usize>();
    let flat = Tensor::<B, 1>::random([n], distribution, (device, dtype));
    B::float_reshape(flat.into_primitive().tensor(), shape.to_vec().into())
}

/// Hidden states and head with logits of order 1.
fn random_head<B: KernelOps>(
    rows: &Rows,
    n_vocab: usize,
    layout: HeadLayout,
    dtype: DType,
    device: &Device<B>,
) -> LinearHead<B> {
    let shape = match layout {
        HeadLayout::VocabRows => [n_vocab, rows.width],
        HeadLayout::VocabColumns => [rows.width, n_vocab],
    };
    let random = |shape: [usize; 2]| {
        Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 1.0), (device, dtype))
    };
    let weight = random(shape) / (rows.width as f32).sqrt();
    LinearHead::new(random([rows.n_rows, rows.width]), weight, layout)
}

/// The result of an operation; of those over the vocabulary the sum of each row's results.
fn apply<B: KernelOps>(op: &Op, is_fused: bool, inputs: Inputs<B>) -> FloatTensor<B> {
    let Inputs { leaves, constants, labels } = inputs;
    let (mut leaves, mut constants) = (leaves.into_iter(), constants.into_iter());
    let mut x = || leaves.next().expect("as many as `random` made");
    let mut constant = || constants.next().expect("as many as `random` made");
    match op {
        Op::LogProbs(r) => {
            let f = if is_fused { B::log_probs } else { log_probs::reference::forward::<B> };
            one_a_row::<B>(f(x(), labels, r.temperature))
        }
        Op::LogSoftmaxKl(r, d) => {
            let f =
                if is_fused { B::log_softmax_kl } else { log_softmax_kl::reference::forward::<B> };
            two_a_row(DivergenceRows::<B>::unpack(f(x(), constant(), labels, *d, r.temperature)))
        }
        Op::LinearLogProbs(r, layout) if is_fused => {
            let head = LinearHead::<B>::new(tensor(x()), tensor(x()), *layout);
            let labels = Tensor::from_primitive(labels);
            let (log_p, entropy) = linear_log_probs(head, labels, r.temperature);
            (log_p + entropy).into_primitive().tensor()
        }
        Op::LinearLogProbs(r, layout) => {
            let head = HeadShape { layout: *layout, n_logits: r.n_vocab };
            let f = linear_log_probs::reference::forward::<B>;
            one_a_row::<B>(f(x(), x(), labels, head, r.temperature))
        }
        Op::LinearKl(r, layout, d) if is_fused => {
            let head = LinearHead::<B>::new(tensor(x()), tensor(x()), *layout);
            let (hidden, weight) = (tensor::<B>(constant()), tensor(constant()));
            let teacher = LinearHead::new(hidden, weight, HeadLayout::VocabRows);
            two_a_row(linear_kl(head, teacher, Tensor::from_primitive(labels), *d, r.temperature))
        }
        Op::LinearKl(r, layout, d) => {
            let heads = [
                HeadShape { layout: *layout, n_logits: r.n_vocab },
                HeadShape { layout: HeadLayout::VocabRows, n_logits: r.n_teacher_vocab },
            ];
            let f = linear_kl::reference::forward::<B>;
            let packed = f(x(), x(), constant(), constant(), labels, heads, *d, r.temperature);
            two_a_row(DivergenceRows::<B>::unpack(packed))
        }
        Op::RmsNorm(_) => {
            let f = if is_fused { B::rms_norm } else { rms_norm::reference::forward::<B> };
            f(x(), x(), RMS_EPS)
        }
        Op::Swiglu(_) => {
            let f = if is_fused { B::swiglu } else { swiglu::reference::forward::<B> };
            f(x(), x())
        }
        Op::ErfGelu(_) => {
            let f = if is_fused { B::erf_gelu } else { erf_gelu::reference::forward::<B> };
            f(x())
        }
        Op::Rotary(_) => {
            let f = if is_fused { B::rotary } else { rotary::reference::forward::<B> };
            f(x(), constant(), constant())
        }
        Op::Attention(s) => {
            let rows =
                CausalRows { starts: s.starts.clone(), slots: None, lengths: s.lengths.clone() };
            let f = if is_fused { B::causal_attention } else { attention::reference::forward::<B> };
            f(x(), x(), x(), &rows)
        }
        Op::Decode(s) | Op::CacheWrite(s) => {
            let rows =
                CausalRows { starts: s.starts.clone(), slots: Some(slots(s)), lengths: None };
            let f = if is_fused { B::causal_attention } else { attention::reference::forward::<B> };
            f(x(), constant(), constant(), &rows)
        }
        Op::Sample(r) => {
            // Plain draws at temperature 1.
            let [_, rows] = samplings(r);
            let plain = |row| RowSampling { temperature: 1.0, ..row };
            let rows: Vec<RowSampling> = rows.into_iter().map(plain).collect();
            let f = if is_fused { B::sample } else { sample::reference::forward::<B> };
            f(x(), &rows)
        }
    }
}

fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// log p + H
fn one_a_row<B: KernelOps>(packed: FloatTensor<B>) -> FloatTensor<B> {
    let sum = column::<B>(packed.clone(), LOG_PROB) + column::<B>(packed, ENTROPY);
    sum.into_primitive().tensor()
}

/// log p + H + D
fn two_a_row<B: KernelOps>(rows: DivergenceRows<B>) -> FloatTensor<B> {
    (rows.log_probs + rows.entropy + rows.divergence).into_primitive().tensor()
}

fn write_cache<'a, B: KernelOps>(
    shape: AttentionShape,
    dtype: DType,
    is_fused: bool,
    device: &'a Device<B>,
) -> Run<'a> {
    let new = [shape.n_rows(), shape.n_kv_heads, shape.n_queries, shape.head_dim];
    let new = random::<B>(&new, Distribution::Normal(0.0, 1.0), dtype, device);
    let mut cache = Some(empty_cache::<B>(&shape, 2, dtype, device).into_primitive().tensor());
    let spans: Vec<CacheSpan> = slots(&shape)
        .into_iter()
        .zip(&shape.starts)
        .map(|(slot, &start)| CacheSpan { slot, start, n: shape.n_queries })
        .collect();
    let f = if is_fused { B::cache_write } else { cache_write::reference::forward::<B> };
    run(move || {
        // Taken out, so that the tensor has one owner and is written in place.
        let old = cache.take().expect("put back by the run before");
        cache = Some(f(old, new.clone(), &spans, 2));
    })
}

/// The bare matrix products of the operations that have some, all of them or the least.
fn products<'a, B: KernelOps>(
    op: &Op,
    dtype: DType,
    is_all: bool,
    pass: Pass,
    device: &'a Device<B>,
) -> Option<Run<'a>> {
    let (rows, layout, d) = match op {
        Op::LinearLogProbs(rows, layout) => (rows, *layout, None),
        Op::LinearKl(rows, layout, d) => (rows, *layout, Some(*d)),
        _ => return None,
    };
    let head = |n_vocab, layout| random_head::<B>(rows, n_vocab, layout, dtype, device);
    let student = head(rows.n_vocab, layout);
    let teacher = d.map(|_| head(rows.n_teacher_vocab, HeadLayout::VocabRows));
    let is_kept = [Some(&student), teacher.as_ref()].into_iter().flatten().all(are_kept);
    let is_twice = !is_kept && d.is_some_and(|d| DivergencePlan::new(d).needs_second_pass());
    // Forwards (mixtures twice) and once more backwards, but for logits that are kept.
    let n_passes = match (is_all, pass) {
        (true, Pass::Training) if is_twice => 3,
        (true, Pass::Forward) if is_twice => 2,
        (true, Pass::Training) if !is_kept => 2,
        _ => 1,
    };
    Some(run(move || {
        let mut results = Vec::new();
        for _ in 0..n_passes {
            results.extend(teacher.iter().map(logits));
            results.push(logits(&student));
        }
        if pass == Pass::Training {
            let gradient = results.last().expect("at least one pass").clone();
            results.extend(gradients(&student, gradient));
        }
        results
    }))
}

/// `[N, V]` in the type of the head.
fn logits<B: Backend>(head: &LinearHead<B>) -> Tensor<B, 2> {
    let weight = match head.layout {
        HeadLayout::VocabRows => head.weight.clone().transpose(),
        HeadLayout::VocabColumns => head.weight.clone(),
    };
    head.hidden.clone().matmul(weight)
}

/// (d hidden, d weight) given d logits.
fn gradients<B: Backend>(head: &LinearHead<B>, grad: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    let (hidden, weight) = (head.hidden.clone(), head.weight.clone());
    match head.layout {
        HeadLayout::VocabRows => [grad.clone().matmul(weight), grad.transpose().matmul(hidden)],
        HeadLayout::VocabColumns => {
            [grad.clone().matmul(weight.transpose()), hidden.transpose().matmul(grad)]
        }
    }
}

/// Shapes to time on one device: so many rows of a vocabulary and a width, and what a layer of that
/// width does with as many tokens.
pub fn shapes(n_rows: usize, n_vocab: usize, width: usize) -> Vec<Op> {
    let rows = Rows { width, ..Rows::new(n_rows, n_vocab) };
    let (matrix, wide) = (Matrix { n_rows, width }, Matrix { n_rows, width: 4 * width });
    let head_dim = 64;
    let n_heads = (width / head_dim).max(2).next_multiple_of(2);
    let heads = AttentionShape {
        starts: vec![0; (n_rows / 512).max(1)],
        lengths: None,
        n_heads,
        n_kv_heads: 2,
        n_queries: n_rows.min(512),
        n_keys: n_rows.min(512),
        head_dim,
    };
    let decode =
        AttentionShape { starts: vec![511; 16], n_queries: 1, n_keys: 512, ..heads.clone() };
    vec![
        Op::LogProbs(rows),
        Op::LogSoftmaxKl(rows, Divergence::ForwardKl),
        Op::LogSoftmaxKl(rows, Divergence::SkewForward { alpha: 0.1 }),
        Op::LogSoftmaxKl(rows, Divergence::Taid { t: 0.5 }),
        Op::LinearLogProbs(rows, HeadLayout::VocabRows),
        Op::LinearKl(rows, HeadLayout::VocabRows, Divergence::ForwardKl),
        Op::RmsNorm(matrix),
        Op::Rotary(Turns { n_rows, n_positions: n_rows, n_heads, half: head_dim / 2 }),
        Op::Swiglu(wide),
        Op::ErfGelu(wide),
        Op::Attention(heads.clone()),
        // Four times as long: what grows with the tokens, and what with their square.
        Op::Attention(AttentionShape {
            n_queries: 4 * heads.n_queries,
            n_keys: 4 * heads.n_keys,
            ..heads
        }),
        Op::Decode(decode.clone()),
        Op::CacheWrite(decode),
        Op::Sample(Rows { n_rows: n_rows.min(64), ..rows }),
    ]
}
