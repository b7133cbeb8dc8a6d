//! Test for a graphics device. A test binary finds out by trying, but building one takes
//! minutes; so a driver's manifest is looked for first.
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Metal and DirectX come with their systems.
pub(crate) fn is_installed() -> bool {
    if cfg!(any(target_os = "macos", target_os = "windows")) {
        return true;
    }
    // The variables with which the Vulkan loader is told to use certain drivers only.
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find_map(env::var_os);
    match named {
        Some(files) => env::split_paths(&files).any(|file| is_manifest(&file)),
        None => ["/usr/share", "/usr/local/share", "/etc"]
            .into_iter()
            .any(|base| has_manifest(&Path::new(base).join("vulkan/icd.d"))),
    }
}

fn has_manifest(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path: PathBuf| is_manifest(&path))
}

fn is_manifest(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_a_json_file_in_its_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert!(has_manifest(&root.join("configs/tiny/student")));
        assert!(
            !has_manifest(&root.join("xtask/src")) && !has_manifest(&root.join("no/such/folder"))
        );
    }
}
