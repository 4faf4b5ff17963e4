//! `leasehold scale`: another size, or why it has the one it has.

use clap::Args;

use crate::{
    cli::{
        Failure, Outcome, Reach, Wait,
        act::{self, Step},
        client::{Client, Repeat},
        parse_span, print, print_json, table,
    },
    exit::ExitCode,
    http::scaling::{DecisionView, DecisionsView, ScaleView},
    time::Span,
};

#[derive(Debug, Args)]
pub(super) struct ScaleArgs {
    /// The fleet
    name: String,
    /// How many workers (of a fleet that follows the load: at least); `auto` goes back to what is configured
    #[arg(required_unless_present_any = ["explain", "pause"], conflicts_with_all = ["explain", "pause"])]
    size: Option<Size>,
    /// For so long, then as configured again
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_span, requires = "size")]
    lasting: Option<Span>,
    /// Leave the fleet as large as it is, whatever the load, until `auto`
    #[arg(long, conflicts_with = "explain")]
    pause: bool,
    /// Show the last decisions: what they were made from, what came of them, what was in the way
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Clone, Copy, Debug)]
enum Size {
    Workers(u32),
    Auto,
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::Workers)
                .map_err(|_| "give a number of workers, or `auto`".to_owned()),
        }
    }
}

pub(super) fn scale(args: &ScaleArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    if args.explain {
        return explain(&client, args);
    }
    let mut body = serde_json::json!({ "names": [args.name] });
    match args.size {
        Some(Size::Workers(n)) => body["workers"] = n.into(),
        Some(Size::Auto) => body["auto"] = true.into(),
        None => body["pause"] = true.into(),
    }
    if let Some(lasting) = args.lasting {
        body["for"] = lasting.to_string().into();
    }
    let reply = client.post("/v1/scale", &body, Repeat::Harmless)?;
    let names = std::slice::from_ref(&args.name);
    let asked = (client, reply);
    act::finish(names, (&args.reach, &args.wait), asked, |view| {
        act::each_selected(
            view,
            names,
            |fleet| {
                let live = fleet
                    .workers
                    .iter()
                    .filter(|worker| act::is_live(worker))
                    .count();
                // One that follows the load may have more, and others that leave.
                let enough = match fleet.scale.as_ref().map(|scale| scale.floor.as_ref()) {
                    Some(floor) => fleet.ready >= floor.map_or(0, |floor| floor.workers),
                    None => live == fleet.desired as usize,
                };
                if enough {
                    act::all_ready(fleet)
                } else {
                    Step::Wait
                }
            },
            |_| true,
        )
    })
}

fn explain(client: &Client, args: &ScaleArgs) -> Outcome {
    let status = client.status()?;
    let Some(fleet) = status.fleets.iter().find(|fleet| fleet.name == args.name) else {
        let why = format!("there is no fleet {}", args.name);
        return Err(Failure::new(ExitCode::UnknownName, why));
    };
    if fleet.scale.is_none() {
        let why = format!(
            "{} has a fixed size ({}); [fleet.{}.scale] would have it follow the load",
            fleet.name, fleet.desired, fleet.name
        );
        return Err(Failure::new(ExitCode::Conflict, why));
    }
    let view: DecisionsView = client.get(&format!("/v1/fleets/{}/decisions", args.name))?;
    if args.reach.json {
        return print_json(&view);
    }
    let mut rows: Vec<Vec<String>> = view.decisions.iter().map(row).collect();
    let mut heading = vec![
        "TIME", "WORKERS", "BUSY", "SAYS", "IDLE", "QUEUE", "LENGTH", "WANTS", "DONE",
    ];
    // Of what nobody ever said anything there is no column.
    let told = [
        (LENGTH, view.decisions.iter().any(|one| one.queue.is_some())),
        (SAYS, view.decisions.iter().any(|one| one.busy.is_some())),
    ];
    for (column, is_told) in told {
        if !is_told {
            heading.remove(column);
            for row in &mut rows {
                row.remove(column);
            }
        }
    }
    let width = table::width_of(std::io::stdout());
    let mut text = format!(
        "{}: {} of {} to {}; grows above {}, to land at {}\n",
        view.name,
        fleet.desired,
        view.min,
        view.max,
        percent(view.high),
        percent(view.target)
    );
    text += &remarks(&view.scale);
    text += &table::render(&heading, &rows, width);
    print(&text)
}

/// What an operator or a source has to do with it.
fn remarks(scale: &ScaleView) -> String {
    let mut text = String::new();
    if let Some(units) = &scale.cluster {
        let taken = units
            .taken
            .map_or_else(|| "?".to_owned(), |taken| taken.to_string());
        text += &format!(
            "of {} on all nodes {taken} are taken, {} of them here\n",
            units.max, units.held
        );
    }
    if let Some(floor) = &scale.floor {
        let until = floor
            .until
            .as_ref()
            .map_or_else(String::new, |until| format!(" until {until}"));
        text += &format!("at least {}{until}, by {}\n", floor.workers, floor.who);
    }
    if let Some(who) = &scale.paused {
        text += &format!("its size is left alone, by {who}; `auto` lifts that\n");
    }
    if let Some(why) = &scale.source_error {
        text += &format!("its source says nothing: {why}\n");
    }
    if scale.penalty > 1 {
        text += &format!(
            "it shrank too soon lately: its down window is {} times as long\n",
            scale.penalty
        );
    }
    text
}

/// The column of what workers say of themselves.
const SAYS: usize = 3;
/// And that of the queue that they work off.
const LENGTH: usize = 6;

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn row(one: &DecisionView) -> Vec<String> {
    let measured = match (one.utilization, one.missing) {
        (None, _) => "?".to_owned(),
        (Some(share), 0) => percent(share),
        (Some(share), missing) => format!("{} ({missing} unknown)", percent(share)),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let done = match (one.by, one.reason.as_deref()) {
        (Some(by), Some(reason)) => format!("{} by {by} ({reason})", one.verdict),
        (_, Some(reason)) => format!("{} ({reason})", one.verdict),
        (_, None) => one.verdict.clone(),
    };
    vec![
        one.at.get(11..19).unwrap_or(&one.at).to_owned(),
        one.workers.to_string(),
        measured,
        or_dash(one.busy.map(percent)),
        or_dash(one.idle_cores.map(|cores| format!("{cores:.1}"))),
        or_dash(one.waiting.map(|waiting| waiting.to_string())),
        or_dash(one.queue.map(|length| length.to_string())),
        one.recommended.to_string(),
        done,
    ]
}
