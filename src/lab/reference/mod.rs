//! Computations of the published code where this project differs on purpose: for comparisons with
//! its recorded numbers.
pub mod advantage;
pub mod format;
pub mod protocol;
pub mod reward;
