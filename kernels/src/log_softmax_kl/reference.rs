//! Plain tensor operations on the whole `[N, V]`, each divergence by its definition.
use crate::{
    log_probs::{
        self,
        reference::{Softmax, finite, tensor},
    },
    types::{Divergence, DivergencePlan, Form},
    vocabulary::{COLUMNS, VALUE},
};
use burn::tensor::{
    DType, Tensor, TensorMetadata,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
    s,
};

/// Student and target over the shared prefix.
struct Pair<B: Backend> {
    s: Softmax<B>,
    t: Softmax<B>,
}

impl<B: Backend> Pair<B> {
    fn new(
        student: FloatTensor<B>,
        teacher: FloatTensor<B>,
        plan: &DivergencePlan,
        temperature: f64,
    ) -> Self {
        let vocab = student.shape()[1].min(teacher.shape()[1]);
        let [student, teacher] =
            [student, teacher].map(|logits| finite::<B>(logits).narrow(1, 0, vocab));
        let target = if plan.blend == 1.0 {
            teacher
        } else {
            // A constant, also where burn differentiates this.
            teacher * plan.blend + student.clone().detach() * (1.0 - plan.blend)
        };
        Self { s: Softmax::new(student, temperature), t: Softmax::new(target, temperature) }
    }

    /// `[N, V]` ln p_t - ln p_s, never between two large numbers.
    fn log_ratio(&self) -> Tensor<B, 2> {
        (self.t.shifted.clone() - self.s.shifted.clone())
            - (self.t.sum.clone().log() - self.s.sum.clone().log())
    }

    /// `[N, V]` ln(w p_s + (1 - w) p_t)
    fn log_mixture(&self, weight: f32) -> Tensor<B, 2> {
        let (a, b) = (self.s.log_p() + weight.ln(), self.t.log_p() + (1.0 - weight).ln());
        let max = a.clone().max_pair(b.clone());
        ((a - max.clone()).exp() + (b - max.clone()).exp()).log() + max
    }

    /// `[N, V]` What sums to the divergence (but for the teacher's entropy), and a of the gradient.
    fn terms(&self, form: Form) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let (p_s, p_t) = (self.s.p(), self.t.p());
        match form {
            Form::Sums { forward, reverse, .. } => {
                let ratio = self.log_ratio();
                let value =
                    p_t.clone() * ratio.clone() * forward - p_s.clone() * ratio.clone() * reverse;
                (value, p_s * (ratio.neg() + 1.0) * reverse - p_t * forward)
            }
            Form::Mixture { student_weight, student, teacher, .. } => {
                let log_m = self.log_mixture(student_weight);
                let term_s = p_s.clone() * (self.s.log_p() - log_m.clone());
                let term_t = p_t.clone() * (self.t.log_p() - log_m.clone());
                let share = (self.s.log_p() + student_weight.ln() - log_m).exp();
                let a = (term_s.clone() + p_s.clone()) * student
                    - (p_s * student + p_t * teacher) * share;
                (term_s * student + term_t * teacher, a)
            }
            Form::Variation => {
                let gap = p_s.clone() - p_t;
                let size = gap.clone().abs();
                // The sign by division: the sign function of some shading languages is 0 for NaN.
                (size.clone() * 0.5, gap / (size + f32::MIN_POSITIVE) * p_s * 0.5)
            }
        }
    }
}

/// [N, 14]: the columns of `log_probs` and the divergence; the others are 0.
pub(crate) fn forward<B: Backend>(
    student: FloatTensor<B>,
    teacher: FloatTensor<B>,
    labels: IntTensor<B>,
    divergence: Divergence,
    temperature: f64,
) -> FloatTensor<B> {
    let plan = DivergencePlan::new(divergence);
    let one = tensor::<B>(log_probs::reference::forward::<B>(student.clone(), labels, temperature));
    let pair = Pair::new(student, teacher, &plan, temperature);
    let entropy = match plan.form {
        Form::Sums { entropy, .. } | Form::Mixture { entropy, .. } => entropy,
        Form::Variation => 0.0,
    };
    let value = pair.terms(plan.form).0.sum_dim(1) + pair.t.entropy() * entropy;
    let n_rows = value.dims()[0];
    let rest = Tensor::zeros([n_rows, COLUMNS - one.dims()[1]], (&value.device(), DType::F32));
    let packed = Tensor::cat(
        vec![one.clone().slice(s![.., ..VALUE]), value, one.slice(s![.., VALUE + 1..]), rest],
        1,
    );
    packed.into_primitive().tensor()
}

/// d student `[N, V_s]` in its dtype, given the packed result and its gradient, `[N, 14]` both.
pub(crate) fn backward<B: Backend>(
    student: FloatTensor<B>,
    teacher: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    divergence: Divergence,
    temperature: f64,
) -> FloatTensor<B> {
    let plan = DivergencePlan::new(divergence);
    let (n_vocab, dtype) = (student.shape()[1], student.dtype());
    let d_value = tensor::<B>(grad.clone()).slice(s![.., VALUE..VALUE + 1]);
    let pair = Pair::new(student.clone(), teacher, &plan, temperature);
    let a = pair.terms(plan.form).1;
    let dz = (a.clone() - pair.s.p() * a.sum_dim(1)) * d_value / temperature;
    let one = B::float_cast(student, DType::F32.into());
    let one =
        tensor::<B>(log_probs::reference::backward::<B>(one, packed, grad, labels, temperature));
    let [n_rows, shared] = dz.dims();
    let dz = match n_vocab - shared {
        0 => dz,
        behind => {
            let zeros = Tensor::zeros([n_rows, behind], (&dz.device(), DType::F32));
            Tensor::cat(vec![dz, zeros], 1)
        }
    };
    (dz + one).cast(dtype).into_primitive().tensor()
}
