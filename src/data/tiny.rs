//! The built-in tiny world.
