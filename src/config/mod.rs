//! What will this run do? Typed TOML recipes.
pub mod recipe;
pub use recipe::*;
