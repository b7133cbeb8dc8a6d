//! The operations on `Fusion<B>`: each is an opaque node of the fusion stream that runs `B`'s
//! operation when the stream gets there.
//!
//! Element-wise operations of burn before and after such a node still fuse with each other.
use crate::{
    DeviceFacts, KernelOps,
    attention::CausalRows,
    cache_write::CacheSpan,
    divergence::Divergence,
    linear_log_probs::Linear,
    sample::{self, RowSampling},
    vocabulary::{COLUMNS, ONE_COLUMNS},
};
use burn::tensor::{
    DType, Device, Shape,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};
use burn_fusion::{
    Fusion, FusionBackend, FusionRuntime,
    stream::{Operation, OperationStreams},
};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use std::{fmt, sync::Arc};

/// The tensors of one call, already computed: what the node's function gets.
type Inputs<B> = (Vec<FloatTensor<B>>, Vec<IntTensor<B>>);
type Run<B> = Arc<dyn Fn(Inputs<B>) -> Vec<FloatTensor<B>> + Send + Sync>;

struct Node<B: FusionBackend> {
    ir: CustomOpIr,
    n_floats: usize,
    run: Run<B>,
}

impl<B: FusionBackend> fmt::Debug for Node<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ir.id)
    }
}

impl<B: FusionBackend> Operation<B::FusionRuntime> for Node<B> {
    fn execute(
        &self,
        handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>,
    ) {
        let (floats, ints) = self.ir.inputs.split_at(self.n_floats);
        let floats = floats.iter().map(|ir| handles.get_float_tensor::<B>(ir)).collect();
        let ints = ints.iter().map(|ir| handles.get_int_tensor::<B>(ir)).collect();
        for (ir, output) in self.ir.outputs.iter().zip((self.run)((floats, ints))) {
            handles.register_float_tensor::<B>(&ir.id, output);
        }
    }
}

/// Puts one node into the stream. `run` gets the inputs in the same order and returns tensors of
/// the shapes and dtypes of `outputs`.
pub(crate) fn node<B: FusionBackend, const F: usize, const I: usize, const O: usize>(
    name: &'static str,
    floats: [FloatTensor<Fusion<B>>; F],
    ints: [IntTensor<Fusion<B>>; I],
    outputs: [(Shape, DType); O],
    run: impl Fn([FloatTensor<B>; F], [IntTensor<B>; I]) -> [FloatTensor<B>; O] + Send + Sync + 'static,
) -> [FloatTensor<Fusion<B>>; O] {
    let client = floats[0].client.clone();
    let streams = OperationStreams::with_inputs(floats.iter().chain(&ints));
    let outputs =
        outputs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let inputs: Vec<TensorIr> =
        floats.into_iter().chain(ints).map(|tensor| tensor.into_ir()).collect();
    let ir = CustomOpIr::new(name, &inputs, &outputs);
    let run: Run<B> = Arc::new(move |(floats, ints)| {
        let floats = <[_; F]>::try_from(floats).expect("as many as were put in");
        let ints = <[_; I]>::try_from(ints).expect("as many as were put in");
        run(floats, ints).into()
    });
    let outputs = client.register(
        streams,
        OperationIr::Custom(ir.clone()),
        Node::<B> { ir, n_floats: F, run },
    );
    <[_; O]>::try_from(outputs).expect("one tensor a declared output")
}

/// Shape and dtype of a result like an input.
fn like<B: FusionBackend>(tensor: &FloatTensor<Fusion<B>>) -> (Shape, DType) {
    (tensor.shape.clone(), tensor.dtype)
}

/// A packed row of each row of `like`.
fn packed<B: FusionBackend>(like: &FloatTensor<Fusion<B>>, columns: usize) -> (Shape, DType) {
    (Shape::new([like.shape[0], columns]), DType::F32)
}

impl<B: FusionBackend + KernelOps> KernelOps for Fusion<B> {
    const KEY_POSITION_DIM: usize = B::KEY_POSITION_DIM;
    const TOKENS_AT_ONCE: usize = B::TOKENS_AT_ONCE;
    const TILE_ELEMENTS: usize = B::TILE_ELEMENTS;

    fn max_tensor_bytes(device: &Self::Device) -> Option<u64> {
        B::max_tensor_bytes(device)
    }

    fn device_facts(device: &Device<Self>) -> DeviceFacts {
        DeviceFacts { runtime: <Self as Backend>::name(device), ..B::device_facts(device) }
    }

    fn reserved_bytes(device: &Device<Self>, give_back_first: bool) -> Option<u64> {
        B::reserved_bytes(device, give_back_first)
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> FloatTensor<Self> {
        let (out, rows) = (like::<B>(&q), rows.clone());
        let [out] =
            node::<B, _, 0, _>("causal_attention", [q, k, v], [], [out], move |[q, k, v], []| {
                [B::causal_attention(q, k, v, &rows)]
            });
        out
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: &CausalRows,
    ) -> [FloatTensor<Self>; 3] {
        let (out, rows) = ([like::<B>(&q), like::<B>(&k), like::<B>(&v)], rows.clone());
        node::<B, _, 0, _>(
            "causal_attention_backward",
            [q, k, v, grad],
            [],
            out,
            move |[q, k, v, grad], []| B::causal_attention_backward(q, k, v, grad, &rows),
        )
    }

    /// The node takes its handle of the cache out of the stream's store (`TensorStatus::ReadWrite`)
    /// when the caller holds no other one, so the kernel finds a buffer with one holder and writes
    /// in place; the output is a new handle of the same buffer.
    fn cache_write(
        cache: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: &[CacheSpan],
        position_dim: usize,
    ) -> FloatTensor<Self> {
        let (out, spans) = (like::<B>(&cache), spans.to_vec());
        let [cache] = node::<B, _, 0, _>(
            "cache_write",
            [cache, values],
            [],
            [out],
            move |[cache, values], []| [B::cache_write(cache, values, &spans, position_dim)],
        );
        cache
    }

    fn log_probs(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let out = packed::<B>(&logits, ONE_COLUMNS);
        let [packed] = node::<B, _, _, _>(
            "log_probs",
            [logits],
            [labels],
            [out],
            move |[logits], [labels]| [B::log_probs(logits, labels, temperature)],
        );
        packed
    }

    fn log_probs_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let out = like::<B>(&logits);
        let [grad] = node::<B, _, _, _>(
            "log_probs_backward",
            [logits, packed, grad],
            [labels],
            [out],
            move |[logits, packed, grad], [labels]| {
                [B::log_probs_backward(logits, labels, packed, grad, temperature)]
            },
        );
        grad
    }

    fn log_softmax_kl(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let out = packed::<B>(&student, COLUMNS);
        let [packed] = node::<B, _, _, _>(
            "log_softmax_kl",
            [student, teacher],
            [labels],
            [out],
            move |[student, teacher], [labels]| {
                [B::log_softmax_kl(student, teacher, labels, divergence, temperature)]
            },
        );
        packed
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
        let out = like::<B>(&student);
        let run = move |[student, teacher, packed, grad]: [_; 4], [labels]: [_; 1]| {
            [B::log_softmax_kl_backward(
                student,
                teacher,
                labels,
                packed,
                grad,
                divergence,
                temperature,
            )]
        };
        let [grad] = node::<B, _, _, _>(
            "log_softmax_kl_backward",
            [student, teacher, packed, grad],
            [labels],
            [out],
            run,
        );
        grad
    }

    fn linear_log_probs(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let Linear { hidden, weight, layout, n_logits } = linear;
        let out = packed::<B>(&hidden, ONE_COLUMNS);
        let [packed] = node::<B, _, _, _>(
            "linear_log_probs",
            [hidden, weight],
            [labels],
            [out],
            move |[hidden, weight], [labels]| {
                [B::linear_log_probs(
                    Linear { hidden, weight, layout, n_logits },
                    labels,
                    temperature,
                )]
            },
        );
        packed
    }

    fn linear_log_probs_backward(
        linear: Linear<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        temperature: f64,
    ) -> [FloatTensor<Self>; 2] {
        let Linear { hidden, weight, layout, n_logits } = linear;
        let out = [like::<B>(&hidden), like::<B>(&weight)];
        let run = move |[hidden, weight, packed, grad]: [_; 4], [labels]: [_; 1]| {
            B::linear_log_probs_backward(
                Linear { hidden, weight, layout, n_logits },
                labels,
                packed,
                grad,
                temperature,
            )
        };
        node::<B, _, _, _>(
            "linear_log_probs_backward",
            [hidden, weight, packed, grad],
            [labels],
            out,
            run,
        )
    }

    fn linear_kl(
        student: Linear<Self>,
        teacher: Linear<Self>,
        labels: IntTensor<Self>,
        divergence: Divergence,
        temperature: f64,
    ) -> FloatTensor<Self> {
        let (s, t) = ((student.layout, student.n_logits), (teacher.layout, teacher.n_logits));
        let out = packed::<B>(&student.hidden, COLUMNS);
        let run = move |[s_hidden, s_weight, t_hidden, t_weight]: [_; 4], [labels]: [_; 1]| {
            let student = Linear { hidden: s_hidden, weight: s_weight, layout: s.0, n_logits: s.1 };
            let teacher = Linear { hidden: t_hidden, weight: t_weight, layout: t.0, n_logits: t.1 };
            [B::linear_kl(student, teacher, labels, divergence, temperature)]
        };
        let inputs = [student.hidden, student.weight, teacher.hidden, teacher.weight];
        let [packed] = node::<B, _, _, _>("linear_kl", inputs, [labels], [out], run);
        packed
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
        let (s, t) = ((student.layout, student.n_logits), (teacher.layout, teacher.n_logits));
        let out = [like::<B>(&student.hidden), like::<B>(&student.weight)];
        let run = move |[s_hidden, s_weight, t_hidden, t_weight, packed, grad]: [_; 6],
                        [labels]: [_; 1]| {
            let student = Linear { hidden: s_hidden, weight: s_weight, layout: s.0, n_logits: s.1 };
            let teacher = Linear { hidden: t_hidden, weight: t_weight, layout: t.0, n_logits: t.1 };
            B::linear_kl_backward(student, teacher, labels, packed, grad, divergence, temperature)
        };
        let inputs = [student.hidden, student.weight, teacher.hidden, teacher.weight, packed, grad];
        node::<B, _, _, _>("linear_kl_backward", inputs, [labels], out, run)
    }

    fn erf_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let out = like::<B>(&x);
        let [y] = node::<B, _, 0, _>("erf_gelu", [x], [], [out], |[x], []| [B::erf_gelu(x)]);
        y
    }

    fn erf_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let out = like::<B>(&x);
        let [dx] =
            node::<B, _, 0, _>("erf_gelu_backward", [x, grad], [], [out], |[x, grad], []| {
                [B::erf_gelu_backward(x, grad)]
            });
        dx
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let out = like::<B>(&x);
        let [y] = node::<B, _, 0, _>("rms_norm", [x, weight], [], [out], move |[x, weight], []| {
            [B::rms_norm(x, weight, eps)]
        });
        y
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> [FloatTensor<Self>; 2] {
        let out = [like::<B>(&x), like::<B>(&weight)];
        node::<B, _, 0, _>(
            "rms_norm_backward",
            [x, weight, grad],
            [],
            out,
            move |[x, weight, grad], []| B::rms_norm_backward(x, weight, grad, eps),
        )
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let out = like::<B>(&x);
        let [y] = node::<B, _, 0, _>("rotary", [x, cos, sin], [], [out], |[x, cos, sin], []| {
            [B::rotary(x, cos, sin)]
        });
        y
    }

    fn sample(logits: FloatTensor<Self>, rows: &[RowSampling]) -> FloatTensor<Self> {
        let (out, rows) = (packed::<B>(&logits, sample::COLUMNS), rows.to_vec());
        let [packed] = node::<B, _, 0, _>("sample", [logits], [], [out], move |[logits], []| {
            [B::sample(logits, &rows)]
        });
        packed
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let out = like::<B>(&gate);
        let [y] = node::<B, _, 0, _>("swiglu", [gate, up], [], [out], |[gate, up], []| {
            [B::swiglu(gate, up)]
        });
        y
    }

    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let out = [like::<B>(&gate), like::<B>(&gate)];
        node::<B, _, 0, _>("swiglu_backward", [gate, up, grad], [], out, |[gate, up, grad], []| {
            B::swiglu_backward(gate, up, grad)
        })
    }
}
