//! What a user relies on, tested from outside: the real binary in temporary folders, and the
//! library through its public functions.
//!
//! | module | holds |
//! |---|---|
//! | [`support`] | a small world of questions, passages and networks; running, killing and judging `dgpo` |
//! | [`resume`] | killed and interrupted runs go on as if nothing had happened |
//! | [`baselines`] | the other ways to distil and the other orders of phases: what they record, and that they resume |
//! | [`bad_input`] | broken files, recipes and disks: a clear error with a hint, and nothing lost |
//! | [`documents`] | what documents, help texts and hints tell somebody to type is understood; links lead somewhere |
//! | [`chat`] | chat templates of model folders; what the Python package transformers reads, where `DGPO_TRANSFORMERS` names it |
//! | [`cli`], [`index`] | every command, its help and its JSON |
//! | [`evaluate`] | evaluations, capabilities, comparisons |
//! | [`files`] | modes of files, and links that are not written through |
//! | [`fuzz`] | damaged files for every reader |
//! | [`grpo`] | groups of episodes, and runs without a critic |
//! | [`guards`] | runs that go wrong are stopped, or warned about |
//! | [`nan`] | a number that is none in a model, and what a step makes of it |
//! | [`conformance`] | the recorded reference numbers through `dgpo conformance` |
//! | `gpu`, `on_wgpu`, `on_cuda` | the same things on a graphics device, in builds with the features `wgpu` and `cuda` |
//! | [`portability`] | what `dgpo portability` and `dgpo bench` say of this machine |
//! | [`preflight`] | what is missing is told before anything starts, all at once; plans; commands that only play |
//! | [`outage`] | a retrieval server that goes away and comes back |
//! | [`power_cut`] | what is on the disk when the power goes |
//! | [`secrets`] | passwords in addresses reach the server and nothing else |
//! | [`steer`] | runs that go on longer or otherwise, and what is refused |
//! | [`runs`] | whole runs: the built-in recipe, reproducibility, a retrieval server that fails |
//! | [`real`] | real weights, questions, passages and episodes, where `DGPO_DATA_DIR` names them |
//! | [`recipes`] | every method of the paper on the tiny world, interrupted and resumed; what one run takes over from another |
//! | [`reproduce`] | all rows of the paper in miniature, and the page |
//! | [`report`], [`browser`] | reports of runs, in headless Chromium and in TensorBoard |
//! | [`properties`] | invariances of one training step |
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests show what they measured or skipped"
)]
mod bad_input;
mod baselines;
mod browser;
mod chat;
mod cli;
mod conformance;
mod documents;
mod evaluate;
mod files;
mod fuzz;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod grpo;
mod guards;
mod index;
mod nan;
#[cfg(feature = "cuda")]
mod on_cuda;
#[cfg(feature = "wgpu")]
mod on_wgpu;
mod outage;
mod portability;
mod power_cut;
mod preflight;
mod properties;
mod real;
mod recipes;
mod report;
mod reproduce;
mod resume;
mod runs;
mod secrets;
mod steer;
mod support;
