//! The command line `outbox`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
