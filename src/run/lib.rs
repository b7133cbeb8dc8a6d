//! How does a run live on a machine?
pub mod config;
pub mod data;
pub mod devices;
pub mod episodes;
pub mod eval;
pub mod events;
pub mod folder;
pub mod hub;
pub mod models;
pub mod pipeline;
pub mod report;
pub mod retriever;
