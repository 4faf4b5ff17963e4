//! One message with its descriptors over a `SOCK_SEQPACKET` pair: whole or not at all.
//!
//! The first byte says where the rest is: 0, behind it; 1, in a memfd that is the first descriptor (a packet must fit in the socket's
//! buffer, 212,992 bytes by default).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::{
    sys::memfd,
    wire::{PACKET_FDS_MAX, PACKET_MAX},
};

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, in order.
    pub fds: Vec<OwnedFd>,
}

/// What a receive can bring.
#[derive(Debug)]
pub enum Received {
    /// A packet.
    Packet(Packet),
    /// None now.
    Empty,
    /// The other side is gone and everything it sent has been read.
    Closed,
}

/// A connected pair, both ends non-blocking and close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sends one packet; `WouldBlock` means that nothing of it was sent.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    debug_assert!(
        fds.len() <= PACKET_FDS_MAX,
        "a packet of {} descriptors",
        fds.len()
    );
    let in_memfd = if bytes.len() > PACKET_MAX {
        Some(memfd::sealed("leasehold-packet", bytes)?)
    } else {
        None
    };
    let head = [u8::from(in_memfd.is_some())];
    let body = if in_memfd.is_some() { &[][..] } else { bytes };
    let all: Vec<BorrowedFd<'_>> = in_memfd
        .iter()
        .map(|fd| fd.as_fd())
        .chain(fds.iter().copied())
        .collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !all.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(&all));
        debug_assert!(fits, "the space was made for PACKET_FDS_MAX descriptors");
    }
    let slices = [IoSlice::new(&head), IoSlice::new(body)];
    sendmsg(
        socket,
        &slices,
        &mut ancillary,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

/// Receives one packet.
pub fn receive(socket: impl AsFd) -> io::Result<Received> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; PACKET_MAX + 1];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        flags,
    ) {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Received::Empty),
        Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
        Err(e) => return Err(e.into()),
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    buffer.truncate(length);
    match buffer.first() {
        None => Ok(Received::Closed),
        Some(0) => {
            buffer.remove(0);
            Ok(Received::Packet(Packet { bytes: buffer, fds }))
        }
        Some(_) if fds.is_empty() => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a large packet without its memfd",
        )),
        Some(_) => {
            let bytes = memfd::read(fds.remove(0))?;
            Ok(Received::Packet(Packet { bytes, fds }))
        }
    }
}

/// The one descriptor that waits in a packet, without asking for memory; none if none waits.
pub fn receive_one_fd(socket: impl AsFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut head = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut head)],
        &mut ancillary,
        flags,
    )
    .ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &OwnedFd) -> Packet {
        match receive(socket).unwrap() {
            Received::Packet(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn small_and_large_packets_arrive_whole_with_their_descriptors() {
        let (a, b) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for size in [0, 1, PACKET_MAX, PACKET_MAX + 1, 3_000_000] {
            let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
            send(&a, &bytes, &[null.as_fd(), null.as_fd()]).unwrap();
            let packet = received(&b);
            assert_eq!(packet.bytes, bytes);
            assert_eq!(packet.fds.len(), 2);
        }
        assert!(matches!(receive(&b).unwrap(), Received::Empty));
        drop(a);
        // What another test is starting at the moment has a copy until its exec.
        let closed = || matches!(receive(&b).unwrap(), Received::Closed);
        let pause = || crate::sys::poll::pause(crate::time::Span::millis(1));
        assert!((0..5_000).any(|_| closed() || {
            pause();
            false
        }));
    }

    #[test]
    fn what_was_sent_before_a_death_is_still_read() {
        let (a, b) = pair().unwrap();
        send(&a, b"one", &[]).unwrap();
        send(&a, b"two", &[]).unwrap();
        drop(a);
        assert_eq!(received(&b).bytes, b"one");
        assert_eq!(received(&b).bytes, b"two");
        assert!(matches!(receive(&b).unwrap(), Received::Closed));
    }
}
