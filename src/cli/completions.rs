//! `dgpo completions SHELL`: what a shell needs to complete commands and flags.
use super::{Ended, output};
use clap_complete::Shell;

/// Print completions for a shell: commands, flags, and the values they take.
///
/// For bash they go into the folder where it looks for them.
///
/// Example: dgpo completions bash > ~/.local/share/bash-completion/completions/dgpo
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell: bash, elvish, fish, powershell or zsh.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), super::NAME, &mut script);
    output::data(&String::from_utf8(script)?)?;
    Ok(Ended::Done)
}
