//! The `dgpo` binary: everything lives in the library.
fn main() -> std::process::ExitCode {
    dgpo::cli::main()
}
