//! A small HTTP/1.1 gateway that scales by processes: `cargo run --example gateway`. One request at a time is worked on: some processor time,
//! then a wait for somebody behind it, so that one worker can use a part of a core and no more.
//!
//! It listens on the sockets it inherits (`LISTEN_FDS`) or on `$PORT`, says when it is ready and how busy it is, and drains on SIGTERM: what is in
//! flight is answered with `Connection: close`, and it exits 0.
//!
//! `GATEWAY_WORK` is the number of rounds of hashing of a request, `GATEWAY_WAIT_MS` the wait. `gateway --calibrate` prints the rounds of a
//! millisecond of processor time.

#![allow(
    clippy::disallowed_methods,
    reason = "a wait for somebody behind it is what it plays, and nothing here must survive a suspend"
)]

use std::{
    env,
    error::Error,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::{FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};

/// How often a sleeper looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Who keeps a connection open and says nothing is waited for so long during a drain: its next request may be on its way.
const LINGER: Duration = Duration::from_secs(1);
/// Between two words about how busy it is.
const REPORT: Duration = Duration::from_millis(500);
/// Headers, and bodies, up to this.
const REQUEST_MAX: usize = 64 * 1024;

/// What all connections share.
#[derive(Default)]
struct Gateway {
    work: u64,
    wait: Duration,
    /// Whoever works sits here.
    seat: Mutex<()>,
    stopping: AtomicBool,
    connections: AtomicU64,
    inflight: AtomicU64,
    done: AtomicU64,
    busy_micros: AtomicU64,
}

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().any(|word| word == "--calibrate") {
        println!("{}", calibrate());
        return Ok(());
    }
    let number = |name: &str, otherwise: u64| env::var(name).map_or(Ok(otherwise), |n| n.parse());
    let gateway = Arc::new(Gateway {
        work: number("GATEWAY_WORK", 100_000)?,
        wait: Duration::from_millis(number("GATEWAY_WAIT_MS", 0)?),
        ..Gateway::default()
    });
    let listeners = listeners()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        let gateway = Arc::clone(&gateway);
        let stop = move |_| gateway.stopping.store(true, SeqCst);
        on_signal(signal, stop)?;
    }
    say("READY=1");
    let reporter = Arc::clone(&gateway);
    thread::spawn(move || reporter.report());
    gateway.accept_all(&listeners)?;
    say("STOPPING=1");
    drop(listeners);
    while gateway.connections.load(SeqCst) > 0 {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Calls back on a thread of its own, where anything may be done.
fn on_signal(signal: i32, then: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal])?;
    thread::spawn(move || signals.forever().for_each(then));
    Ok(())
}

/// Those that are inherited, or one at `$PORT`.
fn listeners() -> Result<Vec<TcpListener>, Box<dyn Error>> {
    let count: i32 = env::var("LISTEN_FDS").map_or(Ok(0), |n| n.parse())?;
    let listeners = if count > 0 {
        (3..3 + count).map(inherited).collect()
    } else {
        let port: u16 = env::var("PORT")?.parse()?;
        vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port))?]
    };
    for listener in &listeners {
        // Siblings share it: who comes second finds nothing, and must not wait.
        listener.set_nonblocking(true)?;
    }
    Ok(listeners)
}

#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
fn inherited(fd: i32) -> TcpListener {
    // SAFETY: LISTEN_FDS says that it is open and ours, and each number is taken once.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

/// Rounds of hashing in a millisecond of processor time, whoever else wants the processor.
fn calibrate() -> u64 {
    let used = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    const ROUNDS: u64 = 1_000_000;
    let best = (0..20)
        .map(|n| {
            let before = used();
            std::hint::black_box(hash(n, ROUNDS));
            used() - before
        })
        .min();
    ROUNDS * 1_000_000 / best.unwrap_or(1).max(1)
}

/// Each round needs the one before it.
fn hash(seed: u64, rounds: u64) -> u64 {
    (0..rounds).fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, n| {
        (hash ^ n)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23)
    })
}

/// Tells whoever started it, if they listen.
fn say(text: &str) {
    let Ok(name) = env::var("NOTIFY_SOCKET") else {
        return;
    };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let send = |address| UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address);
    if let Err(error) = address.and_then(send) {
        eprintln!("cannot say {text:?}: {error}");
    }
}

impl Gateway {
    /// Until it is to stop, and nobody waits any more at a port of its own.
    fn accept_all(self: &Arc<Self>, listeners: &[TcpListener]) -> io::Result<()> {
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.as_nanos() as i64,
        };
        let shared = env::var_os("LISTEN_FDS").is_some();
        loop {
            let stopping = self.stopping.load(SeqCst);
            if stopping && shared {
                return Ok(());
            }
            let mut polls: Vec<PollFd<'_>> = listeners
                .iter()
                .map(|one| PollFd::new(one, PollFlags::IN))
                .collect();
            match poll(&mut polls, Some(&look)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut came = false;
            for listener in listeners {
                let Ok((stream, _)) = listener.accept() else {
                    continue;
                };
                came = true;
                self.connections.fetch_add(1, SeqCst);
                let gateway = Arc::clone(self);
                thread::spawn(move || {
                    // Whoever goes away in the middle has no need of an answer.
                    let _ = gateway.serve(stream);
                    gateway.connections.fetch_sub(1, SeqCst);
                });
            }
            if stopping && !came {
                return Ok(());
            }
        }
    }

    /// Answers request after request of one connection.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut space = Vec::new();
        loop {
            let Some(length) = self.read_request(&mut stream, &mut space)? else {
                return Ok(());
            };
            self.inflight.fetch_add(1, SeqCst);
            // Health is no work: a busy worker is a healthy one.
            if !space.starts_with(b"GET /healthz ") {
                self.work();
            }
            let asked = String::from_utf8_lossy(&space[..length]).to_ascii_lowercase();
            let close = self.stopping.load(SeqCst) || asked.contains("\r\nconnection: close");
            space.drain(..length);
            let connection = if close { "close" } else { "keep-alive" };
            let answered = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: {connection}\r\n\r\ndone\n"
            );
            self.inflight.fetch_sub(1, SeqCst);
            answered?;
            if close {
                return Ok(());
            }
        }
    }

    /// Reads until a whole request is there, and says how long it is; none when no other will come.
    fn read_request(
        &self,
        stream: &mut TcpStream,
        space: &mut Vec<u8>,
    ) -> io::Result<Option<usize>> {
        let mut told_at = None;
        loop {
            if let Some(length) = request_length(space) {
                return Ok(Some(length));
            }
            if space.len() > REQUEST_MAX {
                return Ok(None);
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(n) => space.extend_from_slice(&piece[..n]),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    let since = self
                        .stopping
                        .load(SeqCst)
                        .then(|| *told_at.get_or_insert_with(Instant::now));
                    if since.is_some_and(|since| since.elapsed() > LINGER) {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One unit, one at a time.
    fn work(&self) {
        let _seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        std::hint::black_box(hash(self.done.fetch_add(1, SeqCst), self.work));
        thread::sleep(self.wait);
        self.busy_micros
            .fetch_add(since.elapsed().as_micros() as u64, SeqCst);
    }

    /// Says how busy it is, for as long as it lives.
    fn report(&self) {
        let (mut since, mut before) = (Instant::now(), 0);
        loop {
            thread::sleep(REPORT);
            let busy = self.busy_micros.load(SeqCst);
            let share = (busy - before) as f64 / since.elapsed().as_micros() as f64;
            (since, before) = (Instant::now(), busy);
            say(&format!(
                "X_LEASEHOLD_BUSY={:.3}\nX_LEASEHOLD_INFLIGHT={}\nX_LEASEHOLD_DONE={}",
                share.min(1.0),
                self.inflight.load(SeqCst),
                self.done.load(SeqCst)
            ));
        }
    }
}

/// The length of the request at the beginning of these bytes, its body with it, if all of it is there.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse().ok())
        .unwrap_or(0);
    let all = head.saturating_add(body);
    (bytes.len() >= all).then_some(all)
}
