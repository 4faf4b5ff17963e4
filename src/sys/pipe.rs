//! Log pipes. tee(2) looks without taking, splice(2) takes without copying to us: what has not reached the file is still in
//! the pipe, whenever we die.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice, tee,
};

/// The read end of a new pipe, non-blocking. Writers come through [`writer`].
pub fn reader(bytes: usize) -> io::Result<OwnedFd> {
    let (read, _write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    grow(&read, bytes);
    Ok(read)
}

/// Has it hold as many bytes, or as near to that as we may: /proc/sys/fs/pipe-max-size, and the user's share of pipe memory, are
/// limits for whoever lacks CAP_SYS_RESOURCE (pipe(7)).
fn grow(pipe: &OwnedFd, bytes: usize) {
    let mut asked = bytes;
    while fcntl_setpipe_size(pipe, asked).is_err() && asked > 65_536 {
        asked /= 2;
    }
}

/// A pipe for our own use: both ends, non-blocking.
pub fn scratch(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    grow(&pair.0, bytes);
    Ok(pair)
}

/// A pipe through which nothing goes: whoever reads at the first end waits until nobody holds the second.
pub fn tether() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// A fresh write end for one generation, blocking as programs expect their stdout to be. Every generation gets its own open file
/// description: O_NONBLOCK set by one worker must not reach the next.
pub fn writer(read: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", read.as_fd().as_raw_fd());
    Ok(File::options().write(true).open(path)?.into())
}

/// How much it holds, in bytes.
pub fn capacity(pipe: impl AsFd) -> usize {
    fcntl_getpipe_size(pipe).unwrap_or(65_536)
}

/// Bytes waiting in it (FIONREAD).
pub fn waiting(pipe: impl AsFd) -> usize {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0) as usize
}

/// Copies up to `length` bytes into `copy` without consuming them; 0 means nothing is there.
pub fn look(pipe: impl AsFd, copy: impl AsFd, length: usize) -> io::Result<usize> {
    retry(|| tee(&pipe, &copy, length, SpliceFlags::NONBLOCK))
}

/// Moves up to `length` bytes to `file` at `offset`; only what arrived there has left the pipe.
pub fn take(
    pipe: impl AsFd,
    file: impl AsFd,
    offset: &mut u64,
    length: usize,
) -> io::Result<usize> {
    retry(|| {
        splice(
            &pipe,
            None,
            &file,
            Some(offset),
            length,
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        )
    })
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Ok(moved) => return Ok(moved),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            Err(e) => return Err(e.into()),
        }
    }
}
