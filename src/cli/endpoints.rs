//! `leasehold endpoints`: what is published where, how far behind it is, and why.

use clap::Args;

use crate::{
    cli::{Failure, Outcome, Reach, client::Client, print, print_json, table},
    engine::{command::matches, effect::Rough, publish::authority},
    exit::ExitCode,
    http::endpoints::{EndpointView, PublishedView, TargetView},
    time::Span,
};

#[derive(Debug, Args)]
pub(super) struct EndpointsArgs {
    /// Fleets: names, patterns [default: all that are published]
    names: Vec<String>,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn endpoints(args: &EndpointsArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let mut all: Vec<PublishedView> = client.get("/v1/endpoints")?;
    for name in &args.names {
        if !all.iter().any(|one| matches(name, &one.fleet)) {
            return Err(unknown(name, &client, &all)?);
        }
    }
    let names = &args.names;
    all.retain(|one| names.is_empty() || names.iter().any(|name| matches(name, &one.fleet)));
    if args.reach.json {
        print_json(&all)?;
    } else if all.is_empty() {
        eprintln!("nothing is published; a fleet is by [fleet.NAME.publish]");
    } else {
        print(&render(&all))?;
    }
    Ok(ExitCode::Ok)
}

fn unknown(name: &str, client: &Client, all: &[PublishedView]) -> Result<Failure, Failure> {
    let status = client.status()?;
    let why = if status.fleets.iter().any(|fleet| matches(name, &fleet.name)) {
        format!("{name} is not published; [fleet.{name}.publish] would do that")
    } else {
        let known: Vec<&str> = all.iter().map(|one| one.fleet.as_str()).collect();
        match known.as_slice() {
            [] => format!("nothing is called `{name}`"),
            known => format!(
                "nothing is called `{name}`; published are {}",
                known.join(", ")
            ),
        }
    };
    Ok(Failure::new(ExitCode::UnknownName, why))
}

fn render(all: &[PublishedView]) -> String {
    let width = table::width_of(std::io::stdout());
    let rows: Vec<Vec<String>> = all.iter().flat_map(endpoint_rows).collect();
    let mut text = table::render(&["ENDPOINT", "ADDRESS", "WEIGHT", "STATE"], &rows, width);
    let rows: Vec<Vec<String>> = all
        .iter()
        .flat_map(|one| one.targets.iter().map(|target| target_row(one, target)))
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        let heading = ["FLEET", "TOLD", "STATE", "BEHIND", "WHERE", "WHY"];
        text.push_str(&table::render(&heading, &rows, width));
    }
    text
}

/// A fleet of which nobody takes work is said to.
fn endpoint_rows(one: &PublishedView) -> Vec<Vec<String>> {
    if one.endpoints.is_empty() {
        let nobody = [one.fleet.as_str(), "-", "0", "nobody takes work"];
        return vec![nobody.map(str::to_owned).to_vec()];
    }
    let row = |endpoint: &EndpointView| {
        vec![
            endpoint.id.clone(),
            authority(&endpoint.address, endpoint.port),
            endpoint.weight.to_string(),
            endpoint.state.word().to_owned(),
        ]
    };
    one.endpoints.iter().map(row).collect()
}

fn target_row(one: &PublishedView, target: &TargetView) -> Vec<String> {
    let behind = match target.lag_ms {
        0 => "-".to_owned(),
        ms => Rough(Span::millis(ms)).to_string(),
    };
    let why = target
        .failure
        .as_ref()
        .map_or_else(String::new, |failure| failure.reason.clone());
    vec![
        one.fleet.clone(),
        target.kind.clone(),
        target.state.clone(),
        behind,
        target.target.clone(),
        why,
    ]
}
