//! A timer on the wall clock that also notices when that clock is set.

use std::{io, os::fd::OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::time::Stamp;

/// A timer that is not armed, nonblocking.
pub fn create() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    Ok(timerfd_create(TimerfdClockId::Realtime, flags)?)
}

/// It becomes readable when the wall clock shows `at`, or is set by somebody (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
pub fn arm(timer: &OwnedFd, at: Stamp) -> io::Result<()> {
    let value = Timespec {
        // All zeros would disarm it.
        tv_sec: at.0.div_euclid(1_000).max(1),
        tv_nsec: at.0.rem_euclid(1_000) * 1_000_000,
    };
    set(timer, value)
}

/// It stays silent.
pub fn disarm(timer: &OwnedFd) -> io::Result<()> {
    let value = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    set(timer, value)
}

fn set(timer: &OwnedFd, value: Timespec) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: value,
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &once)?;
    Ok(())
}

/// Takes what made it readable; whether that was the time or somebody's hand, the clock must be read anew.
pub fn take(timer: &OwnedFd) {
    // ECANCELED is how a clock that was set is told; with EAGAIN there is nothing to take.
    let _ = rustix::io::read(timer, &mut [0_u8; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec as Wait, poll};

    fn rings(timer: &OwnedFd) -> bool {
        let now = Wait {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut one = [PollFd::new(timer, PollFlags::IN)];
        poll(&mut one, Some(&now)).unwrap() == 1
    }

    #[test]
    fn rings_when_the_instant_is_past_and_once() {
        let timer = create().unwrap();
        assert!(!rings(&timer));
        for past in [Stamp(0), Stamp(-5), Stamp(1_000_000)] {
            arm(&timer, past).unwrap();
            assert!(rings(&timer), "{past}");
            take(&timer);
            assert!(!rings(&timer), "{past}");
        }
        arm(&timer, Stamp(253_402_207_200_000)).unwrap();
        assert!(!rings(&timer));
        arm(&timer, Stamp(0)).unwrap();
        disarm(&timer).unwrap();
        assert!(!rings(&timer));
    }
}
