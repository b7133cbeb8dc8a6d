//! Text in, observation out: the protocol of method §1. Knows no token ids.
pub mod protocol;
