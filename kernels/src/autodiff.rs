//! The operations on an autodiff backend: one graph node each, with the hand-written backward pass
//! of the inner backend.
//!
//! No autodiff runs inside a backward pass (burn would deadlock); the inputs are kept by burn's
//! checkpointing, nothing else is.
use crate::{
    KernelOps,
    attention::CausalRows,
    cache_write::CacheSpan,
    divergence::Divergence,
    linear_log_probs::{HeadLayout, Linear},
    rows,
    sample::RowSampling,
};
use burn::{
    backend::autodiff::{
        Autodiff, NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{
        backend::AutodiffBackend,
        ops::{FloatTensor, IntTensor},
    },
};

impl<B: KernelOps, C: CheckpointStrategy> KernelOps for Autodiff<B, C> {
    const KEY_POSITION_DIM: usize = B::KEY_POSITION_DIM;
    const TILE_ELEMENTS: usize = B::TILE_ELEMENTS;

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> FloatTensor<Self> {
        if rows.slots.is_some() {
            return Self::from_inner(B::causal_attention(
                q.primitive,
                k.primitive,
                v.primitive,
                rows,
            ));
        }
        match AttentionNode
            .prepare::<C>([q.node.clone(), k.node.clone(), v.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut node) => {
                let inputs = [node.checkpoint(&q), node.checkpoint(&k), node.checkpoint(&v)];
                let out = B::causal_attention(q.primitive, k.primitive, v.primitive, rows);
                node.finish((inputs, rows.clone()), out)
            }
            OpsKind::UnTracked(node) => {
                node.finish(B::causal_attention(q.primitive, k.primitive, v.primitive, rows))
            }
        }
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> [FloatTensor<Self>; 3] {
        B::causal_attention_backward(q.primitive, k.primitive, v.primitive, grad.primitive, rows)
            .map(Self::from_inner)
    }

    fn cache_write(
        cache: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: &[CacheSpan],
        position_dim: usize,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::cache_write(cache.primitive, values.primitive, spans, position_dim))
    }

    fn log_probs(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        match LogProbsNode.prepare::<C>([logits.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(mut node) => {
                let input = node.checkpoint(&logits);
                let packed = B::log_probs(logits.primitive, labels.clone(), temperature);
                node.finish((input, labels, packed.clone(), temperature), packed)
            }
            OpsKind::UnTracked(node) => {
                node.finish(B::log_probs(logits.primitive, labels, temperature))
            }
        }
    }

    fn log_probs_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::log_probs_backward(
            logits.primitive,
            labels,
            packed.primitive,
            grad.primitive,
            temperature,
        ))
    }

    fn log_softmax_kl(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let teacher = teacher.primitive; // a constant of this operation
        match DivergenceNode.prepare::<C>([student.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(mut node) => {
                let input = node.checkpoint(&student);
                let packed = B::log_softmax_kl(
                    student.primitive,
                    teacher.clone(),
                    labels.clone(),
                    divergence,
                    temperature,
                );
                node.finish(
                    (input, teacher, labels, packed.clone(), divergence, temperature),
                    packed,
                )
            }
            OpsKind::UnTracked(node) => node.finish(B::log_softmax_kl(
                student.primitive,
                teacher,
                labels,
                divergence,
                temperature,
            )),
        }
    }

    fn log_softmax_kl_backward(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let [student, teacher, packed, grad] =
            [student, teacher, packed, grad].map(|tensor| tensor.primitive);
        Self::from_inner(B::log_softmax_kl_backward(
            student,
            teacher,
            labels,
            packed,
            grad,
            divergence,
            temperature,
        ))
    }

    fn linear_log_probs(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        match LinearNode
            .prepare::<C>([linear.hidden.node.clone(), linear.weight.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut node) => {
                let inputs = [node.checkpoint(&linear.hidden), node.checkpoint(&linear.weight)];
                let part = (linear.layout, linear.n_logits);
                let packed = B::linear_log_probs(inner(linear), labels.clone(), temperature);
                node.finish((inputs, part, labels, packed.clone(), temperature), packed)
            }
            OpsKind::UnTracked(node) => {
                node.finish(B::linear_log_probs(inner(linear), labels, temperature))
            }
        }
    }

    fn linear_log_probs_backward(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> [FloatTensor<Self>; 2] {
        B::linear_log_probs_backward(
            inner(linear),
            labels,
            packed.primitive,
            grad.primitive,
            temperature,
        )
        .map(Self::from_inner)
    }

    fn linear_kl(
        student: Linear<Self>,
        teacher: Linear<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let teacher = inner(teacher); // a constant of this operation
        match LinearKlNode
            .prepare::<C>([student.hidden.node.clone(), student.weight.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut node) => {
                let inputs = [node.checkpoint(&student.hidden), node.checkpoint(&student.weight)];
                let part = (student.layout, student.n_logits);
                let packed = B::linear_kl(
                    inner(student),
                    teacher.clone(),
                    labels.clone(),
                    divergence,
                    temperature,
                );
                node.finish(
                    (inputs, part, teacher, labels, packed.clone(), divergence, temperature),
                    packed,
                )
            }
            OpsKind::UnTracked(node) => {
                node.finish(B::linear_kl(inner(student), teacher, labels, divergence, temperature))
            }
        }
    }

    fn linear_kl_backward(
        student: Linear<Self>,
        teacher: Linear<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> [FloatTensor<Self>; 2] {
        let (packed, grad) = (packed.primitive, grad.primitive);
        B::linear_kl_backward(
            inner(student),
            inner(teacher),
            labels,
            packed,
            grad,
            divergence,
            temperature,
        )
        .map(Self::from_inner)
    }

    fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match GeluNode.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(mut node) => {
                let input = node.checkpoint(&x);
                node.finish(input, B::erf_gelu(x.primitive))
            }
            OpsKind::UnTracked(node) => node.finish(B::erf_gelu(x.primitive)),
        }
    }

    fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::erf_gelu_backward(x.primitive, grad.primitive))
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        match RmsNormNode
            .prepare::<C>([x.node.clone(), weight.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut node) => {
                let inputs = [node.checkpoint(&x), node.checkpoint(&weight)];
                node.finish((inputs, eps), B::rms_norm(x.primitive, weight.primitive, eps))
            }
            OpsKind::UnTracked(node) => {
                node.finish(B::rms_norm(x.primitive, weight.primitive, eps))
            }
        }
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> [FloatTensor<Self>; 2] {
        B::rms_norm_backward(x.primitive, weight.primitive, grad.primitive, eps)
            .map(Self::from_inner)
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        // the tables are constants of this operation
        let (cos, sin) = (cos.primitive, sin.primitive);
        match RotaryNode.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                node.finish((cos.clone(), sin.clone()), B::rotary(x.primitive, cos, sin))
            }
            OpsKind::UnTracked(node) => node.finish(B::rotary(x.primitive, cos, sin)),
        }
    }

    fn sample(logits: FloatTensor<Self>, rows: &[RowSampling]) -> FloatTensor<Self> {
        Self::from_inner(B::sample(logits.primitive, rows))
    }

    fn expand_rows(row: FloatTensor<Self>, n_rows: usize) -> FloatTensor<Self> {
        match RowsNode.prepare::<C>([row.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((), B::expand_rows(row.primitive, n_rows)),
            OpsKind::UnTracked(node) => node.finish(B::expand_rows(row.primitive, n_rows)),
        }
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        match SwigluNode
            .prepare::<C>([gate.node.clone(), up.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut node) => {
                let inputs = [node.checkpoint(&gate), node.checkpoint(&up)];
                node.finish(inputs, B::swiglu(gate.primitive, up.primitive))
            }
            OpsKind::UnTracked(node) => node.finish(B::swiglu(gate.primitive, up.primitive)),
        }
    }

    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        B::swiglu_backward(gate.primitive, up.primitive, grad.primitive).map(Self::from_inner)
    }
}

#[derive(Debug)]
struct AttentionNode;

impl<B: KernelOps> Backward<B, 3> for AttentionNode {
    type State = ([NodeId; 3], CausalRows);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, rows) = ops.state;
        let [q, k, v] = inputs.map(|id| checkpointer.retrieve_node_output(id));
        let gradients = B::causal_attention_backward(q, k, v, grad, &rows);
        register::<B, 3>(grads, ops.parents.map(|parent| parent.map(|node| node.id)), gradients);
    }
}

#[derive(Debug)]
struct LogProbsNode;

impl<B: KernelOps> Backward<B, 1> for LogProbsNode {
    type State = (NodeId, IntTensor<B>, FloatTensor<B>, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (input, labels, packed, temperature) = ops.state;
        let logits = checkpointer.retrieve_node_output(input);
        let gradient = B::log_probs_backward(logits, labels, packed, grad, temperature);
        register::<B, 1>(grads, ops.parents.map(|parent| parent.map(|node| node.id)), [gradient]);
    }
}

#[derive(Debug)]
struct DivergenceNode;

impl<B: KernelOps> Backward<B, 1> for DivergenceNode {
    type State = (NodeId, FloatTensor<B>, IntTensor<B>, FloatTensor<B>, Divergence, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (input, teacher, labels, packed, divergence, temperature) = ops.state;
        let student = checkpointer.retrieve_node_output(input);
        let gradient = B::log_softmax_kl_backward(
            student,
            teacher,
            labels,
            packed,
            grad,
            divergence,
            temperature,
        );
        register::<B, 1>(grads, ops.parents.map(|parent| parent.map(|node| node.id)), [gradient]);
    }
}

#[derive(Debug)]
struct LinearNode;

impl<B: KernelOps> Backward<B, 2> for LinearNode {
    type State = ([NodeId; 2], (HeadLayout, usize), IntTensor<B>, FloatTensor<B>, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, (layout, n_logits), labels, packed, temperature) = ops.state;
        let [hidden, weight] = inputs.map(|id| checkpointer.retrieve_node_output(id));
        let gradients = B::linear_log_probs_backward(
            Linear { hidden, weight, layout, n_logits },
            labels,
            packed,
            grad,
            temperature,
        );
        register::<B, 2>(grads, ops.parents.map(|parent| parent.map(|node| node.id)), gradients);
    }
}

#[derive(Debug)]
struct LinearKlNode;

impl<B: KernelOps> Backward<B, 2> for LinearKlNode {
    type State = (
        [NodeId; 2],
        (HeadLayout, usize),
        Linear<B>,
        IntTensor<B>,
        FloatTensor<B>,
        Divergence,
        f64,
    );

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, (layout, n_logits), teacher, labels, packed, divergence, temperature) =
            ops.state;
        let [hidden, weight] = inputs.map(|id| checkpointer.retrieve_node_output(id));
        let gradients = B::linear_kl_backward(
            Linear { hidden, weight, layout, n_logits },
            teacher,
            labels,
            packed,
            grad,
            divergence,
            temperature,
        );
        register::<B, 2>(grads, ops.parents.map(|parent| parent.map(|node| node.id)), gradients);
    }
}

/// Hidden states and head without their graph.
fn inner<B: KernelOps, C: CheckpointStrategy>(linear: Linear<Autodiff<B, C>>) -> Linear<B> {
    let Linear { hidden, weight, layout, n_logits } = linear;
    Linear { hidden: hidden.primitive, weight: weight.primitive, layout, n_logits }
}

#[derive(Debug)]
struct GeluNode;

impl<B: KernelOps> Backward<B, 1> for GeluNode {
    type State = NodeId;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let x = checkpointer.retrieve_node_output(ops.state);
        register::<B, 1>(
            grads,
            ops.parents.map(|parent| parent.map(|node| node.id)),
            [B::erf_gelu_backward(x, grad)],
        );
    }
}

#[derive(Debug)]
struct RmsNormNode;

impl<B: KernelOps> Backward<B, 2> for RmsNormNode {
    type State = ([NodeId; 2], f64);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, eps) = ops.state;
        let [x, weight] = inputs.map(|id| checkpointer.retrieve_node_output(id));
        register::<B, 2>(
            grads,
            ops.parents.map(|parent| parent.map(|node| node.id)),
            B::rms_norm_backward(x, weight, grad, eps),
        );
    }
}

#[derive(Debug)]
struct RotaryNode;

impl<B: KernelOps> Backward<B, 1> for RotaryNode {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (cos, sin) = ops.state;
        register::<B, 1>(
            grads,
            ops.parents.map(|parent| parent.map(|node| node.id)),
            [B::rotary(grad, cos, B::float_neg(sin))],
        );
    }
}

#[derive(Debug)]
struct RowsNode;

impl<B: KernelOps> Backward<B, 1> for RowsNode {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        register::<B, 1>(
            grads,
            ops.parents.map(|parent| parent.map(|node| node.id)),
            [rows::sum::<B>(grad)],
        );
    }
}

#[derive(Debug)]
struct SwigluNode;

impl<B: KernelOps> Backward<B, 2> for SwigluNode {
    type State = [NodeId; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [gate, up] = ops.state.map(|id| checkpointer.retrieve_node_output(id));
        register::<B, 2>(
            grads,
            ops.parents.map(|parent| parent.map(|node| node.id)),
            B::swiglu_backward(gate, up, grad),
        );
    }
}

/// Hands each parent that wants it its gradient.
fn register<B: KernelOps, const N: usize>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; N],
    gradients: [FloatTensor<B>; N],
) {
    for (parent, gradient) in parents.into_iter().zip(gradients) {
        if let Some(parent) = parent {
            grads.register::<B>(parent, gradient);
        }
    }
}
