//! The keeper's second thread: it kills gated workers at their deadlines, whatever the main thread and the supervisor are doing, and
//! pings systemd's watchdog. Once it runs it opens no file, asks for no memory, takes no lock and waits for nobody.

use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvFlags, SendFlags, recv, send},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use crate::{
    sys::{
        clock, packet,
        sd::{self, NotifySocket},
        seats::{self, Seats},
    },
    time::{Moment, Span},
    wire::{self, DeadlineNews, DeadlineOp, SMALL_MAX},
};

/// So many messages are answered before deadlines are looked at again.
const MESSAGES_AT_ONCE: usize = 64;

/// The main thread's end.
pub(super) struct Deadlines {
    /// Shared with the thread.
    pub(super) seats: &'static Seats,
    door: OwnedFd,
}

impl Deadlines {
    /// Starts the thread; it ends when this is dropped, or with the process.
    pub(super) fn start(watchdog: Option<Watchdog>) -> io::Result<Self> {
        let seats = Seats::new();
        let (door, inside) = packet::pair()?;
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let guard = Guard {
            seats,
            door: inside,
            timer,
            link: None,
            watchdog,
        };
        thread::Builder::new()
            .name("deadlines".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || guard.run())?;
        Ok(Self { seats, door })
    }

    /// Gives the thread its end of a new supervisor's socket; the last one's has been shut by then.
    pub(super) fn connect(&self, link: OwnedFd) -> io::Result<()> {
        packet::send(&self.door, &[0], &[link.as_fd()])
    }
}

/// systemd's, if it watches us.
pub(super) struct Watchdog {
    socket: NotifySocket,
    /// Half of what was configured.
    usual: Span,
    period: Span,
    at: Moment,
}

impl Watchdog {
    pub(super) fn from_env() -> io::Result<Option<Self>> {
        let Some(period) = sd::watchdog_period() else {
            return Ok(None);
        };
        let at = clock::now();
        let watchdog = |socket| Self {
            socket,
            usual: period,
            period,
            at,
        };
        Ok(NotifySocket::from_env()?.map(watchdog))
    }

    fn ping(&mut self, now: Moment) {
        self.socket.send("WATCHDOG=1");
        self.at = now.after(self.period);
    }

    /// It is to notice sooner that we are frozen; zero: as it was configured to.
    fn be_watched(&mut self, within: Span, now: Moment) {
        let half = Span::nanos(within.as_nanos() / 2);
        let period = match half {
            Span::ZERO => self.usual,
            half => half.min(self.usual),
        };
        if period == self.period {
            return;
        }
        self.period = period;
        // On the stack: this thread asks for no memory.
        let mut text = [0; 48];
        let mut rest = &mut text[..];
        let micros = period.times(2).as_nanos() / 1_000;
        if write!(rest, "WATCHDOG_USEC={micros}").is_ok() {
            let left = rest.len();
            let length = text.len() - left;
            self.socket
                .send(std::str::from_utf8(&text[..length]).unwrap_or_default());
        }
        self.ping(now);
    }
}

/// The thread's own.
struct Guard {
    seats: &'static Seats,
    door: OwnedFd,
    timer: OwnedFd,
    link: Option<OwnedFd>,
    watchdog: Option<Watchdog>,
}

impl Guard {
    fn run(mut self) {
        seats::become_urgent();
        loop {
            let next = self.look();
            self.set_timer(next);
            if !self.wait() {
                return;
            }
        }
    }

    /// Does what is due; when to look again.
    fn look(&mut self) -> Option<Moment> {
        let link = self.link.as_ref();
        self.seats.fire(clock::both(), |report| {
            tell(link, DeadlineNews::Seat(report))
        });
        let now = clock::both();
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.at <= now.boottime
        {
            watchdog.ping(now.boottime);
        }
        let ping = self.watchdog.as_ref().map(|watchdog| watchdog.at);
        [self.seats.next_look(now), ping]
            .into_iter()
            .flatten()
            .min()
    }

    /// A timer of BOOTTIME goes off when the machine resumes, if its time passed meanwhile (timerfd_create(2)). Setting it also takes
    /// back that it went off.
    fn set_timer(&self, at: Option<Moment>) {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let at = at.map_or(zero, |at| Timespec {
            tv_sec: (at.0 / 1_000_000_000) as i64,
            tv_nsec: (at.0 % 1_000_000_000) as i64,
        });
        let setting = Itimerspec {
            it_interval: zero,
            it_value: at,
        };
        let done = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting);
        debug_assert!(done.is_ok(), "timerfd_settime: {done:?}");
    }

    /// False once the main thread is at its end. To wait on then would be to be woken at once, again and again, and before everybody else:
    /// whoever shares our processor would stand still until the process is gone.
    fn wait(&mut self) -> bool {
        let link = self.link.as_ref().unwrap_or(&self.door);
        let mut ready = [
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.door, PollFlags::IN),
            PollFd::new(link, PollFlags::IN),
        ];
        if poll(&mut ready, None).is_err() {
            return true;
        }
        let [_, door, link] = ready.map(|source| source.revents());
        if !link.is_empty() {
            self.answer();
        }
        if !door.is_empty() {
            self.change_supervisor();
        }
        !door.contains(PollFlags::HUP)
    }

    /// What a dead supervisor had asked for is still done; then its successor is told what stands.
    fn change_supervisor(&mut self) {
        let Some(link) = packet::receive_one_fd(&self.door) else {
            return;
        };
        while self.link.is_some() && self.answer() {}
        for report in self.seats.reports() {
            tell(Some(&link), DeadlineNews::Seat(report));
        }
        tell(Some(&link), DeadlineNews::Caught);
        self.link = Some(link);
    }

    /// Carries out what is asked, a bounded number of times; true if there was anything.
    fn answer(&mut self) -> bool {
        for n in 0..MESSAGES_AT_ONCE {
            let Some(link) = &self.link else { return n > 0 };
            let mut packet = [0; SMALL_MAX];
            let asked = match recv(link, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) if length > 0 => {
                    wire::decode_small::<DeadlineOp>(&packet[..length])
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return n > 0,
                // Shut, or broken: the next supervisor brings a new one.
                Ok(_) | Err(_) => {
                    self.link = None;
                    return n > 0;
                }
            };
            match asked {
                Ok(op) => {
                    if let Some(report) = self.carry_out(op) {
                        tell(self.link.as_ref(), DeadlineNews::Seat(report));
                    }
                }
                // The supervisor sees its end shut, and says so.
                Err(_) => self.link = None,
            }
        }
        true
    }

    fn carry_out(&mut self, op: DeadlineOp) -> Option<wire::SeatReport> {
        match op {
            DeadlineOp::Arm { key, fence, until } => Some(self.seats.arm(key, fence, until)),
            DeadlineOp::Disarm { key, fence } => Some(self.seats.disarm(key, fence)),
            DeadlineOp::Watch { within } => {
                if let Some(watchdog) = &mut self.watchdog {
                    watchdog.be_watched(within, clock::now());
                }
                None
            }
        }
    }
}

/// A supervisor that does not read gets no more: it asks again with its next renewal.
fn tell(link: Option<&OwnedFd>, news: DeadlineNews) {
    let mut packet = [0; SMALL_MAX];
    if let (Some(link), Ok(bytes)) = (link, wire::encode_small(&news, &mut packet)) {
        let _ = send(link, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll;

    fn threads_of_its_name() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "deadlines").count()
    }

    /// It goes before everybody else: one that is left behind may not run in circles.
    #[test]
    fn the_thread_ends_when_nobody_needs_it() {
        let deadlines = Deadlines::start(None).unwrap();
        let waits = |count: usize| {
            (0..5_000).any(|_| {
                let is_so = threads_of_its_name() == count;
                if !is_so {
                    poll::pause(Span::millis(1));
                }
                is_so
            })
        };
        assert!(waits(1));
        drop(deadlines);
        assert!(waits(0));
    }
}
