//! Plays questions: engine + env -> episodes (method §1), multi-turn with continuous batching.
