//! The supervisor's end of the wire to the keeper's deadline thread: small packets, each for itself. One that cannot be sent is asked
//! for again with the next renewal, and until then the deadline that stands comes nearer, as it should.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::unix::AsyncFd;

use crate::{
    engine::{Event, lease::LeaseNews},
    id::WorkerId,
    time::{Clocks, Span},
    wire::{self, DeadlineNews, DeadlineOp, SMALL_MAX, SeatReport, SeatState, seat_key},
};

pub(super) struct Deadlines {
    socket: AsyncFd<OwnedFd>,
    /// Whom the numbers name.
    workers: BTreeMap<u64, WorkerId>,
    /// What stood when we began, and is nobody's yet.
    found: Vec<SeatReport>,
    closed: bool,
    /// How much time there is after each deadline.
    margins: BTreeMap<u64, Span>,
    /// How closely the keeper is watched, as far as we said.
    watched: Option<Span>,
}

impl Deadlines {
    /// Hears what stands.
    pub(super) async fn begin(socket: AsyncFd<OwnedFd>) -> io::Result<Self> {
        let mut deadlines = Self {
            socket,
            workers: BTreeMap::new(),
            found: Vec::new(),
            closed: false,
            margins: BTreeMap::new(),
            watched: None,
        };
        loop {
            for news in deadlines.receive().await? {
                match news {
                    DeadlineNews::Seat(report) => deadlines.found.push(report),
                    DeadlineNews::Caught => return Ok(deadlines),
                }
            }
        }
    }

    /// The deadline that stands for a holder of whom we heard when we began.
    pub(super) fn adopt(&mut self, worker: &WorkerId, fence: u64) -> Option<Clocks> {
        let key = seat_key(worker);
        self.workers.insert(key, worker.clone());
        let report = self
            .found
            .iter()
            .find(|report| report.key == key && report.fence == fence)?;
        (report.state == SeatState::Armed).then_some(report.until)
    }

    /// After all were adopted: deadlines that came while nobody listened; the rest is given back.
    pub(super) fn came(&mut self) -> Vec<Event> {
        let mut came = Vec::new();
        for report in std::mem::take(&mut self.found) {
            match (self.workers.contains_key(&report.key), report.state) {
                (true, SeatState::Fired { .. }) => came.extend(self.event(report)),
                (true, SeatState::Armed | SeatState::Free) => {}
                (false, _) => self.send(&DeadlineOp::Disarm {
                    key: report.key,
                    fence: report.fence,
                }),
            }
        }
        // Whoever has a deadline says with his next renewal how closely.
        if self.workers.is_empty() {
            self.be_watched();
        }
        came
    }

    /// `margin`: what is left after `until` before somebody else may run, if that is the cluster's to say.
    pub(super) fn arm(
        &mut self,
        worker: WorkerId,
        fence: u64,
        until: Clocks,
        margin: Option<Span>,
    ) {
        let key = seat_key(&worker);
        self.workers.insert(key, worker);
        self.margins.extend(margin.map(|margin| (key, margin)));
        self.be_watched();
        self.send(&DeadlineOp::Arm { key, fence, until });
    }

    /// A keeper that is frozen kills nobody: whoever watches it must notice within half of what is left then.
    fn be_watched(&mut self) {
        let least = self.margins.values().min().copied();
        let within = least.map_or(Span::ZERO, |least| Span::nanos(least.as_nanos() / 2));
        if self.watched != Some(within) {
            self.watched = Some(within);
            self.send(&DeadlineOp::Watch { within });
        }
    }

    pub(super) fn disarm(&mut self, worker: &WorkerId, fence: u64) {
        let key = seat_key(worker);
        self.workers.remove(&key);
        self.margins.remove(&key);
        self.send(&DeadlineOp::Disarm { key, fence });
        self.be_watched();
    }

    /// What the engine is to hear of it.
    pub(super) fn event(&self, report: SeatReport) -> Option<Event> {
        let worker = self.workers.get(&report.key)?.clone();
        let fence = report.fence;
        let news = LeaseNews::Seat {
            until: report.until,
            state: report.state,
        };
        Some(Event::Lease {
            worker,
            fence,
            news,
        })
    }

    /// The other end is gone.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_open(&self) -> bool {
        !self.closed
    }

    /// May there be news?
    pub(super) fn is_used(&self) -> bool {
        self.is_open() && !self.workers.is_empty()
    }

    /// Waits for news. An error means that nothing can be armed any more.
    pub(super) async fn receive(&self) -> io::Result<Vec<DeadlineNews>> {
        loop {
            let mut guard = self.socket.readable().await?;
            let news = self.there()?;
            if !news.is_empty() {
                return Ok(news);
            }
            guard.clear_ready();
        }
    }

    /// News that are there. Whoever hears of an end looks here before: this is why it came.
    pub(super) fn there(&self) -> io::Result<Vec<DeadlineNews>> {
        let mut news = Vec::new();
        while news.len() < 64 {
            let mut packet = [0; SMALL_MAX];
            let got = recv(self.socket.get_ref(), &mut packet[..], RecvFlags::DONTWAIT);
            match got {
                Ok((0, _)) => return Err(io::Error::other("the deadline thread hung up")),
                Ok((length, _)) => {
                    let one = wire::decode_small(&packet[..length]);
                    news.push(one.map_err(io::Error::other)?);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(news)
    }

    fn send(&self, op: &DeadlineOp) {
        let mut packet = [0; SMALL_MAX];
        if let Ok(bytes) = wire::encode_small(op, &mut packet) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = send(self.socket.get_ref().as_fd(), bytes, flags);
        }
    }
}
