//! Between the shell and a member: carries bytes, until it is told to keep what the member says to itself.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::rig::{address, pause};

pub(crate) struct Proxy {
    at: SocketAddr,
    all: Arc<Mutex<Vec<Arc<Pair>>>>,
    accepted: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// What the member says is held.
    held: AtomicBool,
}

impl Proxy {
    pub(crate) fn to(member: u16) -> Self {
        let listener = TcpListener::bind((address(), 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let all: Arc<Mutex<Vec<Arc<Pair>>>> = Arc::default();
        let accepted = Arc::new(AtomicUsize::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let (pairs, count, end) = (all.clone(), accepted.clone(), over.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect((address(), member)) else {
                    continue;
                };
                let pair = Arc::new(Pair {
                    client,
                    server,
                    held: AtomicBool::new(false),
                });
                pairs.lock().unwrap().push(Arc::clone(&pair));
                carry(&pair);
            }
        });
        Self {
            at,
            all,
            accepted,
            over,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.at)
    }

    /// How many connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// On the connections that there are, nothing more is heard of the member; it hears all. Others are none the wiser.
    pub(crate) fn hold(&self) {
        self.set(true);
    }

    /// What was held comes.
    pub(crate) fn release(&self) {
        self.set(false);
    }

    fn set(&self, held: bool) {
        for pair in self.all.lock().unwrap().iter() {
            pair.held.store(held, Ordering::SeqCst);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for pair in self.all.lock().unwrap().drain(..) {
            pair.held.store(false, Ordering::SeqCst);
            pair.close();
        }
        // So that whoever accepts wakes up.
        let _ = TcpStream::connect(self.at);
    }
}

impl Pair {
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

fn carry(pair: &Arc<Pair>) {
    let (up, down) = (Arc::clone(pair), Arc::clone(pair));
    thread::spawn(move || copy(&up, &up.client, &up.server, false));
    thread::spawn(move || copy(&down, &down.server, &down.client, true));
}

fn copy(pair: &Pair, mut from: &TcpStream, mut to: &TcpStream, may_be_held: bool) {
    let mut space = [0; 16_384];
    while let Ok(n) = from.read(&mut space) {
        while may_be_held && pair.held.load(Ordering::SeqCst) {
            pause(2);
        }
        if n == 0 || to.write_all(&space[..n]).is_err() {
            break;
        }
    }
    pair.close();
}
