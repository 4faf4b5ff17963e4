//! Between a node and a member: carries bytes, so much later, until it is told to keep them.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use leasehold::{
    sys::clock,
    time::{Moment, Span},
};

use crate::{
    etcd::{Cluster, address},
    rig::pause,
};

pub(crate) struct Proxy {
    at: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    pairs: Mutex<Vec<(TcpStream, TcpStream)>>,
    held: AtomicBool,
    over: AtomicBool,
}

impl Proxy {
    /// To that member, from an address of our own; each way takes so long.
    pub(crate) fn new(from: IpAddr, member: SocketAddr, one_way: Span) -> Self {
        let listener = TcpListener::bind((from, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let state: Arc<State> = Arc::default();
        let ours = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ours.over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(member) else {
                    continue;
                };
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                }
                let twice = |stream: &TcpStream| stream.try_clone().unwrap();
                carry(&ours, twice(&client), twice(&server), one_way);
                carry(&ours, twice(&server), twice(&client), one_way);
                ours.pairs.lock().unwrap().push((client, server));
            }
        });
        Self { at, state }
    }

    /// One for each member.
    pub(crate) fn to_all(etcd: &Cluster, one_way: Span) -> Vec<Self> {
        Self::from_to_all(IpAddr::V4(address()), etcd, one_way)
    }

    pub(crate) fn from_to_all(from: IpAddr, etcd: &Cluster, one_way: Span) -> Vec<Self> {
        let members = (0..etcd.len()).map(|member| etcd.client_port(member));
        members
            .map(|port| Self::new(from, SocketAddr::new(IpAddr::V4(address()), port), one_way))
            .collect()
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Nothing comes through, and nobody is told.
    pub(crate) fn hold(&self) {
        self.state.held.store(true, Ordering::SeqCst);
    }

    /// What was held comes.
    pub(crate) fn release(&self) {
        self.state.held.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.state.held.store(false, Ordering::SeqCst);
        for (client, server) in self.state.pairs.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
        // So that whoever accepts wakes up.
        let _ = TcpStream::connect(self.at);
    }
}

fn carry(state: &Arc<State>, mut from: TcpStream, mut to: TcpStream, one_way: Span) {
    let (put, got) = mpsc::channel::<(Moment, Vec<u8>)>();
    thread::spawn(move || {
        let mut space = [0; 16_384];
        while let Ok(n) = from.read(&mut space) {
            let due = clock::now().after(one_way);
            if n == 0 || put.send((due, space[..n].to_vec())).is_err() {
                return;
            }
        }
    });
    let state = Arc::clone(state);
    thread::spawn(move || {
        while let Ok((due, bytes)) = got.recv() {
            wait_until(due);
            while state.held.load(Ordering::SeqCst) {
                pause(2);
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// To the tenth of a millisecond: round trips are measured with it.
fn wait_until(due: Moment) {
    while clock::now() < due {
        let left = clock::now().until(due).as_nanos();
        let span = rustix::event::Timespec {
            tv_sec: (left / 1_000_000_000) as i64,
            tv_nsec: (left % 1_000_000_000) as i64,
        };
        let _ = rustix::event::poll(&mut [], Some(&span));
    }
}
