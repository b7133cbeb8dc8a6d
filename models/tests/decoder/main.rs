//! The decoder and its cache, through the public interface.
mod cache;
mod common;
mod oracles;
