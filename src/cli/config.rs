//! `leasehold config show`: the configuration that is in force, resolved.

use clap::{Args, Subcommand};

use crate::cli::{Outcome, Reach, client::Client, print_json};

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print the accepted configuration as JSON: defaults filled in, units resolved, secrets hidden
    Show {
        #[command(flatten)]
        reach: Reach,
    },
}

pub(super) fn config(args: &ConfigArgs) -> Outcome {
    let ConfigVerb::Show { reach } = &args.verb;
    let value: serde_json::Value = Client::new(reach)?.get("/v1/config")?;
    print_json(&value)
}
