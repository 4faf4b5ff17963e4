//! systemd's notify socket (sd_notify(3)): connected once and never waited for.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use crate::time::Span;

/// A connected notify socket.
#[derive(Debug)]
pub struct NotifySocket(UnixDatagram);

impl NotifySocket {
    /// Connects to `$NOTIFY_SOCKET`; none if systemd did not start us.
    pub fn from_env() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(None);
        };
        Self::connect(name.as_encoded_bytes()).map(Some)
    }

    fn connect(name: &[u8]) -> io::Result<Self> {
        let address = match name.strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => {
                SocketAddr::from_pathname(std::path::Path::new(&*String::from_utf8_lossy(name)))?
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Sends one message; a full queue loses it, which every message here can bear (they are repeated or refined).
    pub fn send(&self, text: &str) {
        let _ = self.0.send(text.as_bytes());
    }
}

/// Half of `$WATCHDOG_USEC`, as sd_watchdog_enabled(3) advises, if the watchdog is meant for this process.
pub fn watchdog_period() -> Option<Span> {
    let for_us =
        std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (for_us && micros > 0).then(|| Span::micros(micros / 2))
}
