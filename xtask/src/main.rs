//! `cargo xtask VERB …`: one entry to everything in the workspace, built in seconds from the standard library alone.
//!
//! Verbs of its own check the source; every other verb is a `dgpo` command: `dgpo` is built in release and takes the process over, so Ctrl-C and the
//! exit code are its own. Tests run in release as well: they share every compiled dependency with `cargo xtask train`.
mod driver;
mod tidy;

use std::{
    env,
    path::Path,
    process::{Command, ExitCode},
};

const HELP: &str = "\
Usage: cargo xtask VERB [ARGUMENTS]

Commands of dgpo (built in release, then run; `cargo xtask VERB --help` explains one):
  train        teacher episodes, KD, DGPO and evaluation; without arguments the built-in tiny recipe on the CPU
  eval         evaluate a model on question files
  ask          one question, played step by step
  demos        episodes of the teacher
  index        build | search | info: passages made searchable
  data         tiny: make the files of the built-in world anew
  model        info | export: look into a model folder, or write it in another dtype
  runs         list | show | compare: what was run, what came out, and what two runs differ in
  report       a run as report.html, report.md and TensorBoard events
  reproduce    every row of the paper's tables on the tiny world, and a page with the paper's numbers beside them; --seed N, --render
  plan         the resolved recipe, its steps, tokens and memory; starts nothing
  doctor       check the machine
  conformance  compare with recorded reference numbers
  portability  every operation and a training step on this machine's CPU or GPU: whether they work and how fast
  bench        kernels | step | rollout: measured beside plain operations, matrix products and PyTorch

Commands of its own:
  test         tidy, then cargo test --release --workspace, then test-wgpu where a graphics driver is installed; more arguments go to cargo test,
               and then the tests on wgpu are left out
  test-wgpu    the kernels, the recorded references and a small run through wgpu; arguments are names of tests
               (a software driver will do, Debian: mesa-vulkan-drivers; DGPO_REQUIRE_WGPU=1 makes its absence a failure)
  test-cuda    the same on a CUDA device, where there is one (DGPO_REQUIRE_CUDA=1 makes its absence a failure)
  tidy         layers, file lengths, printing, names of tests on a GPU
  check-gpu    clippy with the backends wgpu and cuda built in; needs neither GPU nor toolkit
  ci           format, clippy, tidy, tests, check-gpu

  --features F  build dgpo with backends: wgpu, cuda
";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.is_empty() || matches!(arguments[0].as_str(), "-h" | "--help" | "help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let verb = arguments.remove(0);
    let is_sound = match verb.as_str() {
        "tidy" => tidy(),
        "test" => test(&arguments),
        "test-wgpu" => test_wgpu(&arguments),
        "test-cuda" => test_gpu("cuda", &arguments),
        "check-gpu" => check_gpu(),
        "ci" => format() && clippy() && test(&arguments) && check_gpu(),
        _ => return dgpo(verb, arguments),
    };
    if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The workspace's folder, whatever the current one is.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn tidy() -> bool {
    match tidy::check(root()) {
        Ok(problems) if problems.is_empty() => {
            eprintln!("tidy: nothing to report");
            true
        }
        Ok(problems) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            eprintln!("tidy: {} problems", problems.len());
            false
        }
        Err(error) => {
            eprintln!("error: tidy cannot read the source: {error}");
            false
        }
    }
}

fn format() -> bool {
    succeeds(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> bool {
    succeeds(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// One pass over both backends: they share most of what there is to compile.
fn check_gpu() -> bool {
    succeeds(cargo().args(["clippy", "--workspace", "--all-targets", "--features", "wgpu,cuda", "--", "-D", "warnings"]))
}

/// All are run, whatever the first one says. Arguments may name single tests of the CPU build, so they leave out the tests on wgpu; flags of cargo do not.
fn test(arguments: &[String]) -> bool {
    let on_cpu = tidy() & succeeds(cargo().args(["test", "--release", "--workspace"]).args(arguments));
    let is_whole = arguments.iter().all(|argument| argument == "--no-fail-fast");
    on_cpu & (!is_whole || test_wgpu(&[]))
}

/// Building these tests takes minutes, so a driver is looked for first.
fn test_wgpu(names: &[String]) -> bool {
    let is_required = env::var_os("DGPO_REQUIRE_WGPU").is_some_and(|value| value == "1");
    if !driver::is_installed() {
        let hint = "hint: the graphics card's Vulkan driver, or a software one (Debian: apt-get install mesa-vulkan-drivers libvulkan1)";
        match is_required {
            true => eprintln!("error: DGPO_REQUIRE_WGPU=1, and no Vulkan driver is installed; {hint}"),
            false => eprintln!("test-wgpu: left out, no Vulkan driver is installed; {hint}"),
        }
        return !is_required;
    }
    test_gpu("wgpu", names)
}

/// The tests whose path has `on_` and the backend's name in it, or those named. All packages are selected as for `--features`, so that the dependencies are
/// the same, but only the targets that have such tests.
fn test_gpu(backend: &str, names: &[String]) -> bool {
    let mut tests = cargo();
    tests.args(["test", "--release", "--workspace", "--features", backend, "--lib", "--test", "integration", "--no-fail-fast"]);
    // Most of this build is code generation for `dgpo` over the GPU's backend, on one core; these tests spend their time in the driver.
    tests.args(["--config", "profile.release.package.dgpo.opt-level=1", "--"]);
    if names.is_empty() {
        tests.arg(format!("on_{backend}"));
    }
    succeeds(tests.args(names))
}

fn succeeds(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("error: cannot run {}: {error}", command.get_program().display());
            false
        }
    }
}

/// Builds `dgpo` and runs `dgpo verb arguments`.
fn dgpo(verb: String, mut arguments: Vec<String>) -> ExitCode {
    let features = match take_features(&mut arguments) {
        Ok(features) => features,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    // Said to cargo as well: its configuration may name another folder.
    let target = root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let mut build = cargo();
    build.args(["build", "--release", "--package", "dgpo", "--target-dir"]).arg(&target);
    if let Some(features) = &features {
        build.args(["--features", features]);
    }
    if !succeeds(&mut build) {
        return ExitCode::FAILURE;
    }
    let mut program = Command::new(target.join("release").join(format!("dgpo{}", env::consts::EXE_SUFFIX)));
    take_over(program.arg(verb).args(arguments))
}

/// Removes `--features F` (or `--features=F`), which is for the build; what stands behind `--` is left alone.
fn take_features(arguments: &mut Vec<String>) -> Result<Option<String>, String> {
    let end = arguments.iter().position(|a| a == "--").unwrap_or(arguments.len());
    let Some(at) = arguments[..end].iter().position(|a| a == "--features" || a.starts_with("--features=")) else { return Ok(None) };
    let first = arguments.remove(at);
    if let Some((_, features)) = first.split_once('=') {
        return Ok(Some(features.to_owned()));
    }
    match arguments.get(at) {
        Some(features) if !features.starts_with('-') => Ok(Some(arguments.remove(at))),
        _ => Err("--features needs a value; hint: --features wgpu or --features cuda".to_owned()),
    }
}

/// Becomes the program where the system can do that.
#[cfg(unix)]
fn take_over(program: &mut Command) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let error = program.exec();
    eprintln!("error: cannot run {}: {error}", program.get_program().display());
    ExitCode::FAILURE
}

#[cfg(not(unix))]
fn take_over(program: &mut Command) -> ExitCode {
    match program.status() {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: cannot run {}: {error}", program.get_program().display());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features_of(arguments: &[&str]) -> (Result<Option<String>, String>, Vec<String>) {
        let mut arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        (take_features(&mut arguments), arguments)
    }

    #[test]
    fn features_are_for_the_build_and_the_rest_for_dgpo() {
        let (features, rest) = features_of(&["--set", "a=1", "--features", "wgpu,cuda", "--json"]);
        assert_eq!((features, rest), (Ok(Some("wgpu,cuda".into())), vec!["--set".into(), "a=1".into(), "--json".into()]));
        assert_eq!(features_of(&["--features=cuda"]), (Ok(Some("cuda".into())), vec![]));
        assert_eq!(features_of(&["--json"]), (Ok(None), vec!["--json".into()]));
    }

    #[test]
    fn features_without_a_value_are_an_error() {
        assert!(features_of(&["--features"]).0.is_err());
        assert!(features_of(&["--features", "--json"]).0.is_err());
    }

    #[test]
    fn what_stands_behind_two_dashes_is_left_alone() {
        assert_eq!(features_of(&["--", "--features", "x"]).0, Ok(None));
    }
}
