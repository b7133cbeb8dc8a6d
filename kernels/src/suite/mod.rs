//! Every operation as a case that any device can be held to: inputs from formulas, run forwards and
//! backwards, compared with a definition in f64.
//!
//! ```text
//! Case = operation and shape · dtype · what the inputs hold · what comes back from above
//! case.check::<B>(device)   -> worst error of every result and gradient, beside its tolerance
//! case.op.work(dtype)       -> bytes moved and multiply-adds, by formula
//! timed::prepare(..)        -> the operation (fused, reference, bare products) as a job to time
//! ```
//!
//! The tests run the exhaustive list, [`standard`] is the short one for a report on somebody's
//! device. Errors are |got - want| / (1 + |want|); gradients over a vocabulary, whose entries may
//! be as small as 1/V, are measured in what each may be off by. Tolerances are derived: the
//! rounding of the type that a result is stored in, plus the growth of f32 roundings inside
//! ([`GROWTH`]).
mod hidden;
pub mod hidden_definitions;
pub mod numbers;
pub mod probes;
mod sampling;
pub mod timed;
mod vocabulary;
pub mod vocabulary_definitions;

#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;

use crate::{KernelOps, linear_log_probs::HeadLayout, log_softmax_kl::Divergence};
use burn::tensor::{DType, Device};
use hidden_definitions::AttentionShape;
use numbers::epsilon;

/// Roundings of f32 that results of order 1 may be off by. A graphics driver's exponential may be
/// (3 + 2 |x|) units in the last place off (the Vulkan specification), |x| is below 16 in the bulk
/// of every softmax here, and a logarithm and a quotient follow.
pub const GROWTH: f64 = 64.0;

/// An operation and its shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Log-prob of a label and entropy, from logits.
    LogProbs(Rows),
    /// The same and a divergence from a teacher, from logits.
    LogSoftmaxKl(Rows, Divergence),
    /// As `LogProbs`, from hidden states and a head.
    LinearLogProbs(Rows, HeadLayout),
    /// As `LogSoftmaxKl`, from hidden states and heads.
    LinearKl(Rows, HeadLayout, Divergence),
    /// RMSNorm of rows.
    RmsNorm(Matrix),
    /// silu(gate) · up.
    Swiglu(Matrix),
    /// GELU by the error function.
    ErfGelu(Matrix),
    /// Rotary positions.
    Rotary(Turns),
    /// Training: whole rows, causal or not, with the backward pass.
    Attention(AttentionShape),
    /// Queries over a cache of slots in another order than the rows.
    Decode(AttentionShape),
    /// `n_queries` new positions behind `starts`, in slots of `n_keys`.
    CacheWrite(AttentionShape),
    /// One token a row of logits: greedy, plain, top-k and top-p rows by turns.
    Sample(Rows),
}

/// Rows of logits, or of hidden states in front of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    /// N
    pub n_rows: usize,
    /// V of the student.
    pub n_vocab: usize,
    /// V of the teacher.
    pub n_teacher_vocab: usize,
    /// Width of the hidden states; without effect where logits come in.
    pub width: usize,
    /// Divides the logits.
    pub temperature: f64,
}

impl Rows {
    /// One vocabulary for both models, narrow hidden states, temperature 1.
    pub fn new(n_rows: usize, n_vocab: usize) -> Self {
        Self { n_rows, n_vocab, n_teacher_vocab: n_vocab, width: 8, temperature: 1.0 }
    }
}

/// Hidden states `[N, D]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// N
    pub n_rows: usize,
    /// D
    pub width: usize,
}

/// Queries or keys [N, heads · hd], N a multiple of the positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// N
    pub n_rows: usize,
    /// Rows of the table of angles.
    pub n_positions: usize,
    /// H
    pub n_heads: usize,
    /// Half of hd.
    pub half: usize,
}

/// Content of the inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Numbers of order 1.
    Ordinary,
    /// Logits shifted by this, those of the teacher by its negative. Only operations over the
    /// vocabulary differ from `Ordinary`.
    Far(f64),
    /// The first eighth of the vocabulary is -inf in both models. Only operations on logits differ
    /// from `Ordinary`.
    Impossible,
    /// NaN in the row in the middle.
    Broken,
}

/// The upstream gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Numbers of order 1 everywhere.
    Every,
    /// Zeros: a mask that leaves nothing. All gradients are 0 then.
    None,
}

/// Something to run and compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The operation and its shape.
    pub op: Op,
    /// Float type of its tensors.
    pub dtype: DType,
    /// Content of the inputs.
    pub fill: Fill,
    /// Gradient that the backward pass starts from.
    pub upstream: Upstream,
}

/// One result or gradient of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// Name of the result or gradient.
    pub quantity: &'static str,
    /// Largest error. Infinite where NaN is on one side only.
    pub worst: f64,
    /// Largest error that is accepted.
    pub tolerance: f64,
}

impl Check {
    /// True if the error is within the tolerance.
    pub fn holds(&self) -> bool {
        self.worst <= self.tolerance
    }

    fn new(quantity: &'static str, got: &[f64], want: &[f64], tolerance: f64) -> Self {
        Self { quantity, worst: numbers::worst_error(got, want), tolerance }
    }

    /// Every entry may be off by a bound of its own; the error is a share of it.
    fn within(quantity: &'static str, got: &[f64], want: &[f64], allowed: &[f64]) -> Self {
        Self { quantity, worst: numbers::worst_share(got, want, allowed), tolerance: 1.0 }
    }
}

/// Least cost of an operation, forwards and backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Inputs read and results written once each pass they are needed in.
    pub bytes: [usize; 2],
    /// Those that no way of computing it leaves out (nothing computed once more); 0 where memory
    /// decides.
    pub multiply_adds: [usize; 2],
}

impl Case {
    /// Ordinary inputs and a full upstream gradient.
    pub fn new(op: Op, dtype: DType) -> Self {
        Self { op, dtype, fill: Fill::Ordinary, upstream: Upstream::Every }
    }

    /// Runs the case on a device and compares every result and gradient.
    pub fn check<B: KernelOps>(&self, device: &Device<B>) -> Vec<Check> {
        match &self.op {
            Op::LogProbs(rows) => vocabulary::check_log_probs::<B>(self, rows, device),
            Op::LogSoftmaxKl(rows, divergence) => {
                vocabulary::check_divergence::<B>(self, rows, *divergence, device)
            }
            Op::LinearLogProbs(rows, layout) => {
                vocabulary::check_linear::<B>(self, rows, *layout, None, device)
            }
            Op::LinearKl(rows, layout, divergence) => {
                vocabulary::check_linear::<B>(self, rows, *layout, Some(*divergence), device)
            }
            Op::RmsNorm(matrix) => hidden::check_rms_norm::<B>(self, *matrix, device),
            Op::Swiglu(matrix) => hidden::check_swiglu::<B>(self, *matrix, device),
            Op::ErfGelu(matrix) => hidden::check_erf_gelu::<B>(self, *matrix, device),
            Op::Rotary(turns) => hidden::check_rotary::<B>(self, *turns, device),
            Op::Attention(shape) => hidden::check_attention::<B>(self, shape, device),
            Op::Decode(shape) => hidden::check_decode::<B>(self, shape, device),
            Op::CacheWrite(shape) => hidden::check_cache_write::<B>(self, shape, device),
            Op::Sample(rows) => sampling::check_sample::<B>(self, rows, device),
        }
    }

    /// Error that f32 arithmetic may have, `n` roundings of random sign added up on top.
    fn rounding(&self, n: usize) -> f64 {
        GROWTH * epsilon(DType::F32) * (1.0 + (n as f64).sqrt() / GROWTH)
    }

    /// Error that a gradient may have, entry by entry: f32 arithmetic (and `extra`) relative to the
    /// terms it is made of, and its storing in the case's type.
    fn allowed(&self, want: &[f64], terms: &[f64], extra: f64) -> Vec<f64> {
        let relative = if self.dtype == DType::F32 { 0.0 } else { epsilon(self.dtype) };
        let one = |(want, terms): (&f64, &f64)| match *terms == 0.0 {
            true => 0.0,
            false => relative * want.abs() + self.least() + (self.rounding(0) + extra) * terms,
        };
        want.iter().zip(terms).map(one).collect()
    }

    /// Step to which numbers too small for the case's exponents are rounded.
    fn least(&self) -> f64 {
        if self.dtype == DType::F16 { 2f64.powi(-24) } else { 0.0 }
    }

    /// The same and the rounding of a result to the case's type.
    fn stored(&self, n: usize) -> f64 {
        self.rounding(n) + if self.dtype == DType::F32 { 0.0 } else { 2.0 * epsilon(self.dtype) }
    }
}

impl Op {
    /// As a person calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LogProbs(_) => "log_probs",
            Self::LogSoftmaxKl(..) => "log_softmax_kl",
            Self::LinearLogProbs(..) => "linear_log_probs",
            Self::LinearKl(..) => "linear_kl",
            Self::RmsNorm(_) => "rms_norm",
            Self::Swiglu(_) => "swiglu",
            Self::ErfGelu(_) => "erf_gelu",
            Self::Rotary(_) => "rotary",
            Self::Attention(_) => "attention",
            Self::Decode(_) => "attention, decode",
            Self::CacheWrite(_) => "cache_write",
            Self::Sample(_) => "sample",
        }
    }

    /// Sizes in the letters of the crate's page.
    pub fn shape(&self) -> String {
        let rows = |rows: &Rows| match rows.n_teacher_vocab == rows.n_vocab {
            true => format!("N {} V {}", rows.n_rows, rows.n_vocab),
            false => format!("N {} V {} / {}", rows.n_rows, rows.n_vocab, rows.n_teacher_vocab),
        };
        match self {
            Self::LogProbs(r) | Self::Sample(r) => format!("N {} V {}", r.n_rows, r.n_vocab),
            Self::LogSoftmaxKl(r, divergence) => format!("{} {divergence:?}", rows(r)),
            Self::LinearLogProbs(r, _) => format!("N {} D {} V {}", r.n_rows, r.width, r.n_vocab),
            Self::LinearKl(r, _, divergence) => format!("{} D {} {divergence:?}", rows(r), r.width),
            Self::RmsNorm(m) | Self::Swiglu(m) | Self::ErfGelu(m) => {
                format!("N {} D {}", m.n_rows, m.width)
            }
            Self::Rotary(t) => format!("N {} H {} hd {}", t.n_rows, t.n_heads, 2 * t.half),
            Self::Attention(s) | Self::Decode(s) | Self::CacheWrite(s) => {
                format!(
                    "B {} H {} K {} Tq {} Tk {} hd {}",
                    s.n_rows(),
                    s.n_heads,
                    s.n_kv_heads,
                    s.n_queries,
                    s.n_keys,
                    s.head_dim
                )
            }
        }
    }

    /// Bytes and multiply-adds by formula.
    pub fn work(&self, dtype: DType) -> Work {
        let size = dtype.size();
        let memory = |forward: usize, backward: usize| Work {
            bytes: [forward * size, backward * size],
            multiply_adds: [0, 0],
        };
        // Mixtures read both rows a second time.
        let passes = |divergence: &Divergence| {
            if crate::types::DivergencePlan::new(*divergence).needs_second_pass() { 2 } else { 1 }
        };
        match self {
            Self::LogProbs(r) => memory(r.n_rows * r.n_vocab, 2 * r.n_rows * r.n_vocab),
            Self::LogSoftmaxKl(r, divergence) => {
                let both = r.n_rows * (r.n_vocab + r.n_teacher_vocab);
                memory(passes(divergence) * both, both + r.n_rows * r.n_vocab)
            }
            Self::LinearLogProbs(r, _) => {
                let product = r.n_rows * r.n_vocab * r.width;
                let (hidden, weight) = (r.n_rows * r.width, r.n_vocab * r.width);
                Work {
                    bytes: [(hidden + weight) * size, 2 * (hidden + weight) * size],
                    multiply_adds: [product, 2 * product],
                }
            }
            Self::LinearKl(r, ..) => {
                let (student, teacher) =
                    (r.n_rows * r.n_vocab * r.width, r.n_rows * r.n_teacher_vocab * r.width);
                let (hidden, weights) =
                    (2 * r.n_rows * r.width, (r.n_vocab + r.n_teacher_vocab) * r.width);
                Work {
                    bytes: [(hidden + weights) * size, 2 * (hidden + weights) * size],
                    multiply_adds: [student + teacher, 2 * student],
                }
            }
            Self::RmsNorm(m) => memory(2 * m.n_rows * m.width, 3 * m.n_rows * m.width),
            Self::Swiglu(m) => memory(3 * m.n_rows * m.width, 5 * m.n_rows * m.width),
            Self::ErfGelu(m) => memory(2 * m.n_rows * m.width, 3 * m.n_rows * m.width),
            Self::Rotary(t) => {
                memory(4 * t.n_rows * t.n_heads * t.half, 4 * t.n_rows * t.n_heads * t.half)
            }
            Self::Attention(s) => {
                let seen: usize = (0..s.n_rows())
                    .flat_map(|b| (0..s.n_queries).map(move |t| s.n_seen(b, t)))
                    .sum();
                let forward = 2 * s.n_heads * seen * s.head_dim;
                let tensors = 2 * s.queries().iter().product::<usize>()
                    + 2 * s.keys().iter().product::<usize>();
                Work {
                    bytes: [tensors * size, 2 * tensors * size],
                    multiply_adds: [forward, 2 * forward],
                }
            }
            Self::Decode(s) => {
                let read: usize = s
                    .starts
                    .iter()
                    .map(|start| 2 * (start + s.n_queries) * s.n_kv_heads * s.head_dim)
                    .sum();
                memory(read + 2 * s.queries().iter().product::<usize>(), 0)
            }
            Self::CacheWrite(s) => {
                memory(2 * s.n_rows() * s.n_kv_heads * s.n_queries * s.head_dim, 0)
            }
            // Maximum, then weights; top-k and top-p rows read more.
            Self::Sample(r) => memory(2 * r.n_rows * r.n_vocab, 0),
        }
    }
}

fn standard_rows() -> Rows {
    Rows { n_teacher_vocab: 997, width: 40, temperature: 0.7, ..Rows::new(65, 1003) }
}

/// One small case an operation in a dtype, in shapes that fill no vector and no workgroup evenly,
/// and one real vocabulary.
pub fn standard(dtype: DType) -> Vec<Case> {
    let rows = standard_rows();
    let large = Rows::new(3, 151_936);
    let matrix = Matrix { n_rows: 67, width: 897 };
    let causal = AttentionShape {
        starts: vec![0; 2],
        lengths: None,
        n_heads: 4,
        n_kv_heads: 2,
        n_queries: 67,
        n_keys: 67,
        head_dim: 16,
    };
    let decode =
        AttentionShape { starts: vec![32, 0, 15, 16], n_queries: 1, n_keys: 33, ..causal.clone() };
    let write =
        AttentionShape { starts: vec![3, 0, 20], n_queries: 5, n_keys: 33, ..causal.clone() };
    let skew = Divergence::SkewForward { alpha: 0.1 };
    let ops = [
        Op::LogProbs(rows),
        Op::LogProbs(large),
        Op::LogSoftmaxKl(rows, Divergence::ForwardKl),
        Op::LogSoftmaxKl(large, Divergence::ReverseKl),
        Op::LogSoftmaxKl(rows, skew),
        Op::LogSoftmaxKl(rows, Divergence::Taid { t: 0.4 }),
        Op::LinearLogProbs(rows, HeadLayout::VocabRows),
        Op::LinearKl(rows, HeadLayout::VocabRows, Divergence::ForwardKl),
        Op::LinearKl(rows, HeadLayout::VocabColumns, skew),
        Op::RmsNorm(matrix),
        Op::Rotary(Turns { n_rows: 66, n_positions: 33, n_heads: 3, half: 16 }),
        Op::Swiglu(matrix),
        Op::ErfGelu(matrix),
        Op::Attention(causal),
        Op::Decode(decode),
        Op::CacheWrite(write),
        Op::Sample(rows),
        Op::Sample(Rows { n_rows: 4, ..large }),
    ];
    ops.map(|op| Case::new(op, dtype)).into()
}
