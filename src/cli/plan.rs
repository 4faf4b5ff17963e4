//! `leasehold plan`: what a reload would do.

use clap::Args;

use crate::{
    cli::{
        Failure, Outcome, Reach,
        client::{Client, Repeat},
        print, print_json,
    },
    config::diff::{Change, Class},
    engine::command::Reply,
    exit::ExitCode,
};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    reach: Reach,
    /// Exit 5 if something would change
    #[arg(long)]
    detailed_exitcode: bool,
}

pub(super) fn plan(args: &PlanArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let reply = client.post("/v1/config/plan", &serde_json::json!({}), Repeat::Harmless)?;
    let Reply::Plan { changes } = reply else {
        return Err(Failure::new(
            ExitCode::Failed,
            "the daemon did not answer with a plan",
        ));
    };
    if args.reach.json {
        print_json(&changes)?;
    } else {
        print(&describe(&changes))?;
    }
    let pending = args.detailed_exitcode && !changes.is_empty();
    Ok(if pending {
        ExitCode::ChangesPending
    } else {
        ExitCode::Ok
    })
}

/// The plan for people: what happens to each fleet, and why.
pub(super) fn describe(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no changes\n".to_owned();
    }
    changes.iter().map(describe_one).collect()
}

fn describe_one(change: &Change) -> String {
    let (sign, what) = match change.class {
        Class::Live => ("~", "takes effect at once, workers untouched"),
        Class::NextRun => ("~", "takes effect at the job's next run"),
        Class::Scale => (
            "~",
            "another number of workers; those that stay are untouched",
        ),
        Class::Rolling => ("~", "every worker is replaced, a few at a time"),
        Class::Replace => ("!", "a socket is bound anew, every worker is replaced"),
        Class::Add => ("+", "new"),
        Class::Remove => ("-", "drained and removed"),
    };
    let mut text = format!("{sign} {}: {what}\n", change.fleet);
    for difference in &change.differences {
        let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "(nothing)".to_owned());
        text.push_str(&format!(
            "    {}: {} -> {}\n",
            difference.key,
            side(&difference.before),
            side(&difference.after)
        ));
    }
    text
}
