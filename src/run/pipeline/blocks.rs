//! Blocks of teacher episodes on disk: which of them are done.
//!
//! ```text
//! episodes/demos-000003.jsonl   what is kept of the block's episodes
//! episodes/demos-000003.json    how many were played, kept and lost to the retriever; written last
//! ```
//! A block is done where its counts are there, its file has the size they state, and it lost no
//! more episodes than `retriever.max_lost_share` allows: an empty file is a block of which nothing
//! was kept, and never one that an outage or a power cut left. Blocks are done in their order, so
//! everything after the first that is not is played again, which gives the same episodes.
//!
//! Blocks written before there were counts are done if they hold an episode, end with a whole line,
//! and the run's metrics say that the retriever failed none of their episodes.
use super::PipelineError;
use crate::{
    episodes::write_episodes,
    folder::run_dir::{RunDir, RunDirError},
};
use dgpo_core::{rollout::Episode, settings::Phase, trainer::metrics::RETRIEVER_FAILED};
use dgpo_models::files::write_file;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// demos-NNNNNN.json.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockCounts {
    pub n_played: usize,
    /// Those of them that asked the retriever something, answered or not.
    pub n_searched: usize,
    /// Those of them that were lost to it.
    pub n_lost: usize,
    /// Those that are in the block's file.
    pub n_kept: usize,
    /// Size of that file.
    pub n_bytes: u64,
}

impl BlockCounts {
    /// Of a block's episodes, before its file is written.
    pub(crate) fn of(played: &[Episode]) -> Self {
        let count =
            |is: &dyn Fn(&Episode) -> bool| played.iter().filter(|episode| is(episode)).count();
        Self {
            n_played: played.len(),
            n_searched: count(&Episode::has_searched),
            n_lost: count(&|episode| episode.lost_to().is_some()),
            ..Self::default()
        }
    }
}

/// The file of a block's kept episodes.
pub(crate) fn block_path(episodes_dir: &Path, block: usize) -> PathBuf {
    episodes_dir.join(format!("demos-{block:06}.jsonl"))
}

/// The file of its counts.
pub(crate) fn counts_path(episodes_dir: &Path, block: usize) -> PathBuf {
    block_path(episodes_dir, block).with_extension("json")
}

/// Writes a block; from here on it is done.
/// # Errors
/// If the disk fails.
pub(crate) fn write_block(
    run: &RunDir,
    block: usize,
    counts: BlockCounts,
    kept: &[Episode],
) -> Result<(), PipelineError> {
    let (path, beside) =
        (block_path(&run.episodes_dir(), block), counts_path(&run.episodes_dir(), block));
    write_episodes(&path, kept)?;
    let n_bytes = fs::metadata(&path).map_err(|source| PipelineError::Io { path, source })?.len();
    let text = serde_json::to_string(&BlockCounts { n_kept: kept.len(), n_bytes, ..counts })
        .expect("plain numbers")
        + "\n";
    write_file(&beside, text).map_err(|source| PipelineError::Io { path: beside, source })
}

/// The counts of a block that has some.
pub(crate) fn counts_of(run: &RunDir, block: usize) -> Option<BlockCounts> {
    serde_json::from_slice(&fs::read(counts_path(&run.episodes_dir(), block)).ok()?).ok()
}

/// The blocks at the beginning that need not be played again.
/// # Errors
/// If the metrics cannot be read.
pub(crate) fn n_blocks_done(run: &RunDir, max_lost_share: f64) -> Result<usize, RunDirError> {
    let mut metrics = None;
    let mut n_done = 0;
    while is_done(run, n_done, max_lost_share, &mut metrics)? {
        n_done += 1;
    }
    Ok(n_done)
}

/// `metrics` are read once, and only for a block without counts.
fn is_done(
    run: &RunDir,
    block: usize,
    max_lost_share: f64,
    metrics: &mut Option<Vec<Map<String, Value>>>,
) -> Result<bool, RunDirError> {
    let path = block_path(&run.episodes_dir(), block);
    let Ok(mut file) = File::open(&path) else { return Ok(false) };
    if counts_path(&run.episodes_dir(), block).is_file() {
        let is_whole =
            |counts: BlockCounts| file.metadata().is_ok_and(|file| file.len() == counts.n_bytes);
        let is_served =
            |counts: BlockCounts| counts.n_lost as f64 <= max_lost_share * counts.n_searched as f64;
        return Ok(
            counts_of(run, block).is_some_and(|counts| is_whole(counts) && is_served(counts))
        );
    }
    if !ends_with_a_line(&mut file) {
        return Ok(false);
    }
    let lines = match metrics {
        Some(lines) => lines,
        None => metrics.insert(run.read_metrics()?),
    };
    let is_of_block = |line: &&Map<String, Value>| {
        line.get("phase") == Some(&json!(Phase::Demos))
            && line.get("step") == Some(&json!(block + 1))
    };
    let failed =
        lines.iter().find(is_of_block).and_then(|line| line.get(RETRIEVER_FAILED)?.as_f64());
    Ok(failed.is_some_and(|failed| failed <= max_lost_share))
}

fn ends_with_a_line(file: &mut File) -> bool {
    let mut last = [0];
    file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).is_ok() && last == *b"\n"
}

/// The part of a message about `n_lost` episodes lost to the retriever.
pub(crate) fn lost_in_words(n_lost: usize) -> String {
    if n_lost == 0 { String::new() } else { format!(", {n_lost} lost to the retriever") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recipe;
    use dgpo_core::{rollout::Status, testing::drawn_episode};

    fn run() -> (tempfile::TempDir, RunDir) {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(root.path(), "a", &Recipe::default(), &json!({})).unwrap();
        (root, run)
    }

    fn done(run: &RunDir) -> usize {
        n_blocks_done(run, 0.0).unwrap()
    }

    #[test]
    fn a_block_is_done_with_its_counts_even_if_nothing_of_it_was_kept() {
        let (_root, run) = run();
        let episodes = [drawn_episode(), drawn_episode()];
        write_block(&run, 0, BlockCounts::of(&episodes), &episodes[..1]).unwrap();
        write_block(&run, 1, BlockCounts::of(&episodes), &[]).unwrap();
        assert_eq!(done(&run), 2);
        let counts = counts_of(&run, 0).unwrap();
        assert_eq!(
            (counts.n_played, counts.n_searched, counts.n_lost, counts.n_kept),
            (2, 2, 0, 1)
        );
    }

    #[test]
    fn a_block_that_a_power_cut_left_empty_cut_or_without_counts_is_not_done() {
        let (_root, run) = run();
        let episodes = [drawn_episode(), drawn_episode()];
        let path = block_path(&run.episodes_dir(), 0);
        for damage in [
            &|| fs::write(&path, "") as std::io::Result<()>,
            &|| fs::write(&path, &fs::read(&path)?[..100]),
            &|| fs::remove_file(&path),
            &|| fs::write(counts_path(&run.episodes_dir(), 0), ""),
            &|| fs::remove_file(counts_path(&run.episodes_dir(), 0)),
        ] as [&dyn Fn() -> std::io::Result<()>; 5]
        {
            write_block(&run, 0, BlockCounts::of(&episodes), &episodes).unwrap();
            assert_eq!(done(&run), 1);
            damage().unwrap();
            assert_eq!(done(&run), 0);
        }
    }

    #[test]
    fn a_block_that_lost_more_than_is_allowed_is_not_done() {
        let (_root, run) = run();
        let lost = Episode {
            status: Status::RetrieverFailed("503".into()),
            searches: Vec::new(),
            ..drawn_episode()
        };
        let episodes = [lost, drawn_episode(), drawn_episode(), drawn_episode()];
        write_block(&run, 0, BlockCounts::of(&episodes), &episodes[1..]).unwrap();
        assert_eq!((done(&run), n_blocks_done(&run, 0.25).unwrap()), (0, 1));
    }

    #[test]
    fn a_block_behind_one_that_is_not_done_is_played_again_too() {
        let (_root, run) = run();
        for block in [0, 2] {
            write_block(&run, block, BlockCounts::of(&[drawn_episode()]), &[drawn_episode()])
                .unwrap();
        }
        assert_eq!(done(&run), 1);
    }

    #[test]
    fn an_old_block_is_done_if_the_metrics_say_that_nothing_was_lost() {
        let (_root, run) = run();
        let mut log = run.metrics(None).unwrap();
        for (block, failed) in [(0, 0.0), (1, 0.0), (2, 0.5)] {
            write_episodes(&block_path(&run.episodes_dir(), block), &[drawn_episode()]).unwrap();
            log.append(Phase::Demos, block + 1, &[(RETRIEVER_FAILED, failed)]).unwrap();
        }
        assert_eq!(done(&run), 2);
        fs::write(block_path(&run.episodes_dir(), 1), "").unwrap();
        assert_eq!(done(&run), 1);
        fs::write(block_path(&run.episodes_dir(), 0), "{\"half\": ").unwrap();
        assert_eq!(done(&run), 0);
    }
}
