//! `leasehold`: argv in, exit code out.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(leasehold::cli::main())
}
