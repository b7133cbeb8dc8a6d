//! The command line of `dgpo`.
pub mod cli;
