//! Clients that knock again and again while something is killed.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::rig::pause;

/// What came of a client's attempts.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) answered: u64,
    /// Accepted, and then no whole answer.
    pub(crate) reset: Vec<String>,
    /// No connection.
    pub(crate) refused: Vec<String>,
}

/// A thread that connects until it is stopped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Count>,
}

impl Traffic {
    /// Sends `request` (it may be empty), and wants an answer that contains `wanted`.
    pub(crate) fn start(port: u16, request: &'static str, wanted: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let thread = std::thread::spawn(move || {
            let mut count = Count::default();
            while !theirs.load(Ordering::Relaxed) {
                match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
                    Err(error) => count.refused.push(error.to_string()),
                    Ok(stream) => match exchange(stream, request) {
                        Ok(text) if text.contains(wanted) => count.answered += 1,
                        Ok(text) => count.reset.push(format!("half an answer: {text:?}")),
                        Err(error) => count.reset.push(error.to_string()),
                    },
                }
                pause(1);
            }
            count
        });
        Self { stop, thread }
    }

    pub(crate) fn finish(self) -> Count {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn exchange(mut stream: TcpStream, request: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
