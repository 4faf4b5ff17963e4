//! Signals to the daemon, with who sent them (signal-hook keeps the origin; an epoll source wakes us).

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::{backend::SignalDelivery, exfiltrator::WithOrigin},
    low_level::siginfo::{Cause, Origin},
};

use crate::{keeper::core::Request, sys::child};

/// One signal, by meaning.
pub(super) enum Asking {
    /// A child changed state.
    Child,
    /// SIGUSR2 is kept for upgrades; without them its default would end us.
    Upgrade,
    /// Something is asked of the daemon, by this pid and uid if a process sent it.
    Request(Request, Option<(i32, u32)>),
}

pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        child::ignore_terminal_stops();
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let wanted = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        // Whoever started us may have blocked signals; we must hear ours.
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        Ok(Self {
            delivery: SignalDelivery::with_pipe(read, write, WithOrigin::default(), wanted)?,
        })
    }

    pub(super) fn take(&mut self) -> Vec<Asking> {
        self.delivery
            .pending()
            .filter_map(|origin| meaning(&origin))
            .collect()
    }
}

fn meaning(origin: &Origin) -> Option<Asking> {
    let by = origin.process.map(|process| (process.pid, process.uid));
    let request = match origin.signal {
        SIGCHLD => return Some(Asking::Child),
        SIGUSR2 => return Some(Asking::Upgrade),
        SIGTERM | SIGINT => Request::Drain,
        SIGQUIT => Request::Kill,
        // A terminal that went away, not an operator who wants a reload.
        SIGHUP if matches!(origin.cause, Cause::Kernel) => Request::Drain,
        SIGHUP => Request::Reload,
        SIGUSR1 => Request::Reopen,
        _ => return None,
    };
    Some(Asking::Request(request, by))
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}
