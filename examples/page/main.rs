//! Says what the lease page says: `cargo run --example page`. Exit code 0 while it may write, 1 when it may not.

mod leasehold_page;

use std::{process::ExitCode, time::Duration};

fn main() -> ExitCode {
    let page = leasehold_page::Page::from_env();
    let said = page.as_ref().and_then(leasehold_page::Page::read);
    let Some((lease, left)) = said.filter(|(_, left)| !left.is_zero()) else {
        println!("no");
        return ExitCode::FAILURE;
    };
    let more = if left == Duration::MAX {
        String::new()
    } else {
        format!(" left_ms {}", left.as_millis())
    };
    let leasehold_page::Lease {
        fence,
        epoch,
        generation,
        role,
    } = lease;
    println!("yes fence {fence} epoch {epoch} generation {generation} role {role}{more}");
    ExitCode::SUCCESS
}
