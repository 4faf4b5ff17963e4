//! HTTP over the control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    net::UnixStream,
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    cli::{Failure, Reach, directories},
    engine::command::Reply,
    exit::ExitCode,
    http::view::StatusView,
};

/// A supervisor that was just replaced resets what it had accepted: asked again this often.
const TRIES: usize = 5;

/// A client of one daemon.
pub(super) struct Client {
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
}

/// May a request that got no answer be sent again?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It does no harm twice.
    Harmless,
    /// It might be carried out twice.
    Never,
}

impl Client {
    pub(super) fn new(reach: &Reach) -> Result<Self, Failure> {
        let socket = directories::control_socket(reach.socket.as_deref(), reach.run_dir.as_deref());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|e| {
            Failure::new(ExitCode::Failed, format!("cannot start an event loop: {e}"))
        })?;
        Ok(Self { runtime, socket })
    }

    /// The status as it is.
    pub(super) fn status(&self) -> Result<StatusView, Failure> {
        self.get("/v1/status")
    }

    /// The status as it is after the next event past `after`; or what came before that.
    pub(super) fn next_status(
        &self,
        after: Option<u64>,
        interrupts: &mut Interrupts,
        limit: Duration,
    ) -> Result<Next, Failure> {
        let path = after.map_or_else(
            || "/v1/status".to_owned(),
            |n| format!("/v1/status?after={n}"),
        );
        let answer = self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupts.signal.recv() => Err(Next::Interrupted),
                answer = self.ask_again(&path, &mut interrupts.pace) => Ok(answer),
                () = tokio::time::sleep(limit) => Err(Next::TooLate),
            }
        });
        match answer {
            Ok(answer) => Ok(Next::Status(Box::new(understood(&path, &answer?)?))),
            Err(next) => Ok(next),
        }
    }

    async fn ask_again(&self, path: &str, pace: &mut Interval) -> Result<Bytes, Failure> {
        pace.tick().await;
        self.request("GET", path, String::new(), Repeat::Harmless)
            .await
    }

    /// From now on Ctrl-C does not end us: it is heard by whoever waits with this.
    pub(super) fn interrupts(&self) -> Result<Interrupts, Failure> {
        let _inside = self.runtime.enter();
        let mut pace = interval(Duration::from_millis(20));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        signal(SignalKind::interrupt())
            .map(|signal| Interrupts { signal, pace })
            .map_err(|e| Failure::new(ExitCode::Failed, format!("cannot catch Ctrl-C: {e}")))
    }

    /// GET, as whatever it is.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.request("GET", path, String::new(), Repeat::Harmless);
        understood(path, &self.runtime.block_on(request)?)
    }

    /// POST a command.
    pub(super) fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
        repeat: Repeat,
    ) -> Result<Reply, Failure> {
        let request = self.request("POST", path, body.to_string(), repeat);
        understood(path, &self.runtime.block_on(request)?)
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        body: String,
        repeat: Repeat,
    ) -> Result<Bytes, Failure> {
        let mut left = TRIES;
        loop {
            left -= 1;
            match exchange(&self.socket, method, path, body.clone()).await {
                Ok((status, bytes)) if status.is_success() => return Ok(bytes),
                Ok((status, bytes)) => return Err(refused(status, &bytes)),
                Err(Trouble::Connect(error)) => return Err(unreachable(&self.socket, &error)),
                Err(Trouble::Answer(_)) if repeat == Repeat::Harmless && left > 0 => {}
                Err(Trouble::Answer(error)) => {
                    let why = format!(
                        "the daemon's supervisor was replaced before it answered ({error}); `leasehold status` shows what came of it"
                    );
                    return Err(Failure::new(ExitCode::Unreachable, why));
                }
            }
        }
    }

    /// Follows the event stream; `each` gets id and data of every event. Returns when the stream ends.
    pub(super) fn follow(
        &self,
        last: Option<&str>,
        mut each: impl FnMut(&str, &str) -> bool,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let request = Request::get("/v1/events?follow").header("host", "leasehold");
            let request = match last {
                Some(id) => request.header("last-event-id", id),
                None => request,
            };
            let request = request
                .body(Full::default())
                .map_err(|e| Failure::new(ExitCode::Failed, e.to_string()))?;
            let response = match send(&self.socket, request).await {
                Ok(response) => response,
                Err(Trouble::Connect(error)) => return Err(unreachable(&self.socket, &error)),
                Err(Trouble::Answer(_)) => return Ok(()),
            };
            let mut body = response.into_body();
            let mut text = String::new();
            while let Some(Ok(frame)) = body.frame().await {
                text.push_str(&String::from_utf8_lossy(
                    frame.data_ref().map_or(&[], |data| data),
                ));
                while let Some(end) = text.find("\n\n") {
                    let event: String = text.drain(..end + 2).collect();
                    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                    if let (Some(id), Some(data)) = (field("id: "), field("data: "))
                        && !each(id, data)
                    {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }
}

/// Ctrl-C, heard even if it came while nobody listened.
pub(super) struct Interrupts {
    signal: Signal,
    /// Events may come in a storm: nobody can read that many lines of progress.
    pace: Interval,
}

/// What came first.
pub(super) enum Next {
    Status(Box<StatusView>),
    Interrupted,
    /// Nothing within the limit.
    TooLate,
}

fn understood<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| {
        Failure::new(
            ExitCode::Failed,
            format!("the daemon's answer to {path} is not understood: {e}; is it another version?"),
        )
    })
}

enum Trouble {
    /// Nobody there.
    Connect(io::Error),
    /// Somebody was there, and then not.
    Answer(String),
}

async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Trouble> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(Trouble::Connect)?;
    let answer = |e: hyper::Error| Trouble::Answer(e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(answer)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(answer)
}

async fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: String,
) -> Result<(StatusCode, Bytes), Trouble> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "leasehold")
        .body(Full::from(body));
    let request = request.map_err(|e| Trouble::Answer(e.to_string()))?;
    let response = send(socket, request).await?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| Trouble::Answer(e.to_string()))?;
    Ok((status, body.to_bytes()))
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let shown = socket.display();
    match error.kind() {
        _ if socket.is_dir() => Failure::new(
            ExitCode::Usage,
            format!("{shown} is a directory, not a socket; name a run directory with --run-dir"),
        ),
        io::ErrorKind::PermissionDenied => Failure::new(
            ExitCode::Permission,
            format!(
                "{shown} may not be used by this user; join its group (leasehold), or use sudo"
            ),
        ),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            ExitCode::Unreachable,
            format!(
                "no daemon answers on {shown}; start it with `leasehold run`, or name its socket with --socket"
            ),
        ),
        _ => Failure::new(
            ExitCode::Unreachable,
            format!("cannot connect to {shown}: {error}"),
        ),
    }
}

/// RFC 9457 problem details as our own failure.
fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let why = problem["detail"]
        .as_str()
        .map_or_else(|| format!("the daemon answered {status}"), str::to_owned);
    let code = match (problem["exit_code"].as_u64(), status.as_u16()) {
        (Some(4), _) => ExitCode::UnknownName,
        (Some(3), _) => ExitCode::NotReady,
        (Some(9), _) => ExitCode::Conflict,
        (Some(78), _) => ExitCode::Config,
        (Some(2), _) | (None, 400) => ExitCode::Usage,
        (None, 503) => ExitCode::Unreachable,
        (None, 403) => ExitCode::Permission,
        _ => ExitCode::Failed,
    };
    Failure::new(code, why)
}
