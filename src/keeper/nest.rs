//! PID namespaces for workers of which nothing may outlive us, where our own end does not see to that.
//!
//! ```text
//!   keeper ─┬─ init      first of its namespace: when it ends, the kernel ends everybody in there, whatever they have become
//!           └─ worker    second of it, and our own child: reaped, signalled and watched like any other
//! ```
//!
//! The first one ends with our main thread (PR_SET_PDEATHSIG), and when a pipe says that nobody holds its other end, which is ours alone: we
//! may have died before the signal was armed. It ignores SIGCHLD, so that orphans that come to it are reaped by the kernel. It becomes a
//! zombie only after everybody else in there is gone and reaped (pid_namespaces(7)), and that is how we know.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use crate::{
    sys::{
        child::{Child, reap_now},
        pipe,
        spawn::{Birthplace, FIRST_PASS, Order, Program, SpawnFailure, Spawner},
    },
    wire::SpawnStep,
};

/// The verb by which our binary becomes the first process of a namespace; the name of its worker follows, for people.
pub const VERB: &str = "pidns-init";

/// Signals that the first process ignores.
const IGNORED: u64 = 1 << (libc::SIGCHLD - 1);

/// What makes namespaces.
pub(super) struct Nest {
    binary: OwnedFd,
    /// End of file is the word that we are gone.
    hears: OwnedFd,
    _says: OwnedFd,
}

/// A namespace with nobody in it but its first process.
pub(super) struct Egg {
    pub(super) init: Child,
    pub(super) namespace: OwnedFd,
}

impl Nest {
    pub(super) fn new() -> io::Result<Self> {
        let (hears, says) = pipe::tether()?;
        Ok(Self {
            binary: File::open("/proc/self/exe")?.into(),
            hears,
            _says: says,
        })
    }

    /// Makes one for `name`, whose environment begins with `marks`: by them whoever takes the worker's lock finds its first process, too.
    pub(super) fn make(
        &self,
        spawner: &mut Spawner,
        name: &str,
        marks: &[CString],
    ) -> Result<Egg, SpawnFailure> {
        let words = ["leasehold", VERB, name];
        let argv = words.map(|word| CString::new(word).unwrap_or_default());
        let init = spawner.spawn(&Order {
            program: Program::Descriptor(self.binary.as_fd()),
            birthplace: Birthplace::NewNamespace,
            argv: &argv,
            env: marks,
            listen_pid: false,
            stdin: Some(self.hears.as_fd()),
            stdout: None,
            stderr: None,
            pass: &[],
            first_pass: FIRST_PASS,
            keep: &[],
            cgroup: None,
            session: true,
            cwd: Some(c"/"),
            user: None,
            umask: None,
            rlimits: &[],
            nice: None,
            affinity: &[],
            no_new_privs: false,
            reset_oom_score: false,
            die_with_parent: true,
            seat: None,
            foreground: false,
            ignored: IGNORED,
        })?;
        let opened = init
            .number_in_proc()
            .and_then(|number| File::open(format!("/proc/{number}/ns/pid")));
        match opened {
            Ok(file) => Ok(Egg {
                init,
                namespace: file.into(),
            }),
            Err(error) => {
                discard(&init);
                Err(SpawnFailure {
                    step: SpawnStep::Namespace,
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                })
            }
        }
    }
}

/// Ends a namespace in which nobody else is.
pub(super) fn discard(init: &Child) {
    let _ = init.signal(libc::SIGKILL);
    reap_now(init);
}

/// The life of a first process: it waits for the keeper's end.
pub fn first_of_namespace() -> u8 {
    let stdin = io::stdin();
    while let Err(rustix::io::Errno::INTR) = rustix::io::read(&stdin, &mut [0_u8; 1]) {}
    0
}
