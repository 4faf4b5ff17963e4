//! How many connections wait at listening sockets: sock_diag(7) says so for all of them in one answer, without their descriptors.

use std::{collections::BTreeMap, io};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// A listening socket's accept queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// So many connections nobody has accepted yet.
    pub waiting: u32,
    /// So many may wait.
    pub backlog: u32,
}

/// SOCK_DIAG_BY_FAMILY, of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST | NLM_F_DUMP, NLMSG_DONE and NLMSG_ERROR, of netlink(7).
const REQUEST_DUMP: u16 = 0x301;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const HEADER: usize = 16;
/// `1 << TCP_LISTEN`; a unix socket uses the same number.
const LISTENING: u32 = 1 << 10;
const TCP: u8 = 6;
/// UDIAG_SHOW_RQLEN and the attribute that answers it, of linux/unix_diag.h.
const SHOW_LENGTH: u32 = 0x10;
const LENGTH: u16 = 4;

/// The accept queues of all listening TCP and unix sockets of this network namespace, by the socket's inode. An error if the kernel
/// tells none of them.
pub fn all() -> io::Result<BTreeMap<u64, AcceptQueue>> {
    let mut queues = BTreeMap::new();
    let mut known = Err(io::Error::from(io::ErrorKind::Unsupported));
    for family in [libc::AF_INET, libc::AF_INET6] {
        // inet_diag_req_v2: family, protocol, extensions, padding, states, and an address that is not looked at.
        let mut request = vec![family as u8, TCP, 0, 0];
        request.extend(LISTENING.to_ne_bytes());
        request.extend([0; 48]);
        let answer = dump(&request, |message| {
            // inet_diag_msg: rqueue, wqueue, uid, inode.
            let queue = AcceptQueue {
                waiting: number(message, 56)?,
                backlog: number(message, 60)?,
            };
            queues.insert(u64::from(number(message, 68)?), queue);
            Some(())
        });
        if answer.is_ok() || known.is_err() {
            known = answer;
        }
    }
    // unix_diag_req: family, protocol, padding, states, inode, what to show, cookie.
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [LISTENING, 0, SHOW_LENGTH, 0, 0] {
        request.extend(word.to_ne_bytes());
    }
    let answer = dump(&request, |message| {
        let inode = u64::from(number(message, 4)?);
        queues.insert(inode, unix_queue(message.get(16..)?)?);
        Some(())
    });
    if answer.is_ok() {
        known = answer;
    }
    known.map(|()| queues)
}

/// Of a unix_diag_msg's attributes the one that says how long it is.
fn unix_queue(mut attributes: &[u8]) -> Option<AcceptQueue> {
    loop {
        let length = usize::from(short(attributes, 0)?);
        if short(attributes, 2)? == LENGTH {
            return Some(AcceptQueue {
                waiting: number(attributes, 4)?,
                backlog: number(attributes, 8)?,
            });
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Asks, and gives every message of the answer to `take`; what cannot be read is passed over.
fn dump(request: &[u8], mut take: impl FnMut(&[u8]) -> Option<()>) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = vec![0_u8; 65_536];
    loop {
        let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        let mut rest = &answer[..length];
        while let (Some(length), Some(kind)) = (number(rest, 0), short(rest, 4)) {
            let length = length as usize;
            let Some(body) = rest.get(HEADER..length) else {
                break;
            };
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let errno = number(body, 0).unwrap_or(0).cast_signed().wrapping_neg();
                    return Err(io::Error::from_raw_os_error(errno));
                }
                _ => {
                    let _ = take(body);
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{
            fd::AsFd,
            unix::net::{UnixListener, UnixStream},
        },
    };

    use super::*;

    fn inode(socket: impl AsFd) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    #[test]
    fn tells_who_waits_at_tcp_and_unix_sockets() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        let waiting = || {
            let queues = all().unwrap();
            (queues[&inode(&tcp)].waiting, queues[&inode(&unix)].waiting)
        };
        assert_eq!(waiting(), (0, 0));
        let _tcp: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(tcp.local_addr().unwrap()))
            .collect();
        let _unix: Vec<_> = (0..2)
            .map(|_| UnixStream::connect(dir.path().join("s")))
            .collect();
        assert_eq!(waiting(), (3, 2));
        assert!(all().unwrap()[&inode(&tcp)].backlog > 3);
        drop(tcp.accept().unwrap());
        assert_eq!(waiting(), (2, 2));
    }
}
