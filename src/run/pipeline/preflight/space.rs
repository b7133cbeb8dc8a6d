//! Is there room on the disk for what will be written?
use super::{PlannedWork, ProblemList, files};
use crate::{
    config::{
        Recipe,
        plan::{index_bytes, plan},
        shapes::Shapes,
    },
    folder::run_dir::RUNS_DIR,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub(super) fn check(work: PlannedWork<'_>, recipe: &Recipe, found: &mut ProblemList) {
    let mut shapes = Shapes::resolve(recipe).0;
    shapes.n_passages = files::n_passages(recipe);
    let (folder, needed, key, what) = match work {
        PlannedWork::Train(run) => {
            let needed = plan(recipe, &shapes)
                .disk
                .iter()
                .map(|item| item.size_bytes)
                .fold(0, usize::saturating_add);
            (
                run.map_or(PathBuf::from(RUNS_DIR), |run| run.path().to_owned()),
                needed,
                "run.keep",
                "checkpoints and index",
            )
        }
        PlannedWork::Index(out) => {
            let (Some(encoder), Some(n)) = (&shapes.encoder, shapes.n_passages) else { return };
            let needed = index_bytes(
                n,
                encoder.hidden_size,
                files::has_graph(recipe, n),
                recipe.retriever.hnsw_m,
            );
            (out.to_owned(), needed, "--out", "vectors and links")
        }
        PlannedWork::Evaluate | PlannedWork::Ask | PlannedWork::Demos => return,
    };
    if let Some(free) = free_bytes(&folder) {
        compare(needed as u64, free, size_of(&folder), &folder, (key, what), found);
    }
}

fn compare(
    needed: u64,
    free: u64,
    present: u64,
    folder: &Path,
    (key, what): (&'static str, &str),
    found: &mut ProblemList,
) {
    if needed <= free.saturating_add(present) {
        return;
    }
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let message =
        format!("{what} take {}, and {} are free in {}", gb(needed), gb(free), folder.display());
    let hint = match key {
        "run.keep" => "--set run.keep=1, or make room (df -h . shows how much there is)",
        _ => "make room, or name a folder of another disk (df -h shows them)",
    };
    found.push(key, message, hint);
}

/// Bytes that this user may still write in the nearest folder that exists; None where the system
/// does not say.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let there = std::path::absolute(folder).ok()?;
    let there = there.ancestors().find(|folder| folder.is_dir())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Bytes of the files below a folder: they need not be written again.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_beyond_the_free_space_is_told_and_what_is_there_already_counts() {
        let told = |needed, free, present| {
            let mut found = ProblemList::default();
            compare(
                needed,
                free,
                present,
                Path::new("runs"),
                ("run.keep", "checkpoints and index"),
                &mut found,
            );
            found.problems.pop().map(|problem| problem.to_string())
        };
        let text = told(3_000_000_000, 1_000_000_000, 0).unwrap();
        assert!(
            text.starts_with(
                "run.keep: checkpoints and index take 3.0 GB, and 1.0 GB are free in runs; hint: \
                 --set run.keep=1"
            ),
            "{text}"
        );
        assert_eq!(told(3_000_000_000, 1_000_000_000, 2_000_000_000), None);
    }

    #[cfg(unix)]
    #[test]
    fn free_space_is_known_of_folders_that_are_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("not/yet")).unwrap() > 0);
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), [0; 1000]).unwrap();
        fs::write(folder.path().join("c"), [0; 24]).unwrap();
        assert_eq!(size_of(folder.path()), 1024);
    }
}
