//! What the kernel is asked for, in our nouns. Nothing here decides anything.
//!
//! | module | noun |
//! | --- | --- |
//! | `clock` | now, on CLOCK_BOOTTIME; the wall clock for people |
//! | `timer` | the wall clock's bell, for jobs |
//! | `spawn` | an order becomes a process, or a step and an errno |
//! | `clone` | the system call that makes a child |
//! | `child` | a pidfd: signal it, look at its end, reap it |
//! | `cgroup` | a leaf per generation: created, killed, seen empty, removed |
//! | `family` | who belongs to a worker where there is no cgroup: group, session, cookie |
//! | `packet` | one message with descriptors over SOCK_SEQPACKET |
//! | `memfd` | bytes that outlive their writer |
//! | `pipe` | a log pipe: tee, splice, reopen |
//! | `lock` | the instance lock |
//! | `page` | the lease page: what a gated worker may still do, without a system call |
//! | `seats` | deadlines, and what is killed when they come |
//! | `sd` | systemd's notify socket |
//! | `journal` | systemd's journal: an entry, whole |
//! | `notify` | the workers' notify socket |
//! | `listen` | bound sockets |
//! | `host` | users, limits, hostname, boot |
//! | `usage` | processor time and memory of a worker |
//! | `surroundings` | what a configuration may ask of this machine |

pub mod cgroup;
pub mod child;
pub mod clock;
mod clone;
pub mod family;
pub mod host;
pub mod journal;
pub mod listen;
pub mod lock;
pub mod memfd;
pub mod notify;
pub mod packet;
pub mod page;
pub mod pipe;
pub mod poll;
pub mod sd;
pub mod seats;
pub mod spawn;
pub mod surroundings;
pub mod timer;
pub mod usage;
