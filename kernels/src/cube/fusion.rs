//! An operation on `Fusion<B>`: an opaque node of the fusion stream that runs `B`'s operation when
//! the stream gets there.
//!
//! Element-wise operations of burn before and after such a node still fuse with each other.
use burn::tensor::{
    DType, Shape, TensorMetadata,
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

/// Result of a node: one tensor, or several.
pub(crate) trait Results {
    /// The same of tensors.
    type Of<T>;

    /// Shape and dtype of each.
    fn shapes(self) -> Vec<(Shape, DType)>;
    fn of<T>(tensors: Vec<T>) -> Self::Of<T>;
    fn list<T>(tensors: Self::Of<T>) -> Vec<T>;
}

impl Results for (Shape, DType) {
    type Of<T> = T;

    fn shapes(self) -> Vec<(Shape, DType)> {
        vec![self]
    }

    fn of<T>(tensors: Vec<T>) -> T {
        tensors.into_iter().next().expect("one tensor a declared result")
    }

    fn list<T>(tensor: T) -> Vec<T> {
        vec![tensor]
    }
}

impl<const N: usize> Results for [(Shape, DType); N] {
    type Of<T> = [T; N];

    fn shapes(self) -> Vec<(Shape, DType)> {
        self.into()
    }

    fn of<T>(tensors: Vec<T>) -> [T; N] {
        <[T; N]>::try_from(tensors).ok().expect("one tensor a declared result")
    }

    fn list<T>(tensors: [T; N]) -> Vec<T> {
        tensors.into()
    }
}

/// Puts one node into the stream. `run` gets the inputs in the same order and returns tensors of
/// the shapes and dtypes of `results`.
///
/// The node takes its handle of an input out of the stream's store (`TensorStatus::ReadWrite`) when
/// the caller holds no other one, so `run` finds a buffer with one holder and may write in place;
/// the result is then a new handle of the same buffer.
pub(crate) fn node<B: FusionBackend, O: Results, const F: usize, const I: usize>(
    name: &'static str,
    floats: [FloatTensor<Fusion<B>>; F],
    ints: [IntTensor<Fusion<B>>; I],
    results: O,
    run: impl Fn([FloatTensor<B>; F], [IntTensor<B>; I]) -> O::Of<FloatTensor<B>>
    + Send
    + Sync
    + 'static,
) -> O::Of<FloatTensor<Fusion<B>>> {
    let client = floats[0].client.clone();
    let streams = OperationStreams::with_inputs(floats.iter().chain(&ints));
    let outputs: Vec<TensorIr> = results
        .shapes()
        .into_iter()
        .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
        .collect();
    let inputs: Vec<TensorIr> =
        floats.into_iter().chain(ints).map(|tensor| tensor.into_ir()).collect();
    let ir = CustomOpIr::new(name, &inputs, &outputs);
    let run: Run<B> = Arc::new(move |(floats, ints)| {
        let floats = <[_; F]>::try_from(floats).expect("as many as were put in");
        let ints = <[_; I]>::try_from(ints).expect("as many as were put in");
        O::list(run(floats, ints))
    });
    O::of(client.register(
        streams,
        OperationIr::Custom(ir.clone()),
        Node::<B> { ir, n_floats: F, run },
    ))
}

/// Shape and dtype of a result like an input.
pub(crate) fn like(tensor: &impl TensorMetadata) -> (Shape, DType) {
    (tensor.shape(), tensor.dtype())
}

/// So many f32 numbers for each row of an input.
pub(crate) fn packed_rows(input: &impl TensorMetadata, columns: usize) -> (Shape, DType) {
    (Shape::new([input.shape()[0], columns]), DType::F32)
}
