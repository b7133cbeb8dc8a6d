//! Arguments of the operations beside their tensors.
mod cache_span;
mod causal_rows;
mod divergence;
mod head;
mod sampling;

pub use cache_span::CacheSpan;
pub use causal_rows::CausalRows;
pub use divergence::Divergence;
pub(crate) use divergence::{DivergencePlan, Form};
pub(crate) use head::Linear;
pub use head::{HeadLayout, HeadShape, LinearHead};
pub use sampling::{Draw, RowSampling};
