//! The paper's experiment at tiny scale: which runs it takes, what came out of them, and the page
//! that sets it beside the paper's numbers.
//!
//! | file | answers |
//! |---|---|
//! | [`rows`] | which runs are made, in which order, and which of them begin with what another one has done |
//! | [`results`] | run directories of a seed -> one small JSON file, which is all the page is made from |
//! | [`paper`] | the paper's numbers, typed from its tables |
//! | [`tables`] | ours beside the paper's |
//! | [`orderings`] | which of the paper's orderings hold here, which do not, and which are within noise |
//! | [`forest`] | those orderings as a picture |
//! | [`figures`] | courses of training |
//! | [`forecast`] | how long the rest will take |
//! | [`page`] | reproduction.md and reproduction.html |
//!
//! Nothing here trains: the command line makes the runs, each an ordinary one that `dgpo train
//! --resume` and `dgpo report` know.
pub mod figures;
pub mod forecast;
pub mod forest;
pub mod orderings;
pub mod page;
pub mod paper;
pub mod results;
pub mod rows;
pub mod tables;

use dgpo_run::{data::DataError, folder::run_dir::RunDirError};
use std::{io, path::PathBuf};

/// Why results cannot be gathered, read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReproduceError {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("the run {} has no evaluation of {model}; hint: remove its folder, and it is made \
             again", run.display())]
    NotEvaluated { run: PathBuf, model: &'static str },
    #[error("cannot {verb} {}: {source}; hint: check the path, free space and permissions", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is damaged or of another version: {source}; hint: remove it, and make the seed's \
             results again", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{} holds the results of seed {seed}; hint: a seed's results are counted once, under \
             their own name: seed-{seed}.json", path.display())]
    OtherSeed { path: PathBuf, seed: u64 },
    #[error("{} holds no results (seed-N.json); hint: `dgpo reproduce --seed 0` makes some", .0.display())]
    NoResults(PathBuf),
}
