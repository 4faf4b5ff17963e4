//! A worker's pipe with what is known of its bytes: how many were taken, and which generation wrote which.
//!
//! All generations of a slot write to one pipe, and what waits there may be an older one's. Whoever is about to start a generation says
//! so here, before it can write: the log thread may be busy for longer than a worker needs for its first line.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{logs::capture::Author, sys::pipe};

/// The read end of a worker's pipe, as both threads see it.
#[derive(Clone)]
pub(super) struct Tap {
    pipe: Arc<OwnedFd>,
    /// Locked while bytes are taken, so that they count as waiting or as taken and not as both.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    taken: u64,
    parts: Parts,
}

/// Who wrote from which byte on, the oldest first.
#[derive(Clone, Default)]
pub(super) struct Parts(VecDeque<(u64, Author)>);

impl Parts {
    /// Who wrote the byte at this place?
    pub(super) fn author(&self, at: u64) -> Option<Author> {
        let earlier = self.0.iter().take_while(|(from, _)| *from <= at);
        earlier.last().map(|(_, author)| *author)
    }

    /// From this place on this generation writes; its pid may come later.
    fn began(&mut self, from: u64, author: Author) {
        match self.0.back_mut() {
            Some((_, last)) if last.generation == author.generation => {
                last.pid = author.pid.or(last.pid);
                return;
            }
            // Old news.
            Some((_, last)) if last.generation > author.generation => return,
            // It wrote nothing: as many parts as bytes are the most there can be.
            Some((start, _)) if *start == from => {
                self.0.pop_back();
            }
            Some(_) | None => {}
        }
        // Of whom we know first, everything so far is taken to be.
        let from = if self.0.is_empty() { 0 } else { from };
        self.0.push_back((from, author));
    }

    /// Nobody asks any more for what lies before this place.
    fn forget(&mut self, before: u64) {
        while self.0.get(1).is_some_and(|(from, _)| *from <= before) {
            self.0.pop_front();
        }
    }
}

impl Tap {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe: Arc::new(pipe),
            state: Arc::default(),
        }
    }

    pub(super) fn pipe(&self) -> &OwnedFd {
        &self.pipe
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins, or has begun: what waits now is not its own.
    pub(super) fn began(&self, author: Author) {
        let mut state = self.lock();
        let end = state.taken + pipe::waiting(&*self.pipe) as u64;
        state.parts.began(end, author);
    }

    /// The place of the first byte that waits, and who wrote what was looked at before this call.
    pub(super) fn authors(&self) -> (u64, Parts) {
        let mut state = self.lock();
        let taken = state.taken;
        state.parts.forget(taken);
        (taken, state.parts.clone())
    }

    /// Takes bytes that were looked at.
    pub(super) fn take(&self, mut length: usize) -> io::Result<()> {
        let mut state = self.lock();
        let mut sink = [0; 65_536];
        while length > 0 {
            let most = length.min(sink.len());
            match rustix::io::read(&*self.pipe, &mut sink[..most]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Ok(n) => {
                    state.taken += n as u64;
                    length -= n;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;

    #[test]
    fn every_byte_is_its_own_generations() {
        let author = |generation, pid| Author {
            generation: Generation(generation),
            pid,
        };
        let mut parts = Parts::default();
        assert_eq!(parts.author(0), None);
        parts.began(700, author(4, Some(44)));
        parts.began(900, author(5, None));
        parts.began(900, author(6, None));
        parts.began(950, author(6, Some(66)));
        parts.began(990, author(5, Some(55)));
        for forgotten in [0, 899, 900] {
            parts.forget(forgotten);
            assert_eq!(parts.author(900), Some(author(6, Some(66))));
            assert_eq!(parts.author(5_000), Some(author(6, Some(66))));
        }
        let mut parts = Parts::default();
        parts.began(700, author(4, Some(44)));
        parts.began(900, author(5, None));
        assert_eq!(parts.author(0), Some(author(4, Some(44))));
        assert_eq!(parts.author(899), Some(author(4, Some(44))));
    }
}
