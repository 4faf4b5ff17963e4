//! Signals to the daemon, with who sent them (signal-hook keeps the origin; an epoll source wakes us).

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use signal_hook::{
    consts::{
        SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
        SIGWINCH,
    },
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
    /// Something is asked of the one command that we were started for.
    Relay(i32),
}

pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
    relays: bool,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let wanted = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        Self::catch(&wanted, false)
    }

    /// Those that are passed on, unless whoever started us had them ignored (signal n in bit n - 1).
    pub(super) fn to_relay(ignored: u64) -> io::Result<Self> {
        let mut wanted = vec![
            SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGTSTP, SIGCONT,
        ];
        wanted.retain(|number| ignored >> (number - 1) & 1 == 0);
        wanted.push(SIGCHLD);
        Self::catch(&wanted, true)
    }

    fn catch(wanted: &[i32], relays: bool) -> io::Result<Self> {
        child::ignore_terminal_stops();
        child::outlive_size_limit();
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        // Whoever started us may have blocked signals; we must hear ours.
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        Ok(Self {
            delivery: SignalDelivery::with_pipe(read, write, WithOrigin::default(), wanted)?,
            relays,
        })
    }

    pub(super) fn take(&mut self) -> Vec<Asking> {
        let relays = self.relays;
        self.delivery
            .pending()
            .filter_map(|origin| match origin.signal {
                SIGCHLD => Some(Asking::Child),
                number if relays => Some(Asking::Relay(number)),
                _ => meaning(&origin),
            })
            .collect()
    }
}

fn meaning(origin: &Origin) -> Option<Asking> {
    let by = origin.process.map(|process| (process.pid, process.uid));
    let request = match origin.signal {
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
