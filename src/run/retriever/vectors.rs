//! A matrix of embeddings: owned, or mapped from a file of little-endian f32.
//!
//! Row `i` is the embedding of passage `i`. The mapped form is what makes an index larger than
//! memory usable: exact search streams it, graph search touches some hundred rows a query, and both
//! read the same bytes.
use super::RetrieverError;
use memmap2::Mmap;
use std::{fs::File, path::Path};

/// Row-major matrix `[n, dim]`, f32.
pub struct Vectors {
    storage: Storage,
    dim: usize,
}

enum Storage {
    Owned(Vec<f32>),
    Mapped(Mmap),
}

impl Vectors {
    /// Takes a row-major matrix.
    /// # Panics
    /// If `data` is not a whole number of rows of `dim` > 0 numbers (a bug of the caller).
    pub fn from_rows(data: Vec<f32>, dim: usize) -> Self {
        assert!(
            dim > 0 && data.len().is_multiple_of(dim),
            "{} numbers are not rows of {dim}",
            data.len()
        );
        Self { storage: Storage::Owned(data), dim }
    }

    /// Maps a file that must hold exactly `n` rows.
    /// # Errors
    /// If the file cannot be opened or has another size (a truncated copy, an index of another
    /// corpus).
    pub fn map(path: &Path, n: usize, dim: usize) -> Result<Self, RetrieverError> {
        let io = |source| RetrieverError::io(path, "map", source);
        if cfg!(target_endian = "big") {
            return Err(RetrieverError::damaged(
                path,
                "it holds little-endian numbers, which this machine cannot map",
            ));
        }
        let file = File::open(path).map_err(io)?;
        let size_bytes = file.metadata().map_err(io)?.len();
        let expected_bytes =
            (n as u64).saturating_mul(dim as u64).saturating_mul(size_of::<f32>() as u64);
        if size_bytes != expected_bytes || dim == 0 {
            let why = format!(
                "{size_bytes} bytes instead of {expected_bytes} ({n} vectors of {dim} numbers)"
            );
            return Err(RetrieverError::damaged(path, why));
        }
        // SAFETY: a finished index is never written to again: a rebuild writes new files and
        // renames them over the names, which leaves this mapping's inode alone. A user who
        // truncates the file under a running search gets a bus error, as with every mapped file.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { storage: Storage::Mapped(map), dim })
    }

    /// All rows, one after the other.
    pub fn as_slice(&self) -> &[f32] {
        match &self.storage {
            Storage::Owned(data) => data,
            // A mapping starts on a page, which is aligned for f32, and its length was checked.
            Storage::Mapped(map) => bytemuck::cast_slice(map),
        }
    }

    /// All rows as they lie in the file.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.as_slice())
    }

    /// Row `i`, `[dim]`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.as_slice()[i * self.dim..][..self.dim]
    }

    /// Numbers in a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.as_slice().len() / self.dim
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_matrix_reads_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("vectors.f32");
        let numbers: Vec<f32> = (0..12).map(|i| i as f32 * 0.5).collect();
        std::fs::write(&path, bytemuck::cast_slice(&numbers)).expect("written");
        let vectors = Vectors::map(&path, 4, 3).expect("four rows of three");
        assert_eq!((vectors.len(), vectors.row(2)), (4, &numbers[6..9]));
    }

    #[test]
    fn a_shape_beyond_all_measure_is_refused_and_not_multiplied_past_the_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("vectors.f32");
        std::fs::write(&path, [0u8; 16]).expect("written");
        for (n, dim) in [(usize::MAX, 8), (1 << 62, 1 << 62), (4, 0)] {
            assert!(Vectors::map(&path, n, dim).is_err(), "{n} vectors of {dim}");
        }
    }

    #[test]
    fn a_truncated_file_is_refused_with_both_sizes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("vectors.f32");
        std::fs::write(&path, [0u8; 40]).expect("written");
        let message = Vectors::map(&path, 4, 3).err().expect("40 bytes are not 48").to_string();
        assert!(
            message.contains("40 bytes instead of 48") && message.contains("hint:"),
            "{message}"
        );
    }
}
