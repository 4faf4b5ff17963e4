//! Method and path become a route, or the reason why not. Pure; every text a client can send ends here.

use serde::Deserialize;

use crate::{
    config::units,
    engine::{
        Command,
        command::{By, Sizing},
    },
    http::metrics::Format,
    time::Span,
};

/// Most ticks of a job that are told at once.
pub const TICKS_MAX: usize = 1_000;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The unix socket: whoever may connect may do everything.
    Unix,
    /// TCP on loopback: read-only.
    Tcp,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Page,
    /// `/livez`
    Live {
        /// `?verbose`
        verbose: bool,
    },
    /// `/readyz`
    Ready {
        /// `?verbose`
        verbose: bool,
    },
    /// `/readyz/fleets/NAME`
    FleetReady(String),
    /// `/health`
    Health,
    /// `/metrics`
    Metrics(Format),
    /// `/v1/status`; waits up to a second for an event after `?after=N` of supervisor `?of=I`
    Status {
        /// Answer at once unless nothing happened since this event.
        after: Option<u64>,
    },
    /// `/v1/events`
    Events {
        /// Keep the connection and send what happens (`?follow`, or an `Accept: text/event-stream`).
        follow: bool,
    },
    /// `/v1/crons`, `/v1/crons/NAME`
    Crons {
        /// This one alone.
        name: Option<String>,
        /// So many ticks to come of each (`?next=N`).
        next: usize,
    },
    /// `/v1/fleets/NAME/decisions`
    Decisions(String),
    /// `/v1/singletons`
    Singletons,
    /// `/v1/singletons/NAME`
    Singleton(String),
    /// `/v1/endpoints`
    Endpoints,
    /// `/v1/cluster`
    Cluster,
    /// `/v1/sd/prometheus`
    Prometheus,
    /// `/v1/config`
    Config,
    /// A request to the engine.
    Command(Command),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// As a sentence.
    pub why: String,
}

impl Refusal {
    fn new(status: u16, why: impl Into<String>) -> Self {
        Self {
            status,
            why: why.into(),
        }
    }
}

/// The body of a POST; which fields are wanted depends on the path.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Body {
    names: Vec<String>,
    workers: Option<u32>,
    auto: bool,
    signal: Option<String>,
    slot: Option<u32>,
    pause: bool,
    /// A node.
    to: Option<String>,
    /// A duration, such as `1h`.
    r#for: Option<String>,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// Without the `?`.
    pub query: &'a str,
    /// The `Host` header.
    pub host: Option<&'a str>,
    /// The `Accept` header.
    pub accept: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
    /// Who asks, and when.
    pub by: By,
}

/// Finds the route.
pub fn route(door: Door, asked: &Asked<'_>) -> Result<Route, Refusal> {
    if door == Door::Tcp {
        check_host(asked.host)?;
    }
    match asked.method {
        "GET" | "HEAD" if door == Door::Tcp && asked.path == "/v1/config" => Err(Refusal::new(
            403,
            "the configuration is shown on the control socket alone",
        )),
        "GET" | "HEAD" => read(asked),
        "POST" if door == Door::Unix => write(asked),
        "POST" => Err(Refusal::new(
            403,
            "this address is read-only; use the control socket",
        )),
        method => Err(Refusal::new(
            405,
            format!("{method} is not understood; use GET or POST"),
        )),
    }
}

/// A web page of a stranger must not reach us through a name of its own that points to loopback (DNS rebinding).
fn check_host(host: Option<&str>) -> Result<(), Refusal> {
    let name = host.map(|host| {
        host.rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(host, |(name, _)| name)
    });
    match name {
        None | Some("localhost" | "127.0.0.1" | "[::1]") => Ok(()),
        Some(name)
            if name
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|ip| ip.is_loopback()) =>
        {
            Ok(())
        }
        Some(name) => Err(Refusal::new(
            421,
            format!("the Host {name:?} is not this address; use localhost"),
        )),
    }
}

fn read(asked: &Asked<'_>) -> Result<Route, Refusal> {
    let verbose = flag(asked.query, "verbose");
    let parts: Vec<&str> = asked.path.split('/').skip(1).collect();
    match parts.as_slice() {
        [""] => Ok(Route::Page),
        ["livez"] => Ok(Route::Live { verbose }),
        ["readyz"] => Ok(Route::Ready { verbose }),
        ["readyz", "fleets", name] if !name.is_empty() => Ok(Route::FleetReady((*name).to_owned())),
        ["health"] => Ok(Route::Health),
        ["metrics"] => Ok(Route::Metrics(Format::of(asked.accept))),
        ["v1", "status"] => {
            let after = parameter(asked.query, "after").map(|n| {
                n.parse()
                    .map_err(|_| Refusal::new(400, "after must be a number"))
            });
            Ok(Route::Status {
                after: after.transpose()?,
            })
        }
        ["v1", "events"] => {
            let stream = asked
                .accept
                .is_some_and(|accept| accept.contains("text/event-stream"));
            Ok(Route::Events {
                follow: stream || flag(asked.query, "follow"),
            })
        }
        ["v1", "crons"] => crons(asked, None),
        ["v1", "crons", name] if !name.is_empty() => crons(asked, Some((*name).to_owned())),
        ["v1", "singletons"] => Ok(Route::Singletons),
        ["v1", "singletons", name] if !name.is_empty() => Ok(Route::Singleton((*name).to_owned())),
        ["v1", "fleets", name, "decisions"] if !name.is_empty() => {
            Ok(Route::Decisions((*name).to_owned()))
        }
        ["v1", "cluster"] => Ok(Route::Cluster),
        ["v1", "endpoints"] => Ok(Route::Endpoints),
        ["v1", "sd", "prometheus"] => Ok(Route::Prometheus),
        ["v1", "config"] => Ok(Route::Config),
        _ => Err(Refusal::new(404, format!("there is no {}", asked.path))),
    }
}

fn crons(asked: &Asked<'_>, name: Option<String>) -> Result<Route, Refusal> {
    let next = match parameter(asked.query, "next") {
        None => 1,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| *n <= TICKS_MAX)
            .ok_or_else(|| Refusal::new(400, format!("next must be a number up to {TICKS_MAX}")))?,
    };
    Ok(Route::Crons { name, next })
}

fn write(asked: &Asked<'_>) -> Result<Route, Refusal> {
    let mut body: Body = match asked.body {
        [] => Body::default(),
        bytes => serde_json::from_slice(bytes)
            .map_err(|e| Refusal::new(400, format!("the body is not what is expected: {e}")))?,
    };
    let parts: Vec<&str> = asked.path.split('/').skip(1).collect();
    let verb = match parts.as_slice() {
        ["v1", "fleets", name, verb] if !name.is_empty() => {
            body.names = vec![(*name).to_owned()];
            *verb
        }
        ["v1", "crons", name, "run"] if !name.is_empty() => {
            body.names = vec![(*name).to_owned()];
            "run"
        }
        ["v1", "singletons", name, "release"] if !name.is_empty() => {
            body.names = vec![(*name).to_owned()];
            "release"
        }
        ["v1", "singletons", name, "move"] if !name.is_empty() => {
            body.names = vec![(*name).to_owned()];
            "move"
        }
        ["v1", "cluster", "forget"] => "forget",
        ["v1", "node", verb @ ("drain" | "undrain")] => *verb,
        [
            "v1",
            "run" | "release" | "move" | "drain" | "undrain" | "forget",
        ] => {
            return Err(Refusal::new(404, format!("there is no {}", asked.path)));
        }
        ["v1", verb] => *verb,
        ["v1", "config", "reload"] => "reload",
        ["v1", "config", "plan"] => "plan",
        _ => return Err(Refusal::new(404, format!("there is no {}", asked.path))),
    };
    let (names, by) = (body.names, asked.by.clone());
    let command = match verb {
        "run" => Command::Run {
            name: names.into_iter().next().unwrap_or_default(),
            by,
        },
        "release" => Command::Release {
            name: names.into_iter().next().unwrap_or_default(),
            slot: body.slot,
            by,
        },
        "move" => Command::Move {
            name: names.into_iter().next().unwrap_or_default(),
            to: body.to,
            by,
        },
        "forget" => {
            let mut names = names.into_iter();
            let node = names.next();
            let node = node.ok_or_else(|| Refusal::new(400, "names is missing: which node?"))?;
            Command::Forget { node }
        }
        "drain" => Command::Drain { by },
        "undrain" => Command::Undrain { by },
        "start" => Command::Start { names, by },
        "stop" => Command::Stop { names, by },
        "restart" => Command::Restart { names },
        "scale" => {
            let fleet = names
                .into_iter()
                .next()
                .ok_or_else(|| Refusal::new(400, "names is missing: which fleet?"))?;
            let to = match (body.workers, body.auto, body.pause) {
                (Some(workers), false, false) => Sizing::Workers(workers),
                (None, true, false) => Sizing::Auto,
                (None, false, true) => Sizing::Pause,
                _ => return Err(Refusal::new(400, "give one of workers, auto and pause")),
            };
            let lasting = body.r#for.map(|text| {
                let span = units::span(&text).filter(|span| *span > Span::ZERO);
                span.ok_or_else(|| {
                    let why = format!("for: {text:?} is not {}", units::SPAN_FORM);
                    Refusal::new(400, why)
                })
            });
            let lasting = lasting.transpose()?.filter(|span| !span.is_forever());
            if lasting.is_some() && !matches!(to, Sizing::Workers(_)) {
                return Err(Refusal::new(
                    400,
                    "for belongs to workers: they are wanted for a while",
                ));
            }
            Command::Scale {
                fleet,
                to,
                lasting,
                by,
            }
        }
        "signal" => {
            let text = body
                .signal
                .ok_or_else(|| Refusal::new(400, "signal is missing"))?;
            let signal = units::signal(&text).ok_or_else(|| {
                Refusal::new(
                    400,
                    format!("{text:?} is not a signal; SIGHUP or 1 would be"),
                )
            })?;
            Command::Signal { names, signal }
        }
        "reload" => Command::Reload,
        "plan" => Command::Plan,
        _ => return Err(Refusal::new(404, format!("there is no {}", asked.path))),
    };
    Ok(Route::Command(command))
}

fn flag(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| {
        pair == name
            || pair
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('=') && rest != "=false" && rest != "=0")
    })
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        pair.split_once('=')
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(door: Door, method: &str, target: &str, body: &str) -> Result<Route, u16> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asked = Asked {
            method,
            path,
            query,
            host: Some("localhost:80"),
            accept: None,
            body: body.as_bytes(),
            by: By::default(),
        };
        route(door, &asked).map_err(|refusal| refusal.status)
    }

    #[test]
    fn reads_work_everywhere_and_writes_on_the_socket_alone() {
        for door in [Door::Unix, Door::Tcp] {
            assert_eq!(
                ask(door, "GET", "/livez?verbose", ""),
                Ok(Route::Live { verbose: true })
            );
            assert_eq!(
                ask(door, "GET", "/readyz/fleets/web", ""),
                Ok(Route::FleetReady("web".to_owned()))
            );
            assert_eq!(
                ask(door, "GET", "/v1/status?after=7", ""),
                Ok(Route::Status { after: Some(7) })
            );
            assert_eq!(ask(door, "GET", "/v1/endpoints", ""), Ok(Route::Endpoints));
            assert_eq!(
                ask(door, "GET", "/v1/sd/prometheus", ""),
                Ok(Route::Prometheus)
            );
            assert_eq!(ask(door, "GET", "/v1/status?after=x", ""), Err(400));
            assert_eq!(ask(door, "GET", "/nothing", ""), Err(404));
            assert_eq!(
                ask(door, "GET", "/metrics", ""),
                Ok(Route::Metrics(Format::Text))
            );
            assert_eq!(ask(door, "GET", "/metrics/web", ""), Err(404));
            assert_eq!(ask(door, "DELETE", "/livez", ""), Err(405));
        }
        let crons = |name: Option<&str>, next| {
            let name = name.map(str::to_owned);
            Ok(Route::Crons { name, next })
        };
        assert_eq!(ask(Door::Tcp, "GET", "/v1/crons", ""), crons(None, 1));
        let one = ask(Door::Tcp, "GET", "/v1/crons/report?next=9", "");
        assert_eq!(one, crons(Some("report"), 9));
        for target in [
            "/v1/crons?next=-1",
            "/v1/crons?next=1001",
            "/v1/crons?next=",
        ] {
            assert_eq!(ask(Door::Tcp, "GET", target, ""), Err(400), "{target}");
        }
        let run = Command::Run {
            name: "report".to_owned(),
            by: By::default(),
        };
        assert_eq!(
            ask(Door::Unix, "POST", "/v1/crons/report/run", ""),
            Ok(Route::Command(run))
        );
        assert_eq!(ask(Door::Tcp, "POST", "/v1/crons/report/run", ""), Err(403));
        assert_eq!(ask(Door::Unix, "POST", "/v1/run", ""), Err(404));
        let all = ask(Door::Tcp, "GET", "/v1/singletons", "");
        assert_eq!(all, Ok(Route::Singletons));
        let one = ask(Door::Tcp, "GET", "/v1/singletons/billing", "");
        assert_eq!(one, Ok(Route::Singleton("billing".to_owned())));
        let release = |slot| {
            let (name, by) = ("billing".to_owned(), By::default());
            Ok(Route::Command(Command::Release { name, slot, by }))
        };
        let moved = Command::Move {
            name: "billing".to_owned(),
            to: Some("vps-2".to_owned()),
            by: By::default(),
        };
        let path = "/v1/singletons/billing/move";
        assert_eq!(
            ask(Door::Unix, "POST", path, r#"{"to":"vps-2"}"#),
            Ok(Route::Command(moved))
        );
        assert_eq!(ask(Door::Tcp, "POST", path, ""), Err(403));
        let path = "/v1/singletons/billing/release";
        assert_eq!(ask(Door::Unix, "POST", path, ""), release(None));
        assert_eq!(
            ask(Door::Unix, "POST", path, r#"{"slot":1}"#),
            release(Some(1))
        );
        assert_eq!(ask(Door::Unix, "POST", path, r#"{"slot":-1}"#), Err(400));
        assert_eq!(ask(Door::Tcp, "POST", path, ""), Err(403));
        assert_eq!(ask(Door::Unix, "POST", "/v1/release", ""), Err(404));
        let reload = Ok(Route::Command(Command::Reload));
        assert_eq!(ask(Door::Unix, "POST", "/v1/config/reload", ""), reload);
        assert_eq!(ask(Door::Tcp, "POST", "/v1/config/reload", ""), Err(403));
        let scale = Command::Scale {
            fleet: "web".to_owned(),
            to: Sizing::Workers(3),
            lasting: None,
            by: By::default(),
        };
        assert_eq!(
            ask(
                Door::Unix,
                "POST",
                "/v1/fleets/web/scale",
                r#"{"workers":3}"#
            ),
            Ok(Route::Command(scale))
        );
        for (path, body) in [
            ("/v1/fleets/web/scale", "{}"),
            ("/v1/fleets/web/scale", r#"{"workers":3,"pause":true}"#),
            ("/v1/fleets/web/scale", r#"{"workers":3,"for":"soon"}"#),
            ("/v1/fleets/web/scale", r#"{"auto":true,"for":"1h"}"#),
            ("/v1/stop", "nonsense"),
            ("/v1/stop", r#"{"nmaes":["web"]}"#),
            ("/v1/signal", r#"{"names":["web"],"signal":"SIGFOO"}"#),
        ] {
            assert_eq!(
                ask(Door::Unix, "POST", path, body),
                Err(400),
                "{path} {body}"
            );
        }
    }

    #[test]
    fn a_strangers_host_is_refused_on_tcp() {
        for (host, ok) in [
            ("localhost", true),
            ("127.0.0.1:9640", true),
            ("[::1]:9640", true),
            ("127.1.2.3", true),
            ("evil.example:9640", false),
            ("", false),
        ] {
            let asked = Asked {
                method: "GET",
                path: "/livez",
                query: "",
                host: Some(host),
                accept: None,
                body: b"",
                by: By::default(),
            };
            assert_eq!(route(Door::Tcp, &asked).is_ok(), ok, "{host}");
        }
    }
}
