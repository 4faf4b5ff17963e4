//! `leasehold cluster`: all nodes and locks of the cluster at one revision, and how this node and etcd are, from any node.

use clap::{Args, Subcommand};

use crate::{
    cli::{Failure, Outcome, Reach, client::Client, print, print_json, table},
    engine::{
        cluster::{LockPicture, PlacePicture},
        effect::Rough,
    },
    exit::ExitCode,
    http::cluster::{ClusterView, MemberView, MembershipView, NodeView},
    time::Span,
};

#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    verb: Option<ClusterVerb>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Forget a node that will not come back
    Forget {
        /// The node
        node: String,
    },
}

pub(super) fn cluster(args: &ClusterArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    match &args.verb {
        None => show(&client, &args.reach),
        Some(ClusterVerb::Forget { node }) => forget(&client, node, &args.reach),
    }
}

/// Exit code 3 where the node has no lease, though the others may be shown.
fn show(client: &Client, reach: &Reach) -> Outcome {
    let view: ClusterView = match client.get("/v1/cluster") {
        Ok(view) => view,
        Err(failure) => return without_etcd(client, reach, failure),
    };
    match reach.json {
        true => print_json(&view)?,
        false => print(&render(&view))?,
    };
    Ok(match view.membership.state.as_str() {
        "joined" => ExitCode::Ok,
        _ => ExitCode::NotReady,
    })
}

/// Nobody could be asked: what this node knows by itself says why.
fn without_etcd(client: &Client, reach: &Reach, failure: Failure) -> Outcome {
    let membership = match failure.code {
        ExitCode::Failed => client.status()?.cluster,
        _ => None,
    };
    let Some(membership) = membership else {
        return Err(failure);
    };
    if !reach.json {
        print(&of_membership(&membership))?;
    }
    Err(failure)
}

fn forget(client: &Client, node: &str, reach: &Reach) -> Outcome {
    let body = serde_json::json!({ "names": [node] });
    let reply = client.post("/v1/cluster/forget", &body, super::client::Repeat::Harmless)?;
    if reach.json {
        return print_json(&reply);
    }
    print(&format!(
        "{node} is forgotten; it is known again when it joins\n"
    ))
}

fn render(view: &ClusterView) -> String {
    let width = table::width_of(std::io::stdout());
    let mut text = of_membership(&view.membership);
    text.push('\n');
    let rows: Vec<Vec<String>> = view.nodes.iter().map(|node| node_row(node, view)).collect();
    let heading = ["NODE", "STATE", "SINCE", "VERSION", "HAS"];
    text.push_str(&table::render(&heading, &rows, width));
    if !view.locks.is_empty() {
        text.push('\n');
        text.push_str(&locks(&view.locks, width));
    }
    text.push_str(&format!("\nas of revision {}\n", view.revision));
    text
}

pub(super) fn locks<'a>(
    all: impl IntoIterator<Item = &'a LockPicture>,
    width: Option<usize>,
) -> String {
    let row = |lock: &LockPicture| {
        vec![
            lock.name.clone(),
            lock.slots.to_string(),
            places(&lock.holders, true),
            places(&lock.waiting, false),
        ]
    };
    let rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
    table::render(&["LOCK", "SLOTS", "HELD BY", "NEXT"], &rows, width)
}

fn of_membership(one: &MembershipView) -> String {
    let width = table::width_of(std::io::stdout());
    let millis = |ms: u64| Rough(Span::millis(ms)).to_string();
    let mut head = format!("cluster {}: this node ", one.name);
    match (one.state.as_str(), one.expires_in_ms, one.ttl_ms) {
        ("joined", Some(left), Some(ttl)) => head.push_str(&format!(
            "has a lease of {}, {} left",
            millis(ttl),
            millis(left)
        )),
        ("joined", ..) => head.push_str("has a lease"),
        (_, _, _) => {
            let why = one.why.as_deref().unwrap_or("nothing was heard of etcd");
            head.push_str(&format!("has no lease: {why}"));
        }
    }
    let mut text = format!("{}\n", table::cut(&head, width));
    for concern in &one.concerns {
        text.push_str(&format!("! {concern}\n"));
    }
    text.push('\n');
    let rows: Vec<Vec<String>> = one.endpoints.iter().map(member_row).collect();
    let heading = ["ETCD", "STATE", "VERSION", "NOTE"];
    text.push_str(&table::render(&heading, &rows, width));
    text
}

fn member_row(member: &MemberView) -> Vec<String> {
    let note = match (&member.why, member.alarms.as_slice()) {
        (Some(why), _) => why.clone(),
        (None, []) => "-".to_owned(),
        (None, alarms) => format!("alarm {}", alarms.join(", ")),
    };
    vec![
        member.url.clone(),
        member.state.clone(),
        member.version.clone().unwrap_or_else(|| "-".to_owned()),
        note,
    ]
}

fn node_row(view: &NodeView, all: &ClusterView) -> Vec<String> {
    let node = &view.node;
    let state = match (node.present, view.unseen_ms, &node.drained) {
        (true, _, Some(_)) => "drained".to_owned(),
        (true, _, None) => "up".to_owned(),
        (false, Some(ms), _) => format!("unseen for {}", Rough(Span::millis(ms))),
        (false, None, _) => "gone".to_owned(),
    };
    let since = node.since.filter(|_| node.present);
    let has = all.locks.iter().filter(|lock| {
        let mut holders = lock.holders.iter();
        holders.any(|one| one.node.as_ref() == Some(&node.name))
    });
    let has: Vec<&str> = has.map(|lock| lock.name.as_str()).collect();
    let dash = || "-".to_owned();
    let name = match node.name == all.node {
        true => format!("{} *", node.name),
        false => node.name.clone(),
    };
    vec![
        name,
        state,
        since.map_or_else(dash, |at| table::seconds(&at.to_string())),
        node.version.clone().unwrap_or_else(dash),
        if has.is_empty() {
            dash()
        } else {
            has.join(", ")
        },
    ]
}

fn places(places: &[PlacePicture], fences: bool) -> String {
    let one = |place: &PlacePicture| {
        let node = place.node.as_deref().unwrap_or("somebody unreadable");
        match fences {
            true => format!("{node} (fence {})", place.fence),
            false => node.to_owned(),
        }
    };
    match places {
        [] => "-".to_owned(),
        all => all.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}
