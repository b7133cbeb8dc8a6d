//! The files that a run has made so far, and the removal of a folder in which nothing was made.
use super::{LOCK_FILE, PROVENANCE_FILE, RECIPE_FILE, RunDir, RunDirError, io_error};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

impl RunDir {
    /// The files of the run that are not empty, with their sizes, without its recipe and
    /// provenance. If they did not change, no work was done.
    pub fn contents(&self) -> BTreeMap<PathBuf, u64> {
        let mut files = BTreeMap::new();
        collect_files(&self.path, &mut files);
        let says_what_to_do = |path: &Path| {
            [RECIPE_FILE, PROVENANCE_FILE, LOCK_FILE]
                .iter()
                .any(|name| path == self.path.join(name))
        };
        files.retain(|path, size_bytes| *size_bytes > 0 && !says_what_to_do(path));
        files
    }

    /// Removes the folder, so that its name is free again.
    /// # Errors
    /// If the disk fails.
    pub fn remove(self) -> Result<(), RunDirError> {
        fs::remove_dir_all(&self.path).map_err(io_error("remove", &self.path))
    }
}

fn collect_files(folder: &Path, files: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => collect_files(&entry.path(), files),
            // A file that cannot be read is taken for work.
            other => {
                let n_bytes = other.map_or(u64::MAX, |metadata| metadata.len());
                files.insert(entry.path(), n_bytes);
            }
        }
    }
}
