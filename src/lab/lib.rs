//! # dgpo-lab: proofs and measurements
//!
//! The workshop: proofs and measurements of DGPO. Nothing that a run needs is here.
//!
//! | module | answers |
//! |---|---|
//! | [`conformance`], [`mod@reference`] | does every part compute what the published code computes? |
//! | [`portability`] | does a device compute what the others compute? |
//! | [`mod@bench`] | how fast, how large |
//! | [`fuzz`] | what do damaged files do? |
//! | [`reproduce`] | all rows of the paper beside its numbers |
//! | [`tiny`] | how the built-in tiny world is made |
//!
//! ## Layers
//! A module imports only from modules to its left:
//! ```text
//! reference, tiny ─▶ reproduce ─▶ conformance ─▶ portability ─▶ fuzz ─▶ bench
//! ```
pub mod bench;
pub mod conformance;
pub mod fuzz;
pub mod portability;
pub mod reference;
pub mod reproduce;
pub mod tiny;
