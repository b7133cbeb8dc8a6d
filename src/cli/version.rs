//! Which program this is: version, commit, features, backends.
//!
//! The commit is told by `cargo xtask`, which asks git before it builds; `main.rs` alone reads it,
//! so that another commit does not build the library anew. A build without git or without `cargo
//! xtask` says that it is unknown.
use serde::Serialize;
use std::sync::OnceLock;

/// Facts that the binary knows of its source.
static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// Everything that `--version` says.
#[derive(Clone, Debug, Serialize)]
pub struct Version {
    pub version: &'static str,
    /// With `-changed` where the source differed from it.
    pub commit: Option<&'static str>,
    /// Of Cargo, beyond the default.
    pub features: Vec<&'static str>,
    /// What `--device` may name.
    pub backends: Vec<&'static str>,
}

/// Tells the commit that the binary was built from; the first one counts.
pub(super) fn tell_commit(commit: Option<&'static str>) {
    if let Some(commit) = commit.filter(|commit| !commit.is_empty()) {
        COMMIT.get_or_init(|| commit);
    }
}

impl Version {
    pub fn of_this_program() -> Self {
        let named = |features: &[(bool, &'static str)]| {
            features.iter().filter(|(is_in, _)| *is_in).map(|(_, name)| *name).collect()
        };
        let (wgpu, cuda) = ((cfg!(feature = "wgpu"), "wgpu"), (cfg!(feature = "cuda"), "cuda"));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT.get().copied(),
            features: named(&[wgpu, cuda, (cfg!(feature = "autotune"), "autotune")]),
            backends: named(&[(true, "cpu"), wgpu, cuda]),
        }
    }

    /// `0.1.0 (commit 590e01e2a3b4)`
    pub fn in_short(&self) -> String {
        format!("{} (commit {})", self.version, self.commit.unwrap_or("unknown"))
    }

    /// A line each.
    pub fn in_full(&self) -> String {
        let listed =
            |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let (features, backends) = (listed(&self.features), listed(&self.backends));
        format!(
            "{}\ncommit {}\nfeatures {features}\nbackends {backends}",
            self.version,
            self.commit.unwrap_or("unknown")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_git_says_so_and_one_with_it_names_the_commit() {
        let unknown =
            Version { version: "0.1.0", commit: None, features: vec![], backends: vec!["cpu"] };
        assert_eq!(unknown.in_short(), "0.1.0 (commit unknown)");
        let known = Version {
            commit: Some("590e01e2a3b4-changed"),
            features: vec!["wgpu"],
            backends: vec!["cpu", "wgpu"],
            ..unknown
        };
        assert_eq!(
            known.in_full(),
            "0.1.0\ncommit 590e01e2a3b4-changed\nfeatures wgpu\nbackends cpu, wgpu"
        );
    }
}
