//! Where is the model or data set called NAME?
//!
//! | name | place |
//! |---|---|
//! | an existing path | that file or folder |
//! | `builtin:tiny/student` | part of the binary, unpacked into the user's cache folder |
//! | `owner/name`, `owner/name/file` | the Hugging Face cache: `models--owner--name` or `datasets--owner--name`, revision `main` |
//!
//! `${NAME}` in a name is replaced by the environment variable first. Nothing is downloaded.
//!
//! # Source
//! huggingface_hub's cache layout: refs/main holds the commit, snapshots/COMMIT the files.

pub mod builtin;

pub use builtin::builtin_files;
use sha2::{Digest, Sha256};
use std::{
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

const BUILTIN_PREFIX: &str = "builtin:";

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("cannot find {name}; looked at:{}\nhint: {hint}", looked.iter().map(|path| format!("\n  {}", path.display())).collect::<String>())]
    NotFound { name: String, looked: Vec<PathBuf>, hint: &'static str },
    #[error("there is no built-in {name}; hint: the built-in names begin with: {known}")]
    NoSuchBuiltin { name: String, known: String },
    #[error("the environment variable {variable}, used in {text:?}, is not set; hint: export {variable}=...")]
    Unset { variable: String, text: String },
    #[error("{text:?} opens a ${{ that is never closed or names no variable; hint: write ${{NAME}}")]
    BadVariable { text: String },
    #[error("no cache folder: neither XDG_CACHE_HOME nor HOME is set; hint: export XDG_CACHE_HOME=/some/folder")]
    NoCacheFolder,
    #[error("cannot unpack a built-in file to {}: {source}; hint: XDG_CACHE_HOME names the folder to use", path.display())]
    Unpack { path: PathBuf, source: std::io::Error },
}

/// The file or folder called `name` (see the table above).
///
/// # Errors
/// Not found: lists every place looked at. A built-in that cannot be unpacked.
pub fn resolve(name: &str) -> Result<PathBuf, HubError> {
    let environment = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    let name = expand_with(name, &environment)?;
    match name.strip_prefix(BUILTIN_PREFIX) {
        Some(inside) => unpack(inside, builtin_files(), &cache_folder(&environment)?),
        None => find(&name, hugging_face_cache(&environment)),
    }
}

/// Replaces every `${NAME}` by the environment variable.
///
/// # Errors
/// A variable that is not set, or a `${` without its `}`.
pub fn expand(text: &str) -> Result<String, HubError> {
    expand_with(text, &|variable| std::env::var_os(variable))
}

/// Where Hugging Face tools keep what they download on this machine, whether it exists or not; None without a home folder.
pub fn cache_dir() -> Option<PathBuf> {
    hugging_face_cache(&|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
}

/// Lookup of environment variables, so that tests need not change the process's own.
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn expand_with(text: &str, environment: Environment<'_>) -> Result<String, HubError> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        let bad = || HubError::BadVariable { text: text.to_owned() };
        let (variable, tail) = behind.split_once('}').ok_or_else(bad)?;
        if variable.is_empty() {
            return Err(bad());
        }
        let value = environment(variable).and_then(|value| value.into_string().ok());
        expanded.push_str(before);
        expanded.push_str(&value.ok_or_else(|| HubError::Unset { variable: variable.to_owned(), text: text.to_owned() })?);
        rest = tail;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn cache_folder(environment: Environment<'_>) -> Result<PathBuf, HubError> {
    environment("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(environment("HOME")?).join(".cache")))
        .ok_or(HubError::NoCacheFolder)
}

fn hugging_face_cache(environment: Environment<'_>) -> Option<PathBuf> {
    environment("HF_HUB_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(environment("HF_HOME")?).join("hub")))
        .or_else(|| Some(cache_folder(environment).ok()?.join("huggingface/hub")))
}

fn find(name: &str, hugging_face_cache: Option<PathBuf>) -> Result<PathBuf, HubError> {
    let local = PathBuf::from(name);
    if local.exists() {
        return Ok(local);
    }
    let mut looked = vec![local];
    if let (Some(cache), Some((repo, inside))) = (hugging_face_cache, repository(name)) {
        for kind in ["models", "datasets"] {
            let folder = cache.join(format!("{kind}--{repo}"));
            let found = snapshot(&folder).map(|snapshot| if inside.is_empty() { snapshot } else { snapshot.join(inside) });
            match found.filter(|path| path.exists()) {
                Some(path) => return Ok(path),
                None => looked.push(folder.join("snapshots").join("*").join(inside)),
            }
        }
    }
    let hint = "give a path that exists, a built-in (builtin:tiny/student), or fetch it first: hf download OWNER/NAME (--repo-type dataset for data); \
                HF_HUB_CACHE or HF_HOME says where that went";
    Err(HubError::NotFound { name: name.to_owned(), looked, hint })
}

/// ("owner--name", "path/inside") of a hub name; None where it cannot be one (absolute, `..`, one part only).
fn repository(name: &str) -> Option<(String, &str)> {
    if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let (owner, rest) = name.split_once('/')?;
    let (repo, inside) = rest.split_once('/').unwrap_or((rest, ""));
    (!owner.is_empty() && !repo.is_empty()).then(|| (format!("{owner}--{repo}"), inside))
}

/// The folder of revision `main`; where no ref says which one that is, the only snapshot there is.
fn snapshot(repository: &Path) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    if let Ok(commit) = std::fs::read_to_string(repository.join("refs/main")) {
        return Some(snapshots.join(commit.trim()));
    }
    let mut all = std::fs::read_dir(snapshots).ok()?.filter_map(Result::ok);
    all.next().filter(|_| all.next().is_none()).map(|only| only.path())
}

/// Unpacks the built-in file `inside`, or all files below it, and returns its path.
///
/// The folder is named after a digest of the contents, so versions do not meet. Every file is written beside its place and renamed, and one
/// that is there already is compared byte by byte: several processes at once, and a cache that somebody cleaned in part, both end well.
fn unpack(inside: &str, table: &[(&str, &[u8])], cache: &Path) -> Result<PathBuf, HubError> {
    let inside = inside.trim_end_matches('/');
    let is_wanted = |path: &str| path.strip_prefix(inside).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let files: Vec<_> = table.iter().filter(|(path, _)| is_wanted(path)).collect();
    if files.is_empty() || inside.is_empty() {
        let mut known: Vec<&str> = table.iter().map(|(path, _)| path.rsplit_once('/').map_or(*path, |(folder, _)| folder)).collect();
        known.sort_unstable();
        known.dedup();
        let known = if known.is_empty() { "(none)".to_owned() } else { known.join(", ") };
        return Err(HubError::NoSuchBuiltin { name: inside.to_owned(), known });
    }
    let mut digest = Sha256::new();
    for (path, contents) in &files {
        digest.update((path.len() as u64).to_le_bytes());
        digest.update(path);
        digest.update((contents.len() as u64).to_le_bytes());
        digest.update(contents);
    }
    let digest: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let root = cache.join("dgpo").join(format!("builtin-{digest}"));
    for (path, contents) in files {
        let path = root.join(path);
        write_once(&path, contents).map_err(|source| HubError::Unpack { path, source })?;
    }
    Ok(root.join(inside))
}

fn write_once(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    dgpo_models::files::write_file(path, contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [(&str, &[u8]); 3] =
        [("tiny/student/config.json", b"{}"), ("tiny/student/model.safetensors", b"\x00\x01"), ("tiny/questions.jsonl", b"q\n")];

    fn variables(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let pairs: Vec<(String, OsString)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
    }

    #[test]
    fn variables_in_braces_are_replaced() {
        let environment = variables(&[("A", "x y"), ("B", "${A}")]);
        assert_eq!(expand_with("${A}/${B}/$A", &environment).unwrap(), "x y/${A}/$A");
        assert!(expand_with("d/${NOT_SET}", &environment).unwrap_err().to_string().contains("variable NOT_SET"));
        assert!(expand_with("${A", &environment).is_err() && expand_with("${}", &environment).is_err());
    }

    #[test]
    fn the_caches_are_where_the_variables_say() {
        let hub = |pairs: &[(&str, &str)]| hugging_face_cache(&variables(pairs)).unwrap();
        assert_eq!(hub(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HOME", "/u")]), Path::new("/c"));
        assert_eq!(hub(&[("HF_HOME", "/h"), ("HOME", "/u")]), Path::new("/h/hub"));
        assert_eq!(hub(&[("HOME", "/u")]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(cache_folder(&variables(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/u")])).unwrap(), Path::new("/x"));
        assert!(cache_folder(&variables(&[])).is_err());
    }

    #[test]
    fn a_hub_name_is_found_through_refs_main_and_data_sets_too() {
        let cache = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = cache.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("models--Qwen--Q/refs/main", "abc\n");
        write("models--Qwen--Q/snapshots/abc/config.json", "{}");
        write("models--Qwen--Q/snapshots/old/config.json", "{}");
        write("datasets--P--nq/snapshots/only/train.parquet", "");
        let find = |name: &str| find(name, Some(cache.path().to_owned()));
        assert_eq!(find("Qwen/Q").unwrap(), cache.path().join("models--Qwen--Q/snapshots/abc"));
        assert_eq!(find("Qwen/Q/config.json").unwrap(), cache.path().join("models--Qwen--Q/snapshots/abc/config.json"));
        assert_eq!(find("P/nq").unwrap(), cache.path().join("datasets--P--nq/snapshots/only"));
        let error = find("Qwen/R").unwrap_err().to_string();
        for part in ["\n  Qwen/R\n", "models--Qwen--R", "datasets--Qwen--R", "hint: "] {
            assert!(error.contains(part), "{error}");
        }
        assert!(find("../P/nq").is_err() && find("P").is_err());
    }

    #[test]
    fn a_local_path_wins() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(resolve(&folder.path().display().to_string()).unwrap(), folder.path());
    }

    #[test]
    fn a_built_in_folder_is_unpacked_and_repaired() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack("tiny/student", &TABLE, cache.path()).unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"\x00\x01");
        assert!(!folder.join("../questions.jsonl").exists());
        std::fs::write(folder.join("model.safetensors"), b"\x00").unwrap();
        std::fs::remove_file(folder.join("config.json")).unwrap();
        assert_eq!(unpack("tiny/student/", &TABLE, cache.path()).unwrap(), folder);
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"\x00\x01");
        assert!(folder.join("config.json").exists());
    }

    #[test]
    fn a_built_in_file_is_unpacked_alone() {
        let cache = tempfile::tempdir().unwrap();
        let file = unpack("tiny/questions.jsonl", &TABLE, cache.path()).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), b"q\n");
        let error = unpack("tiny/stud", &TABLE, cache.path()).unwrap_err().to_string();
        assert!(error.contains("no built-in tiny/stud") && error.contains("tiny, tiny/student"), "{error}");
    }

    #[test]
    fn several_threads_can_unpack_the_same_files_at_once() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let folder = unpack("tiny", &TABLE, cache.path()).unwrap();
                    for (path, contents) in TABLE {
                        assert_eq!(std::fs::read(folder.join(path.strip_prefix("tiny/").unwrap())).unwrap(), contents);
                    }
                });
            }
        });
    }
}
