//! The table of files that are part of the binary.

/// (path relative to the table's root, e.g. "tiny/student/config.json"; contents).
pub fn builtin_files() -> &'static [(&'static str, &'static [u8])] {
    &[]
}
