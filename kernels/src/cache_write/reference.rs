//! Writing into a cache in plain tensor operations.
use crate::types::CacheSpan;
use burn::tensor::{
    IndexingUpdateOp, Int, Tensor, TensorData, TensorPrimitive, backend::Backend, ops::FloatTensor,
};

/// One scatter into the flattened cache: whole vectors for `position_dim` 2, single elements for 3.
pub(crate) fn forward<B: Backend>(
    cache: FloatTensor<B>,
    values: FloatTensor<B>,
    spans: &[CacheSpan],
    position_dim: usize,
) -> FloatTensor<B> {
    let (cache, values) = (tensor::<B>(cache), tensor::<B>(values));
    let shape = cache.dims();
    let [_, n_heads, n_new, head_dim] = values.dims();
    let device = cache.device();
    let capacity = shape[position_dim];
    // Offsets of the written vectors (in vectors) or elements (in elements), and where they are
    // found in `values`.
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (row, span) in spans.iter().enumerate() {
        for head in 0..n_heads {
            for t in 0..span.n {
                let vector = (row * n_heads + head) * n_new + t;
                let head_of_cache = span.slot * n_heads + head;
                if position_dim == 2 {
                    from.push(vector as i32);
                    to.push((head_of_cache * capacity + span.start + t) as i32);
                } else {
                    for d in 0..head_dim {
                        from.push((vector * head_dim + d) as i32);
                        to.push(
                            ((head_of_cache * head_dim + d) * capacity + span.start + t) as i32,
                        );
                    }
                }
            }
        }
    }
    let width = if position_dim == 2 { head_dim } else { 1 };
    let n_written = from.len();
    let ids =
        |ids: Vec<i32>| Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n_written]), &device);
    let n_values: usize = values.dims().iter().product();
    let n_cache: usize = shape.iter().product();
    let written = values.reshape([n_values / width, width]).select(0, ids(from));
    let cache = cache.reshape([n_cache / width, width]);
    let cache =
        cache.scatter_nd(ids(to).reshape([n_written, 1]), written, IndexingUpdateOp::Assign);
    cache.reshape(shape).into_primitive().tensor()
}

fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<B, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
