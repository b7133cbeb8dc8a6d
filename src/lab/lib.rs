//! How is DGPO proven and measured?
pub mod bench;
pub mod conformance;
pub mod fuzz;
pub mod portability;
pub mod reference;
pub mod reproduce;
pub mod tiny;
