//! Where is the model or data set called NAME? Local folder, built-in asset, Hugging Face cache layout.
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{0}")]
    Placeholder(String),
}

/// A local folder or file; `builtin:tiny/student` (embedded in the binary, unpacked once into the cache folder);
/// `owner/name` in the Hugging Face cache (HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub).
pub fn resolve(_name: &str) -> Result<PathBuf, HubError> {
    todo!()
}
