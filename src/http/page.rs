//! The page at `/`: a table of fleets and workers that refreshes itself. No script, no outside resource.

use crate::http::{
    cluster::MembershipView,
    view::{FleetView, GateView, StatusView, WorkerView},
};

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}\
table{border-collapse:collapse;width:100%;margin:.5em 0 2em}th,td{text-align:left;padding:.25em .75em;border-bottom:1px solid #ddd}\
th{font-weight:600}.ok{color:#17753a}.bad{color:#b3261e}.dim{color:#777}h2{margin-bottom:0}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#333}.ok{color:#6fce8f}.bad{color:#ff8a80}}";

/// The whole page.
pub(super) fn page(status: &StatusView) -> String {
    let fleets: String = status.fleets.iter().map(fleet).collect();
    let draining = match (status.supervisor.draining, &status.drained) {
        (true, _) => " <span class=bad>draining</span>",
        (false, Some(_)) => " <span class=bad>drained</span>",
        (false, None) => "",
    };
    let cluster = status.cluster.as_ref().map_or_else(String::new, cluster);
    let rejected = status
        .config
        .rejected
        .as_ref()
        .map_or_else(String::new, |why| {
            format!(
                "<p class=bad>The newest reload was rejected: {}</p>",
                escape(why.lines().next().unwrap_or_default())
            )
        });
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>\
         <meta name=viewport content=\"width=device-width\"><title>{node} - leasehold</title><style>{STYLE}</style>\
         <h1>{node}{draining}</h1><p class=dim>leasehold {version}, keeper {keeper}, supervisor {supervisor}, configuration {revision}</p>\
         {cluster}{rejected}{fleets}<p class=dim><a href=\"/v1/status\">status</a> <a href=\"/health\">health</a> <a href=\"/readyz?verbose\">readyz</a> \
         <a href=\"/v1/events\">events</a></p></html>",
        node = escape(&status.node),
        version = escape(&status.supervisor.version),
        keeper = status.keeper.pid,
        supervisor = status.supervisor.pid,
        revision = escape(&status.config.revision),
    )
}

fn cluster(part: &MembershipView) -> String {
    let words = match (part.state.as_str(), &part.why) {
        ("joined", _) => "<span class=ok>joined</span>".to_owned(),
        (state, why) => format!(
            "<span class=bad>{}</span> {}",
            escape(state),
            escape(why.as_deref().unwrap_or_default())
        ),
    };
    let concerns = part.concerns.iter();
    let concerns: String = concerns
        .map(|why| format!("<br><span class=bad>{}</span>", escape(why)))
        .collect();
    format!("<p>cluster {}: {words}{concerns}</p>", escape(&part.name))
}

fn fleet(fleet: &FleetView) -> String {
    if fleet.kind == "cron" {
        return job(fleet);
    }
    let class = match fleet.state.as_str() {
        "ok" => "ok",
        // Somebody else's turn.
        "standby" => "dim",
        _ => "bad",
    };
    let rows: String = fleet.workers.iter().map(worker).collect();
    let lock = fleet.gate.as_ref().map_or_else(String::new, lock);
    format!(
        "<h2>{name} <span class={class}>{ready}/{desired}</span> <small class=dim>{state}</small></h2>{lock}\
         <table><tr><th>worker<th>state<th>pid<th>up<th>restarts<th>last exit</tr>{rows}</table>",
        name = escape(&fleet.name),
        ready = fleet.ready,
        desired = fleet.desired,
        state = escape(&fleet.state),
    )
}

/// Who has its lock.
fn lock(gate: &GateView) -> String {
    let holder = gate.holder.as_deref().map(escape);
    match (gate.fence, holder) {
        (Some(fence), _) => format!("<p>lock: <span class=ok>ours</span>, fence {fence}</p>"),
        (None, Some(who)) => format!("<p>lock: {who}</p>"),
        (None, None) => "<p>lock: <span class=dim>not asked for</span></p>".to_owned(),
    }
}

fn job(job: &FleetView) -> String {
    let (class, last) = match &job.last {
        Some(last) if last.outcome == "succeeded" => ("ok", escape(&last.reason)),
        Some(last) => ("bad", escape(&last.reason)),
        None => ("dim", "none".to_owned()),
    };
    let rows: String = job.workers.iter().map(worker).collect();
    let run = match rows.as_str() {
        "" => String::new(),
        rows => format!(
            "<table><tr><th>run<th>state<th>pid<th>up<th>restarts<th>last exit</tr>{rows}</table>"
        ),
    };
    format!(
        "<h2>{name} <small class=dim>job, {state}</small></h2><p>next {next}; last run: <span class={class}>{last}</span></p>{lock}{run}",
        lock = job
            .gate
            .as_ref()
            .filter(|gate| gate.holder.is_some())
            .map_or_else(String::new, lock),
        name = escape(&job.name),
        state = escape(&job.state),
        next = escape(job.next.as_deref().unwrap_or("never")),
    )
}

fn worker(worker: &WorkerView) -> String {
    let class = if worker.ready { "ok" } else { "bad" };
    let up = worker.uptime_ms.map_or_else(String::new, |ms| {
        crate::engine::effect::Rough(crate::time::Span::millis(ms)).to_string()
    });
    let last = worker
        .last_exit
        .as_ref()
        .map_or_else(String::new, |exit| escape(&exit.reason));
    let pid = worker.pid.map_or_else(String::new, |pid| pid.to_string());
    format!(
        "<tr><td>{id}<td class={class}>{state}<td>{pid}<td>{up}<td>{restarts}<td>{last}</tr>",
        id = escape(&worker.id),
        state = escape(&worker.state),
        restarts = worker.restarts,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
