//! Every setting that the heart reads, as plain structs. A recipe is made of them; whoever uses
//! this crate alone fills them in by hand.
//!
//! The `Default` of each part is the published DGPO run wherever the paper or its scripts state a
//! value ("default: paper"); a field the paper is silent on says so.
mod chat;
pub mod date;
mod distill;
mod episode;
mod guards;
mod optim;
mod phase;
mod rl;

pub use chat::ChatTemplate;
pub use distill::*;
pub use episode::*;
pub use guards::*;
pub use optim::*;
pub use phase::Phase;
pub use rl::*;
