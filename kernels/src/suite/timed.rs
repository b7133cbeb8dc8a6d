//! Operations as something to time: fused, in plain tensor operations, and the bare matrix products
//! that they cannot do without.
//!
//! A job keeps its inputs on the device, runs, waits for the device, and only then lets go of its
//! results: kernel fusion leaves out what nobody holds.
use super::{
    Matrix, Op, Rows, Turns,
    hidden::{empty_cache, slots},
    hidden_definitions::AttentionShape,
    probes::wait_for,
};
use crate::{
    Divergence, KernelOps,
    attention::{CausalRows, causal_attention},
    cache_write::{CacheSpan, cache_write},
    erf_gelu::erf_gelu,
    linear_kl::linear_kl,
    linear_log_probs::{HeadLayout, LinearHead, linear_log_probs},
    log_probs::log_probs,
    log_softmax_kl::log_softmax_kl,
    rms_norm::rms_norm,
    rotary::rotary,
    sample::{RowSampling, sample},
    suite::{sampling::samplings, unfused},
    swiglu::swiglu,
    vocabulary::budget::are_kept,
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Device, Distribution, Int, Tensor},
};

/// Which way an operation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Fused,
    /// Plain tensor operations, one after the other.
    Unfused,
    /// The matrix products of the whole logits alone: as many as the fused body computes.
    AllProducts,
    /// Those that no way can leave out: logits, d hidden and d weight of the student, logits of the
    /// teacher.
    LeastProducts,
}

/// How far it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    /// And the gradients of the sum of all results.
    Training,
}

/// Something to time; it waits for the device itself.
pub type Job<'a> = Box<dyn FnMut() + 'a>;

const RMS_EPS: f64 = 1e-6;

/// The job, or `None` where there is no such body or pass of this operation.
pub fn prepare<'a, B: KernelOps>(
    op: &Op,
    dtype: DType,
    body: Body,
    pass: Pass,
    device: &'a Device<B>,
) -> Option<Job<'a>> {
    let has_products = matches!(op, Op::LinearLogProbs(..) | Op::LinearKl(..));
    let has_gradient = !matches!(op, Op::Decode(_) | Op::CacheWrite(_) | Op::Sample(_));
    if matches!(body, Body::AllProducts | Body::LeastProducts) && !has_products
        || pass == Pass::Training && !has_gradient
    {
        return None;
    }
    let setup = Setup::<B> { dtype, body, device };
    let job = match pass {
        Pass::Forward => setup.forward(op),
        Pass::Training => setup.training(op),
    };
    job.map(|mut job| {
        Box::new(move || {
            let results = job();
            wait_for::<B>(device);
            drop(results);
        }) as Job<'a>
    })
}

/// A run, and whatever must live until the device has done it.
type Run<'a> = Box<dyn FnMut() -> Box<dyn std::any::Any> + 'a>;

fn run<'a, R: 'static>(mut f: impl FnMut() -> R + 'a) -> Option<Run<'a>> {
    Some(Box::new(move || Box::new(f())))
}

struct Setup<'a, B: KernelOps> {
    dtype: DType,
    body: Body,
    device: &'a Device<B>,
}

impl<'a, B: KernelOps> Setup<'a, B> {
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), (self.device, self.dtype))
    }

    fn is_fused(&self) -> bool {
        self.body == Body::Fused
    }

    fn labels(&self, rows: &Rows) -> Tensor<B, 1, Int> {
        let ids: Vec<i64> = (0..rows.n_rows).map(|i| (i * 611 % rows.n_vocab) as i64).collect();
        Tensor::from_data(burn::tensor::TensorData::new(ids, [rows.n_rows]), self.device)
    }

    /// Hidden states and head with logits of order 1.
    fn head(&self, rows: &Rows, n_vocab: usize, layout: HeadLayout) -> LinearHead<B> {
        let shape = if layout == HeadLayout::VocabRows {
            [n_vocab, rows.width]
        } else {
            [rows.width, n_vocab]
        };
        let weight = self.random(shape) / (rows.width as f32).sqrt();
        LinearHead::new(self.random([rows.n_rows, rows.width]), weight, layout)
    }

    fn tables(&self, turns: &Turns) -> [Tensor<B, 2>; 2] {
        [0, 1].map(|_| {
            Tensor::random(
                [turns.n_positions, turns.half],
                Distribution::Default,
                (self.device, DType::F32),
            )
        })
    }

    fn forward(&self, op: &Op) -> Option<Run<'a>> {
        let is_fused = self.is_fused();
        match op {
            Op::LogProbs(rows) => {
                let (z, labels, t) =
                    (self.random([rows.n_rows, rows.n_vocab]), self.labels(rows), rows.temperature);
                run(move || logit_op(is_fused, z.clone(), None, labels.clone(), t))
            }
            Op::LogSoftmaxKl(rows, d) => {
                let (d, labels, t) = (*d, self.labels(rows), rows.temperature);
                let (s, teacher) = (
                    self.random([rows.n_rows, rows.n_vocab]),
                    self.random([rows.n_rows, rows.n_teacher_vocab]),
                );
                run(move || {
                    logit_op(is_fused, s.clone(), Some((teacher.clone(), d)), labels.clone(), t)
                })
            }
            Op::LinearLogProbs(rows, layout) => self.linear_forward(rows, *layout, None),
            Op::LinearKl(rows, layout, d) => self.linear_forward(rows, *layout, Some(*d)),
            Op::RmsNorm(m) => {
                let (x, w) = (self.random([m.n_rows, m.width]), self.random([m.width]));
                run(move || norm(is_fused, x.clone(), w.clone()))
            }
            Op::Swiglu(m) => {
                let [gate, up] = [0, 1].map(|_| self.random([m.n_rows, m.width]));
                run(move || gated(is_fused, gate.clone(), up.clone()))
            }
            Op::ErfGelu(m) => {
                let x = self.random([m.n_rows, m.width]);
                run(move || gelu(is_fused, x.clone()))
            }
            Op::Rotary(turns) => {
                let (turns, x, [cos, sin]) = (
                    *turns,
                    self.random([turns.n_rows, 2 * turns.n_heads * turns.half]),
                    self.tables(turns),
                );
                run(move || turned(is_fused, x.clone(), cos.clone(), sin.clone(), turns))
            }
            Op::Attention(shape) => {
                let (q, [k, v], shape) = (
                    self.random(shape.queries()),
                    [0, 1].map(|_| self.random(shape.keys())),
                    shape.clone(),
                );
                run(move || attention(is_fused, q.clone(), k.clone(), v.clone(), &shape))
            }
            Op::Decode(shape) => self.decode(shape),
            Op::CacheWrite(shape) => self.cache_write(shape),
            Op::Sample(rows) => self.sample(rows),
        }
    }

    fn training(&self, op: &Op) -> Option<Run<'a>> {
        let is_fused = self.is_fused();
        match op {
            Op::LogProbs(rows) => {
                let (z, labels, t) =
                    (self.random([rows.n_rows, rows.n_vocab]), self.labels(rows), rows.temperature);
                run(move || {
                    let z = leaf(&z);
                    backward(logit_op(is_fused, z.clone(), None, lift(&labels), t), [z])
                })
            }
            Op::LogSoftmaxKl(rows, d) => {
                let (d, labels, t) = (*d, self.labels(rows), rows.temperature);
                let (s, teacher) = (
                    self.random([rows.n_rows, rows.n_vocab]),
                    self.random([rows.n_rows, rows.n_teacher_vocab]),
                );
                run(move || {
                    let z = leaf(&s);
                    let teacher = Tensor::from_inner(teacher.clone());
                    backward(
                        logit_op(is_fused, z.clone(), Some((teacher, d)), lift(&labels), t),
                        [z],
                    )
                })
            }
            Op::LinearLogProbs(rows, layout) => self.linear_training(rows, *layout, None),
            Op::LinearKl(rows, layout, d) => self.linear_training(rows, *layout, Some(*d)),
            Op::RmsNorm(m) => {
                let (x, w): (Tensor<B, 2>, Tensor<B, 1>) =
                    (self.random([m.n_rows, m.width]), self.random([m.width]));
                run(move || {
                    let (x, w) = (leaf(&x), leaf(&w));
                    let grads = norm(is_fused, x.clone(), w.clone()).sum().backward();
                    (x.grad(&grads), w.grad(&grads))
                })
            }
            Op::Swiglu(m) => {
                let [gate, up] = [0, 1].map(|_| self.random([m.n_rows, m.width]));
                run(move || {
                    let (gate, up) = (leaf(&gate), leaf(&up));
                    backward(gated(is_fused, gate.clone(), up.clone()), [gate, up])
                })
            }
            Op::ErfGelu(m) => {
                let x = self.random([m.n_rows, m.width]);
                run(move || {
                    let x = leaf(&x);
                    backward(gelu(is_fused, x.clone()), [x])
                })
            }
            Op::Rotary(turns) => {
                let (turns, x, [cos, sin]) = (
                    *turns,
                    self.random([turns.n_rows, 2 * turns.n_heads * turns.half]),
                    self.tables(turns),
                );
                run(move || {
                    let x = leaf(&x);
                    let [cos, sin] = [&cos, &sin].map(|table| Tensor::from_inner(table.clone()));
                    backward(turned(is_fused, x.clone(), cos, sin, turns), [x])
                })
            }
            Op::Attention(shape) => {
                let (q, [k, v], shape) = (
                    self.random(shape.queries()),
                    [0, 1].map(|_| self.random(shape.keys())),
                    shape.clone(),
                );
                run(move || {
                    let [q, k, v] = [&q, &k, &v].map(leaf);
                    backward(
                        attention(is_fused, q.clone(), k.clone(), v.clone(), &shape),
                        [q, k, v],
                    )
                })
            }
            Op::Decode(_) | Op::CacheWrite(_) | Op::Sample(_) => None,
        }
    }

    fn linear_forward(
        &self,
        rows: &Rows,
        layout: HeadLayout,
        d: Option<Divergence>,
    ) -> Option<Run<'a>> {
        let (rows, body, student, labels) =
            (*rows, self.body, self.head(rows, rows.n_vocab, layout), self.labels(rows));
        let teacher = d.map(|d| (self.head(&rows, rows.n_teacher_vocab, HeadLayout::VocabRows), d));
        let is_kept =
            are_kept(&student) && teacher.as_ref().is_none_or(|(teacher, _)| are_kept(teacher));
        let is_twice =
            !is_kept && d.is_some_and(|d| crate::types::Plan::new(d, 1.0).needs_second_pass());
        match body {
            Body::Fused | Body::Unfused => run(move || {
                linear_op(body, student.clone(), teacher.clone(), labels.clone(), rows.temperature)
            }),
            Body::AllProducts | Body::LeastProducts => {
                let n_passes = if is_twice && body == Body::AllProducts { 2 } else { 1 };
                run(move || {
                    let all = || {
                        [Some(&student), teacher.as_ref().map(|t| &t.0)]
                            .into_iter()
                            .flatten()
                            .map(unfused::logits)
                            .collect::<Vec<_>>()
                    };
                    (0..n_passes).flat_map(|_| all()).collect::<Vec<_>>()
                })
            }
        }
    }

    fn linear_training(
        &self,
        rows: &Rows,
        layout: HeadLayout,
        d: Option<Divergence>,
    ) -> Option<Run<'a>> {
        let (rows, body, student, labels) =
            (*rows, self.body, self.head(rows, rows.n_vocab, layout), self.labels(rows));
        let teacher = d.map(|d| (self.head(&rows, rows.n_teacher_vocab, HeadLayout::VocabRows), d));
        let is_kept =
            are_kept(&student) && teacher.as_ref().is_none_or(|(teacher, _)| are_kept(teacher));
        let is_twice =
            !is_kept && d.is_some_and(|d| crate::types::Plan::new(d, 1.0).needs_second_pass());
        match body {
            Body::Fused | Body::Unfused => run(move || {
                let head = LinearHead::new(leaf(&student.hidden), leaf(&student.weight), layout);
                let teacher = teacher.clone().map(|(head, d)| (LinearHead::from_inner(head), d));
                backward(
                    linear_op(body, head.clone(), teacher, lift(&labels), rows.temperature),
                    [head.hidden, head.weight],
                )
            }),
            Body::AllProducts | Body::LeastProducts => {
                // Forwards (mixtures twice) and once more backwards, but for logits that are kept.
                let n_passes = match body {
                    Body::AllProducts if is_twice => 3,
                    Body::AllProducts if !is_kept => 2,
                    _ => 1,
                };
                run(move || {
                    let mut results = Vec::new();
                    for _ in 0..n_passes {
                        results.extend(teacher.iter().map(|(teacher, _)| unfused::logits(teacher)));
                        results.push(unfused::logits(&student));
                    }
                    let gradient = results.last().expect("at least one pass").clone();
                    results.extend(unfused::head_gradients(&student, gradient));
                    results
                })
            }
        }
    }

    fn decode(&self, shape: &AttentionShape) -> Option<Run<'a>> {
        let (q, shape, is_fused) =
            (self.random::<4>(shape.queries()), shape.clone(), self.is_fused());
        let [k, v] = [B::KEY_POSITION_DIM, 2]
            .map(|dim| empty_cache::<B>(&shape, dim, self.dtype, self.device).swap_dims(2, dim));
        let rows =
            CausalRows { starts: shape.starts.clone(), slots: Some(slots(&shape)), lengths: None };
        run(move || match is_fused {
            true => causal_attention(q.clone(), k.clone(), v.clone(), &rows),
            false => unfused::decode(q.clone(), k.clone(), v.clone(), &rows),
        })
    }

    /// Plain draws at temperature 1.
    fn sample(&self, rows: &Rows) -> Option<Run<'a>> {
        let z = self.random([rows.n_rows, rows.n_vocab]);
        let plain = samplings(rows).into_iter().map(|row| RowSampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            ..row
        });
        let plain: Vec<RowSampling> = plain.collect();
        match self.is_fused() {
            true => run(move || sample(z.clone(), &plain)),
            false => run(move || unfused::sample(z.clone(), &plain)),
        }
    }

    fn cache_write(&self, shape: &AttentionShape) -> Option<Run<'a>> {
        let (shape, is_fused) = (shape.clone(), self.is_fused());
        let new =
            self.random::<4>([shape.n_rows(), shape.n_kv_heads, shape.n_queries, shape.head_dim]);
        let mut cache = Some(empty_cache::<B>(&shape, 2, self.dtype, self.device));
        let spans: Vec<CacheSpan> = slots(&shape)
            .into_iter()
            .zip(&shape.starts)
            .map(|(slot, &start)| CacheSpan { slot, start, n: shape.n_queries })
            .collect();
        run(move || {
            // Taken out, so that the tensor has one owner and is written in place.
            let old = cache.take().expect("put back by the run before");
            let written = if is_fused {
                cache_write(old, new.clone(), &spans, 2)
            } else {
                unfused::cache_write(old, new.clone(), &spans)
            };
            cache = Some(written);
        })
    }
}

fn leaf<B: KernelOps, const D: usize>(x: &Tensor<B, D>) -> Tensor<Autodiff<B>, D> {
    Tensor::from_inner(x.clone()).require_grad()
}

fn lift<B: KernelOps>(x: &Tensor<B, 1, Int>) -> Tensor<Autodiff<B>, 1, Int> {
    Tensor::from_inner(x.clone())
}

/// The gradients of sum(y).
fn backward<B: KernelOps, const D: usize, const K: usize, const E: usize>(
    y: Tensor<Autodiff<B>, D>,
    leaves: [Tensor<Autodiff<B>, E>; K],
) -> [Option<Tensor<B, E>>; K] {
    let grads = y.sum().backward();
    leaves.map(|leaf| leaf.grad(&grads))
}

/// log p + H, or log p + H + D: one number a row.
fn logit_op<B: KernelOps>(
    is_fused: bool,
    student: Tensor<B, 2>,
    teacher: Option<(Tensor<B, 2>, Divergence)>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> Tensor<B, 1> {
    match (is_fused, teacher) {
        (false, teacher) => unfused::rows(student, teacher, labels, temperature),
        (true, None) => {
            let (log_p, entropy) = log_probs(student, labels, temperature);
            log_p + entropy
        }
        (true, Some((teacher, d))) => {
            let rows = log_softmax_kl(student, teacher, labels, d, temperature);
            rows.log_probs + rows.entropy + rows.divergence
        }
    }
}

fn linear_op<B: KernelOps>(
    body: Body,
    student: LinearHead<B>,
    teacher: Option<(LinearHead<B>, Divergence)>,
    labels: Tensor<B, 1, Int>,
    temperature: f64,
) -> Tensor<B, 1> {
    match (body, teacher) {
        (Body::Fused, None) => {
            let (log_p, entropy) = linear_log_probs(student, labels, temperature);
            log_p + entropy
        }
        (Body::Fused, Some((teacher, d))) => {
            let rows = linear_kl(student, teacher, labels, d, temperature);
            rows.log_probs + rows.entropy + rows.divergence
        }
        (_, teacher) => unfused::rows(
            unfused::logits(&student),
            teacher.map(|(head, d)| (unfused::logits(&head), d)),
            labels,
            temperature,
        ),
    }
}

fn norm<B: KernelOps>(is_fused: bool, x: Tensor<B, 2>, w: Tensor<B, 1>) -> Tensor<B, 2> {
    if is_fused { rms_norm(x, w, RMS_EPS) } else { unfused::rms_norm(x, w, RMS_EPS) }
}

fn gated<B: KernelOps>(is_fused: bool, gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    if is_fused { swiglu(gate, up) } else { burn::tensor::activation::silu(gate) * up }
}

fn gelu<B: KernelOps>(is_fused: bool, x: Tensor<B, 2>) -> Tensor<B, 2> {
    if is_fused { erf_gelu(x) } else { burn::tensor::activation::gelu(x) }
}

fn turned<B: KernelOps>(
    is_fused: bool,
    x: Tensor<B, 2>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    turns: Turns,
) -> Tensor<B, 2> {
    if is_fused { rotary(x, cos, sin) } else { unfused::rotary(x, cos, sin, turns) }
}

fn attention<B: KernelOps>(
    is_fused: bool,
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    shape: &AttentionShape,
) -> Tensor<B, 4> {
    match is_fused {
        true => causal_attention(
            q,
            k,
            v,
            &CausalRows {
                starts: shape.starts.clone(),
                slots: None,
                lengths: shape.lengths.clone(),
            },
        ),
        false => unfused::attention(q, k, v, &shape.starts),
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
