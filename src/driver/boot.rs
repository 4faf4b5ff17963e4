//! The first moments of a supervisor: what the keeper tells, the accepted configuration, the listeners.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{self, Config, spec::FleetSpec},
    driver::{Settings, alarm, link::Link},
    engine::{agent_name, socket_name},
    id::FleetName,
    sys::{clock, listen, memfd, notify, poll, surroundings::ThisMachine},
    time::{Span, Stamp},
    wire::{self, Header, News, Op, RowKey, Welcome},
};

/// What the keeper holds for the next supervisor: the last accepted configuration.
#[derive(Serialize, Deserialize)]
pub(super) struct Accepted {
    pub(super) config: Config,
    pub(super) previous: BTreeMap<FleetName, FleetSpec>,
    /// When it was; none: by a supervisor that did not tell.
    #[serde(default)]
    pub(super) at: Option<Stamp>,
}

/// Everything the keeper told at the beginning.
pub(super) struct Told {
    pub(super) welcome: Welcome,
    pub(super) held: BTreeMap<String, OwnedFd>,
    pub(super) rows: Vec<(RowKey, Header, Vec<u8>)>,
    /// News that came on the heels of the telling.
    pub(super) rest: Vec<News>,
}

/// Listens until the keeper has told everything.
pub(super) async fn be_told(link: &Link) -> io::Result<Told> {
    let mut welcome = None;
    let (mut held, mut rows, mut rest) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut caught = false;
    while !caught {
        let packets = link.receive().await?;
        if packets.is_empty() {
            return Err(io::Error::other(
                "the keeper ended while it told us what it holds",
            ));
        }
        for packet in packets {
            let mut fds = packet.fds.into_iter();
            for news in wire::decode::<News>(&packet.bytes).map_err(io::Error::other)? {
                match news {
                    News::Welcome(told) => welcome = Some(*told),
                    News::Held { name } => {
                        held.extend(fds.next().map(|fd| (name, fd)));
                    }
                    News::Row { key, header, body } if !caught => {
                        rows.push((key, header, body.unwrap_or_default()))
                    }
                    News::Caught => caught = true,
                    news => rest.push(news),
                }
            }
        }
    }
    let welcome = welcome.ok_or_else(|| io::Error::other("the keeper did not say welcome"))?;
    Ok(Told {
        welcome,
        held,
        rows,
        rest,
    })
}

/// The accepted configuration, or, for the first supervisor, the file's. The error is for people.
pub(super) fn configuration(
    settings: &Settings,
    welcome: &Welcome,
    held: &mut BTreeMap<String, OwnedFd>,
) -> Result<(Accepted, bool), String> {
    if let Some(fd) = held.remove("config") {
        let bytes = memfd::read(fd)
            .map_err(|e| format!("failed to read the accepted configuration: {e}"))?;
        match serde_json::from_slice(&bytes) {
            Ok(accepted) => return Ok((accepted, false)),
            Err(e) => eprintln!(
                "leasehold: the accepted configuration cannot be read ({e}); reading the file again"
            ),
        }
    }
    let config = match &settings.errand {
        Some(errand) => errand.config(welcome)?,
        None => {
            config::load(&settings.config, &ThisMachine::of_daemon(welcome)).map_err(|faults| {
                let colour = std::io::IsTerminal::is_terminal(&io::stderr())
                    && std::env::var_os("NO_COLOR").is_none();
                faults.render(colour)
            })?
        }
    };
    Ok((
        Accepted {
            config,
            previous: BTreeMap::new(),
            at: Some(alarm::shown()),
        },
        true,
    ))
}

/// A request with the descriptor that goes with it.
pub(super) type Request = (Op, Option<OwnedFd>);

/// The sealed copy that the keeper is to hold.
pub(super) fn hold_accepted(accepted: &Accepted) -> io::Result<Request> {
    let bytes = serde_json::to_vec(accepted)?;
    Ok((
        Op::Hold {
            name: "config".to_owned(),
        },
        Some(memfd::sealed("leasehold-config", &bytes)?),
    ))
}

/// Sockets of a configuration that nobody holds yet, bound. All or none: the error names the one that cannot be had.
pub(super) fn bind_missing(
    config: &Config,
    held: &BTreeSet<String>,
    patient: bool,
) -> Result<Vec<(String, OwnedFd)>, String> {
    let mut bound: Vec<(String, OwnedFd)> = Vec::new();
    for (fleet, spec) in &config.fleets {
        for (name, socket) in &spec.sockets {
            let slots = if socket.reuse_port { spec.workers } else { 1 };
            for slot in 0..slots {
                let full = socket_name(fleet, name, socket, slot);
                if held.contains(&full) {
                    continue;
                }
                bound.push((full, bind(fleet, spec, name, patient)?));
            }
        }
        let publish = spec.publish.as_ref();
        if let Some(address) = publish.and_then(|publish| publish.haproxy_agent) {
            let full = agent_name(fleet, address);
            if !held.contains(&full) {
                bound.push((full, bind_agent(fleet, address, patient)?));
            }
        }
    }
    Ok(bound)
}

/// Whose agent-check this listener is, by the name under which it is held.
pub(super) fn agent_of(name: &str) -> Option<FleetName> {
    let (fleet, _) = name.strip_prefix("agent/")?.split_once('/')?;
    fleet.parse().ok()
}

fn bind_agent(
    fleet: &FleetName,
    address: std::net::SocketAddr,
    patient: bool,
) -> Result<OwnedFd, String> {
    let tcp = listen::Address::Tcp(address);
    let open = || listen::open(&tcp, 256, false, None);
    let opened = if patient { patiently(open) } else { open() };
    opened.map_err(|e| {
        let hint = hint(&tcp, &e);
        format!("fleet.{fleet}.publish.haproxy_agent: cannot listen on {address}: {e}{hint}")
    })
}

/// Binds one socket of a fleet; `patient` when a predecessor may still be closing its own.
pub(super) fn bind(
    fleet: &FleetName,
    spec: &FleetSpec,
    name: &str,
    patient: bool,
) -> Result<OwnedFd, String> {
    let Some(socket) = spec.sockets.get(name) else {
        return Err(format!("fleet.{fleet} has no socket {name}"));
    };
    let address = match &socket.listen {
        config::spec::ListenAddress::Tcp(address) => listen::Address::Tcp(*address),
        config::spec::ListenAddress::Unix(path) => listen::Address::Unix(PathBuf::from(path)),
    };
    let open = || listen::open(&address, socket.backlog, socket.reuse_port, socket.mode);
    let opened = if patient { patiently(open) } else { open() };
    opened.map_err(|e| {
        format!(
            "fleet.{fleet}.socket.{name}: cannot listen on {address}: {e}{}",
            hint(&address, &e)
        )
    })
}

/// A predecessor that was killed a moment ago may not have closed its sockets yet.
fn patiently(open: impl Fn() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let until = clock::now().after(Span::secs(1));
    loop {
        match open() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && clock::now() < until => {
                poll::pause(Span::millis(10));
            }
            done => return done,
        }
    }
}

/// What would do, where the kernel's word alone does not say.
fn hint(address: &listen::Address, error: &io::Error) -> &'static str {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, NotFound, PermissionDenied};
    match (address, error.kind()) {
        (listen::Address::Tcp(_), AddrInUse) => {
            " (another program listens there; `ss -ltnp` shows which)"
        }
        (listen::Address::Tcp(_), PermissionDenied) => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE)"
        }
        (listen::Address::Tcp(_), AddrNotAvailable) => " (no interface has this address)",
        (listen::Address::Unix(_), AddrInUse) => {
            " (a file, or the socket of a program that `ss -lxp` shows, is there already)"
        }
        (listen::Address::Unix(_), PermissionDenied) => {
            " (this user may not make a socket in that directory)"
        }
        (listen::Address::Unix(_), NotFound) => " (make its directory first)",
        _ => "",
    }
}

/// The daemon's own listeners: taken from the keeper, or made and given to it.
pub(super) struct Listeners {
    pub(super) control: Option<OwnedFd>,
    pub(super) http: Vec<(std::net::SocketAddr, OwnedFd)>,
    pub(super) notify: OwnedFd,
    pub(super) notify_path: PathBuf,
}

/// Opens what is not held yet; what was opened is to be told to the keeper.
pub(super) fn listeners(
    settings: &Settings,
    config: &Config,
    held: &mut BTreeMap<String, OwnedFd>,
) -> Result<(Listeners, Vec<Request>), String> {
    let mut ops = Vec::new();
    if settings.errand.is_some() {
        let notify = notify::unbound().map_err(|e| format!("cannot make a socket: {e}"))?;
        let none = Listeners {
            control: None,
            http: Vec::new(),
            notify,
            notify_path: PathBuf::new(),
        };
        return Ok((none, ops));
    }
    let mut keep = |name: &str, fd: &OwnedFd| -> Result<(), String> {
        let copy = fd
            .try_clone()
            .map_err(|e| format!("failed to duplicate a descriptor: {e}"))?;
        ops.push((
            Op::Hold {
                name: name.to_owned(),
            },
            Some(copy),
        ));
        Ok(())
    };
    let run_dir = &settings.directories.run;
    let control_path = run_dir.join("control.sock");
    let control = match held.remove("control") {
        Some(fd) => fd,
        None => {
            let address = listen::Address::Unix(control_path.clone());
            // The directory is locked for us: whoever still listens there is a predecessor on its way out.
            let _ = std::fs::remove_file(&control_path);
            let fd = listen::open(&address, 256, false, Some(0o660)).map_err(|e| {
                format!(
                    "cannot listen on {}: {e}{}",
                    control_path.display(),
                    hint(&address, &e)
                )
            })?;
            keep("control", &fd)?;
            fd
        }
    };
    let notify_path = run_dir.join("notify");
    let notify = match held.remove("notify") {
        Some(fd) => fd,
        None => {
            let fd = notify::bind_at(&notify_path)
                .map_err(|e| format!("cannot bind {}: {e}", notify_path.display()))?;
            keep("notify", &fd)?;
            fd
        }
    };
    let mut http = Vec::new();
    for address in &config.http.listen {
        let name = format!("http/{address}");
        let fd = match held.remove(&name) {
            Some(fd) => fd,
            None => {
                let tcp = listen::Address::Tcp(*address);
                let open = || listen::open(&tcp, 1024, false, None);
                let fd = patiently(open).map_err(|e| {
                    let hint = hint(&tcp, &e);
                    format!("http.listen: cannot listen on {address}: {e}{hint}")
                })?;
                keep(&name, &fd)?;
                fd
            }
        };
        http.push((*address, fd));
    }
    Ok((
        Listeners {
            control: Some(control),
            http,
            notify,
            notify_path,
        },
        ops,
    ))
}
