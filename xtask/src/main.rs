//! `cargo xtask VERB …`: one entry to everything in the workspace, built in seconds from the
//! standard library alone.
//!
//! Verbs of its own check the source; every other verb is a `dgpo` command: `dgpo` is built in
//! release and takes the process over, so Ctrl-C and the exit code are its own. Tests run in
//! release as well: they share every compiled dependency with `cargo xtask train`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command prints")]
mod citations;
mod driver;
mod launcher;
mod tidy;

use launcher::{HELP, Own, Task};
use std::{
    env,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

fn main() -> ExitCode {
    let is_sound = match launcher::task(env::args().skip(1).collect()) {
        Err(why) => {
            eprintln!("error: {}", why.replace("; hint: ", "\nhint: "));
            return ExitCode::from(2);
        }
        Ok(Task::Help) => {
            print!("{HELP}");
            true
        }
        Ok(Task::Explain(own)) => {
            print!("{}", own.help());
            true
        }
        Ok(Task::Dgpo { features, arguments }) => return dgpo(features, arguments),
        Ok(Task::Run(own, arguments)) => match own {
            Own::Tidy => tidy(),
            Own::Test => test(&arguments),
            Own::TestWgpu => test_wgpu(&arguments),
            Own::TestCuda => test_gpu("cuda", &arguments),
            Own::CheckGpu => check_gpu(),
            Own::Ci => format() && default_build() && pages() && test(&arguments) && check_gpu(),
        },
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
    // `dgpo --version` says it. Read by `src/main.rs` alone, so another commit costs no more than
    // that file and the linker.
    if let Some(commit) = commit() {
        command.env("DGPO_COMMIT", commit);
    }
    command
}

/// The commit of the source, with `-changed` where a file that git knows differs from it. Nothing
/// without git.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let told = Command::new("git")
            .current_dir(root())
            .args(arguments)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        told.status.success().then(|| String::from_utf8_lossy(&told.stdout).trim().to_owned())
    };
    // Inside another repository, that one's commit says nothing about this source.
    let commit = git(&["rev-parse", "--show-prefix"])?
        .is_empty()
        .then(|| git(&["rev-parse", "--short=12", "HEAD"]))??;
    let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_changed { commit + "-changed" } else { commit })
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

/// The build without a GPU backend, without generating code.
fn default_build() -> bool {
    succeeds(cargo().args(["check", "--workspace"]))
}

/// The pages of `cargo doc`, whose links must lead somewhere.
fn pages() -> bool {
    let mut doc = cargo();
    doc.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"]);
    succeeds(&mut doc)
}

/// One pass over both backends: they share most of what there is to compile.
fn check_gpu() -> bool {
    succeeds(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "wgpu,cuda",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Everything, in one build. Where a graphics driver is installed that build has wgpu in it, and
/// its tests are among the others; building a second time for them would take as long as all the
/// rest. Arguments may name single tests: these are run on the CPU, in the build that `train` has
/// made.
fn test(arguments: &[String]) -> bool {
    let is_whole = arguments.iter().all(|argument| argument == "--no-fail-fast");
    let mut tests = cargo();
    tests.args(["test", "--release", "--workspace"]);
    let is_driver_missing = match is_whole.then(driver) {
        None => false,
        Some(Driver::Installed) => {
            tests.args(["--features", "wgpu"]).args(LESS_CODE_GENERATION);
            false
        }
        Some(Driver::Missing { is_required }) => is_required,
    };
    tidy() & succeeds(tests.args(arguments)) & !is_driver_missing
}

fn test_wgpu(names: &[String]) -> bool {
    match driver() {
        Driver::Installed => test_gpu("wgpu", names),
        Driver::Missing { is_required } => !is_required,
    }
}

/// True if wgpu has anything to run on.
enum Driver {
    Installed,
    /// It has been said.
    Missing {
        is_required: bool,
    },
}

/// Building the tests takes minutes, so a driver is looked for first.
fn driver() -> Driver {
    if driver::is_installed() {
        return Driver::Installed;
    }
    let is_required = env::var_os("DGPO_REQUIRE_WGPU").is_some_and(|value| value == "1");
    let hint = "hint: the graphics card's Vulkan driver, or a software one (Debian: apt-get \
                install mesa-vulkan-drivers libvulkan1)";
    match is_required {
        true => {
            eprintln!("error: DGPO_REQUIRE_WGPU=1, and no Vulkan driver is installed; {hint}");
        }
        false => {
            eprintln!("tests on wgpu: left out, no Vulkan driver is installed; {hint}");
        }
    }
    Driver::Missing { is_required }
}

/// Most of a build with a GPU backend is code generation for the crates that are compiled once for
/// every backend. Their tests spend their time in the driver, in `dgpo-kernels` and in burn.
const LESS_CODE_GENERATION: [&str; 6] = [
    "--config",
    "profile.release.package.dgpo.opt-level=1",
    "--config",
    "profile.release.package.dgpo-run.opt-level=1",
    "--config",
    "profile.release.package.dgpo-lab.opt-level=1",
];

/// The tests whose path has `on_` and the backend's name in it, or those named. All packages are
/// selected as for `--features`, so that the dependencies are the same as in [`test()`], but only
/// the targets that have such tests.
fn test_gpu(backend: &str, names: &[String]) -> bool {
    let mut tests = cargo();
    tests.args(["test", "--release", "--workspace", "--features", backend]).args([
        "--lib",
        "--test",
        "integration",
        "--no-fail-fast",
    ]);
    tests.args(LESS_CODE_GENERATION).arg("--");
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

/// Builds `dgpo` and runs it with these arguments.
fn dgpo(features: Option<String>, arguments: Vec<String>) -> ExitCode {
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
    let mut program =
        Command::new(target.join("release").join(format!("dgpo{}", env::consts::EXE_SUFFIX)));
    take_over(program.args(arguments))
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
