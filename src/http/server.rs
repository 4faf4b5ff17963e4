//! Connections. One thread, one current-thread runtime; the engine is asked, never entered.

use std::{convert::Infallible, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Notify, Semaphore, mpsc},
};

use crate::{
    engine::{
        Command,
        command::{By, Denial, Reply},
        status::{Status, WorkerStatus},
    },
    exit::ExitCode,
    http::{
        EngineError, EventRow, Surface, cluster, crons, endpoints,
        meter::{Meter, Readings},
        metrics::Format,
        page,
        route::{self, Asked, Door, Refusal, Route},
        scaling,
        scrape::Scrapes,
        singletons,
        view::{self, Here},
    },
    sys::clock,
    time::Moment,
};

/// A failed accept is tried again by then.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// The engine is stuck if it has not answered by then.
const STUCK: Duration = Duration::from_secs(5);
/// A body larger than this is nonsense.
const BODY_MAX: usize = 64 * 1024;
/// Connections at once on each kind of listener; more wait in the accept queue. TCP cannot take the control socket's.
const CONNECTIONS_MAX: usize = 256;
/// Event followers at once: they stay for as long as they like.
const FOLLOWERS_MAX: usize = 64;
/// Events are handed to a follower so many at a time: one who reads slowly must not have the whole past copied for it.
const BATCH_MAX: usize = 64;
/// A follower that takes nothing for this long gives its place to another.
const DEAF_AFTER: Duration = Duration::from_secs(60);
/// A client must have sent its request by then.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// `?after=N` is answered by then even if nothing happened.
const LONG_POLL: Duration = Duration::from_secs(1);

type Body = Either<Full<Bytes>, http_body_util::channel::Channel<Bytes, Infallible>>;

/// Starts the thread that answers on these listeners.
pub fn serve(surface: Surface, control: OwnedFd, tcp: Vec<OwnedFd>) -> io::Result<()> {
    let started = clock::now();
    let unix = std::os::unix::net::UnixListener::from(control);
    unix.set_nonblocking(true)?;
    let mut listeners = Vec::new();
    for fd in tcp {
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let since = clock::wall_at(started).into();
                let hall = Arc::new(Hall {
                    meter: Meter::new(surface.cgroup.clone()),
                    scrapes: Scrapes::new(since),
                    surface,
                    started,
                    unix: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                    tcp: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                    followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
                    ended: Notify::new(),
                });
                for listener in listeners {
                    if let Ok(listener) = TcpListener::from_std(listener) {
                        tokio::spawn(accept_tcp(Arc::clone(&hall), listener));
                    }
                }
                if let Ok(listener) = UnixListener::from_std(unix) {
                    accept_unix(hall, listener).await;
                }
            });
        })?;
    Ok(())
}

struct Hall {
    surface: Surface,
    started: Moment,
    unix: Arc<Semaphore>,
    tcp: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    meter: Meter,
    scrapes: Scrapes,
    /// Told whenever a connection has ended.
    ended: Notify,
}

impl Hall {
    /// After a failed accept, most likely for want of descriptors: until a connection has ended, or others may have closed some.
    async fn room_again(&self) {
        let _ = tokio::time::timeout(ACCEPT_AGAIN, self.ended.notified()).await;
    }
}

async fn accept_unix(hall: Arc<Hall>, listener: UnixListener) {
    loop {
        let Ok(seat) = Arc::clone(&hall.unix).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let who = stream.peer_cred().map_or_else(
                    |_| "somebody".to_owned(),
                    |peer| who(peer.uid(), peer.pid()),
                );
                tokio::spawn(converse(
                    Arc::clone(&hall),
                    TokioIo::new(stream),
                    Door::Unix,
                    who,
                    seat,
                ));
            }
            Err(_) => hall.room_again().await,
        }
    }
}

async fn accept_tcp(hall: Arc<Hall>, listener: TcpListener) {
    loop {
        let Ok(seat) = Arc::clone(&hall.tcp).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let who = peer.to_string();
                tokio::spawn(converse(
                    Arc::clone(&hall),
                    TokioIo::new(stream),
                    Door::Tcp,
                    who,
                    seat,
                ));
            }
            // Out of descriptors, most likely: the queue keeps the client until some are free.
            Err(_) => hall.room_again().await,
        }
    }
}

fn who(uid: u32, pid: Option<i32>) -> String {
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten();
    let name = name.map_or_else(|| format!("uid {uid}"), |user| user.name);
    pid.map_or_else(|| name.clone(), |pid| format!("{name} (pid {pid})"))
}

async fn converse<S>(
    hall: Arc<Hall>,
    stream: TokioIo<S>,
    door: Door,
    who: String,
    seat: tokio::sync::OwnedSemaphorePermit,
) where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let served = Arc::clone(&hall);
    let service = service_fn(move |request| {
        let (hall, who) = (Arc::clone(&served), who.clone());
        async move { Ok::<_, Infallible>(answer(&hall, door, who, request).await) }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(stream, service)
        .await;
    drop(seat);
    hall.ended.notify_waiters();
}

async fn answer(
    hall: &Hall,
    door: Door,
    who: String,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body =
        match tokio::time::timeout(HEADER_PATIENCE, Limited::new(body, BODY_MAX).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                return refuse(&Refusal {
                    status: 413,
                    why: format!("a body of more than {BODY_MAX} bytes, or a broken one"),
                });
            }
            Err(_) => {
                return refuse(&Refusal {
                    status: 408,
                    why: "the body did not arrive in time".to_owned(),
                });
            }
        };
    let header =
        |name: header::HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let asked = Asked {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        host: header(header::HOST),
        accept: header(header::ACCEPT),
        body: &body,
        by: By {
            who,
            when: clock::wall().to_string(),
        },
    };
    let last_event = head
        .headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    match route::route(door, &asked) {
        Ok(route) => carry_out(hall, route, last_event).await,
        Err(refusal) => refuse(&refusal),
    }
}

async fn carry_out(hall: &Hall, route: Route, last_event: Option<String>) -> Response<Body> {
    match route {
        Route::Live { verbose } => live(hall, verbose).await,
        Route::Events { follow: true } => follow(hall, last_event.as_deref()),
        Route::Events { follow: false } => json(200, &hall.surface.events.after(0, usize::MAX)),
        Route::Command(command) => command_answer(hall, command).await,
        Route::Config => match asked_in_time(hall.surface.engine.config()).await {
            Ok(config) => json(200, &view::config(&config)),
            Err(response) => response,
        },
        Route::Crons { name, next } => {
            let now = clock::wall().into();
            with_status(hall, |status, _| {
                let found = crons::crons(status, name.as_deref(), next, now);
                match (name, found.as_slice()) {
                    (Some(name), []) => refuse(&Refusal {
                        status: 404,
                        why: format!("there is no job {name}"),
                    }),
                    (Some(_), [job, ..]) => json(200, job),
                    (None, all) => json(200, &all),
                }
            })
            .await
        }
        Route::Singletons => {
            with_status(hall, |status, here| {
                json(200, &singletons::singletons(status, None, here))
            })
            .await
        }
        Route::Decisions(name) => {
            with_status(hall, |status, here| {
                match scaling::decisions(status, &name, here) {
                    Some(decisions) => json(200, &decisions),
                    None => refuse(&Refusal {
                        status: 404,
                        why: format!("there is no fleet {name} that follows the load"),
                    }),
                }
            })
            .await
        }
        Route::Endpoints => {
            with_status(hall, |status, here| {
                json(200, &endpoints::endpoints(status, here))
            })
            .await
        }
        Route::Cluster => survey(hall).await,
        Route::Prometheus => {
            with_status(hall, |status, _| json(200, &endpoints::prometheus(status))).await
        }
        Route::Singleton(name) => {
            with_status(hall, |status, here| {
                match singletons::shown(status, &name, here) {
                    Some(shown) => json(200, &shown),
                    None => refuse(&Refusal {
                        status: 404,
                        why: format!("there is no singleton {name}"),
                    }),
                }
            })
            .await
        }
        Route::Status { after } => {
            wait_for_event(hall, after).await;
            with_usage(hall, true, |status, here| {
                json(200, &view::status(status, here))
            })
            .await
        }
        Route::Page => {
            with_usage(hall, true, |status, here| {
                html(page::page(&view::status(status, here)))
            })
            .await
        }
        Route::Health => with_status(hall, health).await,
        Route::Metrics(format) => metrics(hall, format).await,
        Route::Ready { verbose } => with_status(hall, |status, _| ready(status, verbose)).await,
        Route::FleetReady(name) => with_status(hall, |status, _| fleet_ready(status, &name)).await,
    }
}

/// Asks, and turns silence into 503 with its age.
async fn asked_in_time<T>(
    answer: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, Response<Body>> {
    let began = clock::now();
    match tokio::time::timeout(STUCK, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(EngineError::Gone)) => Err(refuse(&Refusal {
            status: 503,
            why: "the supervisor is ending".to_owned(),
        })),
        Err(_) => {
            let age = clock::now().since(began);
            Err(refuse(&Refusal {
                status: 503,
                why: format!("the engine has not answered for {} ms", age.as_millis()),
            }))
        }
    }
}

async fn with_status(
    hall: &Hall,
    show: impl FnOnce(&Status, &Here<'_>) -> Response<Body>,
) -> Response<Body> {
    with_usage(hall, false, show).await
}

/// `used`: with what workers use.
async fn with_usage(
    hall: &Hall,
    used: bool,
    show: impl FnOnce(&Status, &Here<'_>) -> Response<Body>,
) -> Response<Body> {
    let seq = *hall.surface.events.watch().borrow();
    match asked_in_time(hall.surface.engine.status()).await {
        Ok(status) => {
            let readings = if used {
                hall.meter.lately(&status).await
            } else {
                Readings::default()
            };
            let now = clock::now();
            let wall = |moment| format!("{:.3}", clock::wall_at(moment));
            let usage = |worker: &WorkerStatus| readings.shown(worker, now);
            let here = Here {
                surface: &hall.surface,
                now,
                wall: &wall,
                usage: &usage,
                started: hall.started,
                seq,
            };
            show(&status, &here)
        }
        Err(response) => response,
    }
}

/// Lives as long as the engine's loop turns; nothing about workers.
async fn live(hall: &Hall, verbose: bool) -> Response<Body> {
    match asked_in_time(hall.surface.engine.status()).await {
        Ok(_) if verbose => text(200, "[+]loop ok\nlivez check passed\n".to_owned()),
        Ok(_) => text(200, "ok\n".to_owned()),
        Err(response) => response,
    }
}

fn ready(status: &Status, verbose: bool) -> Response<Body> {
    let checks = view::checks(status);
    let pass = checks.iter().all(|check| check.pass);
    let code = if pass { 200 } else { 503 };
    if verbose || !pass {
        let end = if pass {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        };
        return text(code, view::check_lines(&checks) + end);
    }
    text(code, "ok\n".to_owned())
}

fn fleet_ready(status: &Status, name: &str) -> Response<Body> {
    match status
        .fleets
        .iter()
        .find(|fleet| fleet.name.as_str() == name)
    {
        None => refuse(&Refusal {
            status: 404,
            why: format!("there is no fleet {name}"),
        }),
        Some(fleet) => {
            let code = if view::fleet_serves(fleet) { 200 } else { 503 };
            text(
                code,
                format!(
                    "{} of {} ready, {}\n",
                    fleet.ready, fleet.desired, fleet.state
                ),
            )
        }
    }
}

fn health(status: &Status, here: &Here<'_>) -> Response<Body> {
    let document = view::health(status, here);
    let code = if document["status"] == "fail" {
        503
    } else {
        200
    };
    let mut response = json(code, &document);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/health+json"),
    );
    response
}

/// A loop that does not answer has no metrics: whoever scrapes sees that it is down, and not numbers that stand still.
async fn metrics(hall: &Hall, format: Format) -> Response<Body> {
    let page = hall
        .scrapes
        .page(format, &*hall.surface.engine, &hall.meter);
    let page = match asked_in_time(page).await {
        Ok(page) => page,
        Err(response) => return response,
    };
    let mut response = respond(200, format.content_type(), page);
    let vary = header::HeaderValue::from_static("accept");
    response.headers_mut().insert(header::VARY, vary);
    response
}

/// All of the cluster: etcd is asked, so it may take a while, and fail.
async fn survey(hall: &Hall) -> Response<Body> {
    let picture = match asked_in_time(hall.surface.engine.command(Command::Survey)).await {
        Ok(Ok(Reply::Cluster(picture))) => *picture,
        Ok(Ok(_)) => return problem(500, "the engine answered another question", None),
        Ok(Err(denial)) => return denied(&denial),
        Err(response) => return response,
    };
    let wall = clock::wall().into();
    with_status(hall, |status, here| match &status.cluster {
        Some(part) => {
            let part = cluster::membership(part, here.now);
            json(200, &cluster::cluster(&status.node, part, picture, wall))
        }
        None => problem(409, "this node has just left its cluster", None),
    })
    .await
}

async fn command_answer(hall: &Hall, command: Command) -> Response<Body> {
    match asked_in_time(hall.surface.engine.command(command)).await {
        Ok(Ok(reply)) => json(200, &reply),
        Ok(Err(denial)) => denied(&denial),
        Err(response) => response,
    }
}

fn denied(denial: &Denial) -> Response<Body> {
    let status = match denial.code {
        ExitCode::UnknownName => 404,
        ExitCode::Usage | ExitCode::Config => 400,
        ExitCode::Conflict | ExitCode::NotReady => 409,
        ExitCode::Permission => 403,
        ExitCode::Ok
        | ExitCode::Failed
        | ExitCode::ChangesPending
        | ExitCode::WaitTimedOut
        | ExitCode::Unreachable
        | ExitCode::Interrupted => 500,
    };
    problem(status, &denial.why, Some(denial.code))
}

async fn wait_for_event(hall: &Hall, after: Option<u64>) {
    if let Some(after) = after {
        let mut newest = hall.surface.events.watch();
        let _ = tokio::time::timeout(LONG_POLL, newest.wait_for(|number| *number != after)).await;
    }
}

/// Server-sent events (WHATWG HTML 9.2). A client that was here before says what it saw last; ids of another supervisor mean "all of mine".
fn follow(hall: &Hall, last: Option<&str>) -> Response<Body> {
    let Ok(seat) = Arc::clone(&hall.followers).try_acquire_owned() else {
        let why = format!("{FOLLOWERS_MAX} clients follow events already");
        let mut refusal = refuse(&Refusal { status: 503, why });
        // Those who come in crowds must not keep the door from a balancer.
        let close = header::HeaderValue::from_static("close");
        refusal.headers_mut().insert(header::CONNECTION, close);
        return refusal;
    };
    let events = Arc::clone(&hall.surface.events);
    let seen = last
        .and_then(|id| id.split_once('-'))
        .filter(|(incarnation, _)| *incarnation == events.incarnation().to_string());
    let mut seen: u64 = match (last, seen) {
        (_, Some((_, number))) => number.parse().unwrap_or(0),
        (Some(_), None) => 0,
        (None, None) => *events.watch().borrow(),
    };
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, Infallible>::new(16);
    let (rows, mut feed) = mpsc::channel::<Vec<EventRow>>(4);
    tokio::spawn(async move {
        let mut newest = events.watch();
        loop {
            let batch = events.after(seen, BATCH_MAX);
            if let Some(row) = batch.last() {
                seen = row.number;
                if rows.send(batch).await.is_err() {
                    return;
                }
            }
            if newest.wait_for(|number| *number > seen).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        let _seat = seat;
        // A comment opens the stream, so that a client knows that it is connected before anything happens.
        let mut text = ": following\n\n".to_owned();
        loop {
            let sent = sender.send(Frame::data(Bytes::from(text)));
            if !matches!(tokio::time::timeout(DEAF_AFTER, sent).await, Ok(Ok(()))) {
                return;
            }
            let next = tokio::time::timeout(Duration::from_secs(15), feed.recv()).await;
            text = match next {
                Ok(Some(batch)) => batch.iter().map(sse).collect(),
                Ok(None) => return,
                Err(_) => ": still here\n\n".to_owned(),
            };
        }
    });
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/event-stream"),
    );
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    response
}

fn sse(row: &EventRow) -> String {
    let data = serde_json::to_string(row).expect("an event row has only strings and numbers");
    format!("id: {}\nevent: {}\ndata: {data}\n\n", row.id, row.kind)
}

fn respond(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        header::HeaderValue::from_static(policy),
    );
    response
}

fn text(status: u16, body: String) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn html(body: String) -> Response<Body> {
    respond(200, "text/html; charset=utf-8", body)
}

fn json<T: serde::Serialize>(status: u16, value: &T) -> Response<Body> {
    let body =
        serde_json::to_string(value).expect("views have only string keys and finite numbers");
    respond(status, "application/json", body)
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    problem(refusal.status, &refusal.why, None)
}

/// RFC 9457.
fn problem(status: u16, why: &str, code: Option<ExitCode>) -> Response<Body> {
    let title = StatusCode::from_u16(status)
        .ok()
        .and_then(|code| code.canonical_reason())
        .unwrap_or("error");
    let body = serde_json::json!({ "status": status, "title": title, "detail": why, "exit_code": code.map(ExitCode::number) });
    respond(status, "application/problem+json", body.to_string())
}
