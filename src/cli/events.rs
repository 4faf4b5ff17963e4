//! `leasehold events`: what happened, and what happens.

use clap::Args;

use crate::{
    cli::{Outcome, Reach, client::Client, show},
    engine::command::matches,
    exit::ExitCode,
    http::EventRow,
};

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only of these fleets or workers
    names: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Go on printing what happens
    #[arg(short, long)]
    follow: bool,
    /// Print so many of the past ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    lines: usize,
}

pub(super) fn events(args: &EventsArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let past: Vec<EventRow> = client.get("/v1/events")?;
    let mut last = past.last().map(|row| row.id.clone());
    let wanted: Vec<&EventRow> = past.iter().filter(|row| is_wanted(args, row)).collect();
    for row in wanted.iter().skip(wanted.len().saturating_sub(args.lines)) {
        if !show(line(args, row).as_bytes())? {
            return Ok(ExitCode::Ok);
        }
    }
    if wanted.is_empty() && !args.names.is_empty() {
        eprintln!("leasehold: no event of {} so far", args.names.join(", "));
    }
    // A replaced supervisor ends the stream; its successor is asked for what came since.
    if !args.follow {
        return Ok(ExitCode::Ok);
    }
    loop {
        let mut read = Ok(true);
        client.follow(last.clone().as_deref().or(Some("0-0")), |id, data| {
            last = Some(id.to_owned());
            let row: Option<EventRow> = serde_json::from_str(data).ok();
            if let Some(row) = row.filter(|row| is_wanted(args, row)) {
                read = show(line(args, &row).as_bytes());
            }
            matches!(read, Ok(true))
        })?;
        if !read? {
            return Ok(ExitCode::Ok);
        }
    }
}

fn is_wanted(args: &EventsArgs, row: &EventRow) -> bool {
    let fleet = row.subject.split('/').next().unwrap_or_default();
    args.names.is_empty()
        || args
            .names
            .iter()
            .any(|name| matches(name, &row.subject) || matches(name, fleet))
}

fn line(args: &EventsArgs, row: &EventRow) -> String {
    if args.reach.json {
        return serde_json::to_string(row).unwrap_or_default() + "\n";
    }
    let generation = row
        .generation
        .filter(|n| *n > 0)
        .map_or_else(String::new, |n| format!(" [{n}]"));
    format!("{} {}{generation} {}\n", row.at, row.subject, row.text)
}
