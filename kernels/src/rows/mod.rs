//! Operations over the rows of a matrix, however many there are: their sum, one row for all of
//! them, and picking some of them.
//!
//! A sum over the first axis is taken in one long line by the CPU backend, which in f32 loses
//! digits with each row (a sum of ones stops at 2^24), and on a GPU one unit may walk all rows (a
//! software Vulkan driver ends every loop of a unit behind 65,535 rounds, without a word). So from
//! [`WHOLE_ROWS`] on rows are worked on in blocks. Below that everything is burn's own operation,
//! bit for bit.
mod autodiff;

use crate::operation::*;
use burn::tensor::{Int, Tensor, TensorMetadata, TensorPrimitive, s};

/// Up to so many rows are taken in one go.
pub const WHOLE_ROWS: usize = 16_384;
/// Rows of one sum where there are more: 64 f32 of one sign are added with an error of about 2e-7
/// of the sum.
const SUM_BLOCK: usize = 64;
/// Rows of one operation where there are more and what it makes of them is more than a sum
/// ([`in_blocks`], [`select_rows`]).
pub(crate) const BLOCK: usize = 4096;

/// The sum of all rows.
/// # Shapes
/// x `[N, D]` -> `[1, D]`
pub fn sum_rows<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    if x.dims()[0] <= WHOLE_ROWS { x.sum_dim(0) } else { sum_in_blocks(x) }
}

fn sum_in_blocks<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [n, d] = x.dims();
    if n <= SUM_BLOCK {
        return x.sum_dim(0);
    }
    let n_blocks = n / SUM_BLOCK;
    let behind = n_blocks * SUM_BLOCK;
    let blocks = x.clone().slice(s![..behind, ..]).reshape([n_blocks, SUM_BLOCK, d]);
    let sum = sum_in_blocks(blocks.sum_dim(1).reshape([n_blocks, d]));
    if behind == n { sum } else { sum + x.slice(s![behind.., ..]).sum_dim(0) }
}

/// One row for all on a backend's own tensors: a view everywhere, but with a gradient of its own.
pub trait ExpandRowsOps: Backend {
    /// See [`expand_rows`].
    fn expand_rows(row: FloatTensor<Self>, n_rows: usize) -> FloatTensor<Self> {
        let d = row.shape().num_elements();
        Tensor::<Self, 1>::from_primitive(TensorPrimitive::Float(row))
            .reshape([1, d])
            .expand([n_rows, d])
            .into_primitive()
            .tensor()
    }
}

impl ExpandRowsOps for Flex {}

#[cfg(feature = "cube")]
impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> ExpandRowsOps
    for CubeBackend<R, F, I, BT>
{
}

#[cfg(feature = "cube")]
impl<B: FusionBackend> ExpandRowsOps for Fusion<B> {}

/// The same row `n_rows` times, differentiable: what makes a bias or a norm's weight one of each
/// row. Its gradient is [`sum_rows`].
/// # Shapes
/// row `[D]` -> `[N, D]`
pub fn expand_rows<B: ExpandRowsOps>(row: Tensor<B, 1>, n_rows: usize) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(B::expand_rows(
        row.into_primitive().tensor(),
        n_rows,
    )))
}

/// `[N, D]` -> `[D]`
fn sum<B: Backend>(grad: FloatTensor<B>) -> FloatTensor<B> {
    let grad = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(grad));
    let d = grad.dims()[1];
    sum_rows(grad).reshape([d]).into_primitive().tensor()
}

/// Rows of a matrix by their numbers, each as often as it is named; differentiable in the matrix.
/// # Shapes
/// x `[R, D]`, index `[N]` -> `[N, D]`
pub fn select_rows<B: Backend>(x: Tensor<B, 2>, index: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    if index.dims()[0] <= WHOLE_ROWS {
        return x.select(0, index);
    }
    Tensor::cat(
        index.split(BLOCK, 0).into_iter().map(|index| x.clone().select(0, index)).collect(),
        0,
    )
}

/// An operation on each row alone, a few thousand rows at a time where they are many: what its
/// backward pass sums over rows is then a sum of blocks.
/// # Shapes
/// x `[N, D]` -> `[N, E]`
pub fn in_blocks<B: Backend>(
    x: Tensor<B, 2>,
    f: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    if x.dims()[0] <= WHOLE_ROWS {
        return f(x);
    }
    Tensor::cat(x.split(BLOCK, 0).into_iter().map(f).collect(), 0)
}

/// The sums of a vector's blocks, the last one shorter: few enough numbers to be added up in f64
/// elsewhere.
/// # Shapes
/// x `[N]` -> `[M]`
pub fn block_sums<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    let n = x.dims()[0];
    let n_blocks = n / BLOCK;
    let behind = n_blocks * BLOCK;
    let rest = (behind < n).then(|| x.clone().slice(s![behind..]).sum_dim(0));
    let whole = (n_blocks > 0)
        .then(|| x.slice(s![..behind]).reshape([n_blocks, BLOCK]).sum_dim(1).reshape([n_blocks]));
    Tensor::cat(whole.into_iter().chain(rest).collect(), 0)
}

#[cfg(test)]
mod tests;
