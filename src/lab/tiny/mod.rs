//! A world small enough that two CPU cores learn to search in it.
//!
//! Everything is invented from a seed: 300 people, 120 films, 100 books, 80 firms and 60 cities in
//! 8 countries, one passage each, six relations between them, and every one-hop and two-hop
//! question that these relations allow. Nothing can be known beforehand, so an answer is either
//! found by searching or guessed, and a learning curve means what it seems to mean.
//!
//! The parts: [`names`] invents words, [`world`] draws facts and writes passages, [`questions`]
//! asks and splits into train and test, [`scripts`] plays a question the way a perfect agent would
//! (the teacher's training data), [`vocabulary`] trains the byte-level BPE, [`networks`] says how
//! large the models are, [`export`] writes the files. The same seed gives the same bytes on every
//! machine.
//!
//! Cost: the whole world is generated in milliseconds, the vocabulary trained in about a second.
pub mod demonstrations;
pub mod export;
pub mod names;
pub mod networks;
pub mod questions;
pub mod scripts;
pub mod vocabulary;
pub mod world;

pub use questions::{Hop, TinyQuestion};
pub use scripts::{ScriptedObservation, reading, script};
pub use world::{Relation, World};

/// The seed of the world that is stored in `configs/tiny`.
pub const WORLD_SEED: u64 = 0;
