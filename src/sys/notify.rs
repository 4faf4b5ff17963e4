//! The workers' notify socket: sd_notify(3) datagrams with the sender's credentials.
//!
//! A datagram is looked at first and consumed only after the keeper holds what it changed: a supervisor killed in between
//! reads it again.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg},
    unistd::close,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with, sockopt,
};

/// Longest datagram that is read; sd_notify's own limit is far below it.
const DATAGRAM_MAX: usize = 4096;

/// One datagram and who sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender's pid, vouched for by the kernel.
    pub pid: i32,
    /// Its text, as sent.
    pub bytes: Vec<u8>,
}

/// Binds a fresh socket at `path`, writable by every local user: senders are known by their credentials, not by permission.
pub fn bind_at(path: &Path) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(path);
    let socket = unbound()?;
    sockopt::set_socket_passcred(&socket, true)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok(socket)
}

/// One without a name, to which nobody can send.
pub fn unbound() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

/// The first waiting datagram, left in its place.
pub fn peek(socket: impl AsFd) -> io::Result<Option<Datagram>> {
    receive(socket, MsgFlags::MSG_PEEK)
}

/// Drops the first waiting datagram.
pub fn consume(socket: impl AsFd) -> io::Result<()> {
    receive(socket, MsgFlags::empty()).map(|_| ())
}

fn receive(socket: impl AsFd, flags: MsgFlags) -> io::Result<Option<Datagram>> {
    // Room for descriptors too (FDSTORE=1): they are received and closed at once, not left to truncate the credentials.
    let mut space = nix::cmsg_space!(UnixCredentials, [RawFd; 253]);
    let mut bytes = vec![0; DATAGRAM_MAX];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let fd = socket.as_fd().as_raw_fd();
    let message = match recvmsg::<()>(fd, &mut slices, Some(&mut space), flags) {
        Ok(message) => message,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut pid = 0;
    for part in message.cmsgs()? {
        match part {
            // 0 for a sender outside our pid namespace: nobody of ours.
            ControlMessageOwned::ScmCredentials(credentials) => pid = credentials.pid(),
            ControlMessageOwned::ScmRights(numbers) => {
                for number in numbers {
                    let _ = close(number);
                }
            }
            _ => {}
        }
    }
    let length = message.bytes;
    bytes.truncate(length);
    Ok(Some(Datagram { pid, bytes }))
}
