//! systemd's watchdog, pinged from a thread of its own: it asks "is this process frozen?", and the main thread may rightly
//! be waiting for an exec from a slow disk.

use std::{io, thread};

use crate::sys::{
    poll::Poll,
    sd::{self, NotifySocket},
};

/// Starts pinging if systemd asked for it (`WatchdogSec=`).
pub(super) fn start() -> io::Result<()> {
    let (Some(period), Some(socket)) = (sd::watchdog_period(), NotifySocket::from_env()?) else {
        return Ok(());
    };
    thread::Builder::new()
        .name("watchdog".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            let Ok(mut poll) = Poll::new() else { return };
            loop {
                socket.send("WATCHDOG=1");
                if poll.wait(Some(period)).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
