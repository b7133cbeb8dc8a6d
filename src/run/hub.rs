//! Look-up of a model or data set by its name.
//!
//! | name | place |
//! |---|---|
//! | an existing path | that file or folder |
//! | `builtin:tiny/student` | part of the binary, unpacked into the user's cache folder |
//! | `owner/name`, `owner/name/file` | the Hugging Face cache: `models--owner--name` or `datasets--owner--name`, revision `main` |
//! | `owner/name@rev`, `owner/name@rev/file` | the same at another revision: a branch, a tag, a pull request (`refs/pr/1`), or a whole commit hash |
//!
//! `${NAME}` in a name is replaced by the environment variable first, and a leading `~` by the home
//! folder. Nothing is downloaded.
//!
//! # Source
//! huggingface_hub's cache layout: refs/REVISION holds the commit, snapshots/COMMIT the files; its
//! `constants.py` for the order of the variables.

pub mod builtin;

pub use builtin::builtin_files;
use sha2::{Digest, Sha256};
use std::{
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

const BUILTIN_PREFIX: &str = "builtin:";
/// Ends of file names, which names of repositories do not have.
const DATA_EXTENSIONS: [&str; 6] = [".jsonl", ".json", ".gz", ".parquet", ".toml", ".zst"];

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("cannot find {name}; looked at:{}\nhint: {hint}", looked.iter().map(|path| format!("\n  {}", path.display())).collect::<String>())]
    NotFound { name: String, looked: Vec<PathBuf>, hint: String },
    #[error("there is no built-in {name}; hint: the built-in names begin with: {known}")]
    NoSuchBuiltin { name: String, known: String },
    #[error(
        "the environment variable {variable}, used in {text:?}, is not set; hint: set it, or write \
         the path out"
    )]
    Unset { variable: String, text: String },
    #[error(
        "{text:?} opens a ${{ that is never closed or names no variable; hint: write ${{NAME}}"
    )]
    BadVariable { text: String },
    #[error(
        "no cache folder: neither XDG_CACHE_HOME nor HOME is set; hint: export \
         XDG_CACHE_HOME=/some/folder"
    )]
    NoCacheFolder,
    #[error("cannot unpack a built-in file to {}: {source}; hint: XDG_CACHE_HOME names the folder \
             to use", path.display())]
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

/// Replaces every `${NAME}` by the environment variable, and a leading `~` or `~/` by the home
/// folder.
///
/// # Errors
/// A variable that is not set or empty (HOME for `~`), or a `${` without its `}`.
pub fn expand(text: &str) -> Result<String, HubError> {
    expand_with(text, &|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
}

/// Folder in which Hugging Face tools keep what they download on this machine, even if it does not
/// exist; None without a home folder.
pub fn cache_dir() -> Option<PathBuf> {
    hugging_face_cache(&|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
}

/// Lookup of environment variables, so that tests need not change the process's own.
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn expand_with(text: &str, environment: Environment<'_>) -> Result<String, HubError> {
    let value = |variable: &str| {
        let value = environment(variable).and_then(|value| value.into_string().ok());
        value
            .ok_or_else(|| HubError::Unset { variable: variable.to_owned(), text: text.to_owned() })
    };
    let mut expanded = String::with_capacity(text.len());
    // `~name`, somebody else's home, stays as it is: it may be a folder's name.
    let mut rest = match text.strip_prefix('~') {
        Some(inside) if inside.is_empty() || inside.starts_with('/') => {
            expanded.push_str(value("HOME")?.trim_end_matches('/'));
            inside
        }
        _ => text,
    };
    while let Some((before, behind)) = rest.split_once("${") {
        let bad = || HubError::BadVariable { text: text.to_owned() };
        let (variable, tail) = behind.split_once('}').ok_or_else(bad)?;
        if variable.is_empty() {
            return Err(bad());
        }
        expanded.push_str(before);
        expanded.push_str(&value(variable)?);
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

/// HF_HUB_CACHE, its old name HUGGINGFACE_HUB_CACHE, HF_HOME/hub, then the user's cache folder; `~`
/// and `${NAME}` in them are replaced.
fn hugging_face_cache(environment: Environment<'_>) -> Option<PathBuf> {
    let folder = |variable: &str| {
        let value = environment(variable)?;
        Some(
            value
                .to_str()
                .and_then(|text| expand_with(text, environment).ok())
                .map_or_else(|| value.into(), PathBuf::from),
        )
    };
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(folder("HF_HOME")?.join("hub")))
        .or_else(|| Some(cache_folder(environment).ok()?.join("huggingface/hub")))
}

fn find(name: &str, hugging_face_cache: Option<PathBuf>) -> Result<PathBuf, HubError> {
    let local = PathBuf::from(name);
    if local.exists() {
        return Ok(local);
    }
    let mut looked = vec![local];
    let hub_name = HubName::parse(name);
    if let (Some(cache), Some(HubName { owner, repo, revision, inside })) =
        (hugging_face_cache, hub_name)
    {
        for kind in ["models", "datasets"] {
            let folder = cache.join(format!("{kind}--{owner}--{repo}"));
            let found = snapshot(&folder, revision)
                .map(|snapshot| if inside.is_empty() { snapshot } else { snapshot.join(inside) });
            match found.filter(|path| path.exists()) {
                Some(path) => return Ok(path),
                None => {
                    looked.push(folder.join("snapshots").join(revision.unwrap_or("*")).join(inside))
                }
            }
        }
    }
    Err(HubError::NotFound { name: name.to_owned(), looked, hint: not_found_hint(hub_name) })
}

fn not_found_hint(name: Option<HubName<'_>>) -> String {
    let local = "give a path that exists or a built-in (builtin:tiny/student)";
    match name {
        // `data/train.jsonl` is a file that is not there, not something to fetch.
        Some(HubName { repo, inside: "", .. })
            if DATA_EXTENSIONS.iter().any(|extension| repo.ends_with(extension)) =>
        {
            "give a path that exists".to_owned()
        }
        Some(HubName { owner, repo, revision, .. }) => {
            let revision =
                revision.map(|revision| format!(" --revision {revision}")).unwrap_or_default();
            format!(
                "{local}, or fetch it: hf download {owner}/{repo}{revision} (behind it --repo-type \
                 dataset for a data set); HF_HUB_CACHE or HF_HOME says where that went"
            )
        }
        None => local.to_owned(),
    }
}

/// A name in the Hugging Face cache: `owner/repo`, `owner/repo@revision`, either with `/inside`
/// after it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct HubName<'a> {
    owner: &'a str,
    repo: &'a str,
    revision: Option<&'a str>,
    inside: &'a str,
}

impl<'a> HubName<'a> {
    /// None where it cannot be one (absolute, `..`, one part only, an empty revision).
    fn parse(name: &'a str) -> Option<Self> {
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        let (owner, rest) = name.split_once('/')?;
        let (repo, inside) = rest.split_once('/').unwrap_or((rest, ""));
        let (repo, revision) = match repo.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (repo, None),
        };
        // Hugging Face's names of pull requests are the only revisions with a slash that are usual.
        let (revision, inside) = match (revision, inside.strip_prefix("pr/")) {
            (Some("refs"), Some(rest)) => {
                let number = &rest[..rest.find('/').unwrap_or(rest.len())];
                let at = name.len() - rest.len() + number.len();
                let start = owner.len() + repo.len() + 2;
                (Some(&name[start..at]), name[at..].trim_start_matches('/'))
            }
            _ => (revision, inside),
        };
        let is_named = !owner.is_empty()
            && !repo.is_empty()
            && revision.is_none_or(|revision| revision.split('/').all(is_one_name));
        is_named.then_some(Self { owner, repo, revision, inside })
    }
}

/// True if a text is the name of one file in a folder, and of nothing elsewhere.
fn is_one_name(text: &str) -> bool {
    let mut parts = Path::new(text).components();
    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

/// The folder of a revision: the commit that a ref of this name holds, or the commit itself.
/// Without a revision that is `main`; where no ref says which one that is, the only snapshot there
/// is.
fn snapshot(repository: &Path, revision: Option<&str>) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    let named =
        std::fs::read_to_string(repository.join("refs").join(revision.unwrap_or("main"))).ok();
    if let Some(commit) = named.as_deref().map(str::trim).filter(|commit| is_one_name(commit)) {
        return Some(snapshots.join(commit));
    }
    if let Some(commit) = revision {
        return Some(snapshots.join(commit));
    }
    let mut all = std::fs::read_dir(snapshots).ok()?.filter_map(Result::ok);
    all.next().filter(|_| all.next().is_none()).map(|only| only.path())
}

/// Unpacks the built-in file `inside`, or all files below it, and returns its path.
///
/// The folder is named after a digest of the contents, so versions do not meet. Every file is
/// written beside its place and renamed, and one that is there already is compared byte by byte:
/// several processes at once, and a cache that somebody cleaned in part, both end well.
fn unpack(inside: &str, table: &[(&str, &[u8])], cache: &Path) -> Result<PathBuf, HubError> {
    let inside = inside.trim_end_matches('/');
    let is_wanted = |path: &str| {
        path.strip_prefix(inside).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let files: Vec<_> = table.iter().filter(|(path, _)| is_wanted(path)).collect();
    if files.is_empty() || inside.is_empty() {
        let mut known: Vec<&str> = table
            .iter()
            .map(|(path, _)| path.rsplit_once('/').map_or(*path, |(folder, _)| folder))
            .collect();
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
    let digest: String =
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
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

    const TABLE: [(&str, &[u8]); 3] = [
        ("tiny/student/config.json", b"{}"),
        ("tiny/student/model.safetensors", b"\x00\x01"),
        ("tiny/questions.jsonl", b"q\n"),
    ];

    fn variables(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let pairs: Vec<(String, OsString)> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
    }

    #[test]
    fn variables_in_braces_are_replaced() {
        let environment = variables(&[("A", "x y"), ("B", "${A}")]);
        assert_eq!(expand_with("${A}/${B}/$A", &environment).unwrap(), "x y/${A}/$A");
        assert!(
            expand_with("d/${NOT_SET}", &environment)
                .unwrap_err()
                .to_string()
                .contains("variable NOT_SET")
        );
        assert!(
            expand_with("${A", &environment).is_err() && expand_with("${}", &environment).is_err()
        );
    }

    #[test]
    fn a_leading_tilde_is_the_home_folder() {
        let environment = variables(&[("HOME", "/u/me/"), ("A", "x")]);
        for (text, expected) in [
            ("~", "/u/me"),
            ("~/d/${A}", "/u/me/d/x"),
            ("d/~/e", "d/~/e"),
            ("~you/d", "~you/d"),
            ("d~", "d~"),
        ] {
            assert_eq!(expand_with(text, &environment).unwrap(), expected);
        }
        assert!(
            expand_with("~/d", &variables(&[])).unwrap_err().to_string().contains("variable HOME")
        );
    }

    #[test]
    fn the_caches_are_where_the_variables_say() {
        let hub = |pairs: &[(&str, &str)]| hugging_face_cache(&variables(pairs)).unwrap();
        assert_eq!(
            hub(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HOME", "/u")]),
            Path::new("/c")
        );
        let old = ("HUGGINGFACE_HUB_CACHE", "/old");
        assert_eq!(hub(&[("HF_HUB_CACHE", "/c"), old]), Path::new("/c"));
        assert_eq!(hub(&[("HF_HOME", "/h"), old]), Path::new("/old"));
        assert_eq!(hub(&[("HF_HOME", "/h"), ("HOME", "/u")]), Path::new("/h/hub"));
        assert_eq!(hub(&[("HF_HOME", "~/h"), ("HOME", "/u")]), Path::new("/u/h/hub"));
        assert_eq!(hub(&[("HOME", "/u")]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(
            cache_folder(&variables(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/u")])).unwrap(),
            Path::new("/x")
        );
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
        assert_eq!(
            find("Qwen/Q/config.json").unwrap(),
            cache.path().join("models--Qwen--Q/snapshots/abc/config.json")
        );
        assert_eq!(find("P/nq").unwrap(), cache.path().join("datasets--P--nq/snapshots/only"));
        let error = find("Qwen/R").unwrap_err().to_string();
        for part in ["\n  Qwen/R\n", "models--Qwen--R", "datasets--Qwen--R", "hint: "] {
            assert!(error.contains(part), "{error}");
        }
        assert!(find("../P/nq").is_err() && find("P").is_err());
    }

    #[test]
    fn a_revision_is_a_branch_or_a_commit() {
        let cache = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = cache.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let snapshots = cache.path().join("models--Qwen--Q/snapshots");
        write("models--Qwen--Q/refs/main", "abc");
        write("models--Qwen--Q/refs/v1.0", "def\n");
        write("models--Qwen--Q/refs/away", "../../../elsewhere");
        write("models--Qwen--Q/refs/refs/pr/7", "fed");
        for commit in ["abc", "def", "123", "fed"] {
            write(&format!("models--Qwen--Q/snapshots/{commit}/config.json"), "{}");
        }
        let find = |name: &str| find(name, Some(cache.path().to_owned()));
        for (name, expected) in [
            ("Qwen/Q", "abc"),
            ("Qwen/Q@main", "abc"),
            ("Qwen/Q@v1.0", "def"),
            ("Qwen/Q@123", "123"),
        ] {
            assert_eq!(find(name).unwrap(), snapshots.join(expected), "{name}");
        }
        assert_eq!(find("Qwen/Q@v1.0/config.json").unwrap(), snapshots.join("def/config.json"));
        assert_eq!(find("Qwen/Q@refs/pr/7").unwrap(), snapshots.join("fed"));
        assert_eq!(
            find("Qwen/Q@refs/pr/7/config.json").unwrap(),
            snapshots.join("fed/config.json")
        );
        let error = find("Qwen/Q@v2").unwrap_err().to_string();
        assert!(
            error.contains("snapshots/v2") && error.contains("hf download Qwen/Q --revision v2 "),
            "{error}"
        );
        for name in [
            "Qwen/Q@",
            "Qwen/Q@refs/pr/",
            "Qwen/Q@refs/pr/8",
            "Qwen/Q@..",
            "Qwen/Q@.",
            "Qwen/Q@away",
            "Qwen/@123",
        ] {
            assert!(find(name).is_err(), "{name}");
        }
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
        assert!(
            error.contains("no built-in tiny/stud") && error.contains("tiny, tiny/student"),
            "{error}"
        );
    }

    #[test]
    fn several_threads_can_unpack_the_same_files_at_once() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let folder = unpack("tiny", &TABLE, cache.path()).unwrap();
                    for (path, contents) in TABLE {
                        assert_eq!(
                            std::fs::read(folder.join(path.strip_prefix("tiny/").unwrap()))
                                .unwrap(),
                            contents
                        );
                    }
                });
            }
        });
    }
}
