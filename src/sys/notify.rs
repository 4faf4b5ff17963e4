//! The workers' notify socket: sd_notify(3) datagrams with the sender's credentials.
//!
//! A datagram is looked at first and consumed only after the keeper holds what it changed: a supervisor killed in between
//! reads it again.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, recvmsg, socket_with, sockopt,
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
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_passcred(&socket, true)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok(socket)
}

/// The first waiting datagram, left in its place.
pub fn peek(socket: impl AsFd) -> io::Result<Option<Datagram>> {
    receive(socket, RecvFlags::PEEK)
}

/// Drops the first waiting datagram.
pub fn consume(socket: impl AsFd) -> io::Result<()> {
    receive(socket, RecvFlags::empty()).map(|_| ())
}

fn receive(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<Datagram>> {
    // Room for descriptors too (FDSTORE=1): they are received and closed at once, not left to truncate the credentials.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; DATAGRAM_MAX];
    let flags = flags | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let length = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        flags,
    ) {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    bytes.truncate(length);
    let mut pid = 0;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
            pid = credentials.pid.as_raw_nonzero().get();
        }
    }
    Ok(Some(Datagram { pid, bytes }))
}
