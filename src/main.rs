//! The `seedbed` program: hand the process over to the library and return its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    seedbed::cli::main()
}
