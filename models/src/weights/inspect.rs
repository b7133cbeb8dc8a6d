//! Looks at the tensors of a folder as they are stored, without building a model.
use super::files::Checkpoint;
use crate::ModelError;
use std::path::Path;

/// One tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// The format's own name: "F32", "BF16".
    pub dtype: &'a str,
    /// Sizes as the file has them.
    pub shape: &'a [usize],
    /// Little-endian, row-major.
    pub bytes: &'a [u8],
}

/// Shows every tensor of a folder to `visit`, ordered by name, whatever file it is in.
/// # Errors
/// If the weights are missing, truncated or malformed.
pub fn visit_tensors(
    dir: &Path,
    mut visit: impl FnMut(StoredTensor<'_>),
) -> Result<(), ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    for (name, entry) in &checkpoint.entries {
        let dtype = entry.dtype.to_string();
        visit(StoredTensor {
            name,
            dtype: &dtype,
            shape: &entry.shape,
            bytes: checkpoint.bytes(entry),
        });
    }
    Ok(())
}
