//! What happened, in words for people.

use std::fmt;

use crate::{
    config::units::{self, count},
    engine::{
        effect::{Cause, What},
        gate::Holder,
        scale::{Block, Reason},
    },
    time::Span,
    wire::ExitStatus,
};

/// It takes a few milliseconds to get a lock that is free; that is no wait.
const WAIT_TOLD: Span = Span::millis(50);

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { pid } => write!(f, "started, pid {pid}"),
            Self::Ready { after } => write!(f, "ready after {}", Rough(*after)),
            Self::NotReady => f.write_str("not ready any more, by its own word"),
            Self::Stopping {
                ending,
                signal,
                grace,
            } => {
                write!(
                    f,
                    "stopping ({}): {}, SIGKILL in {}",
                    ending.word(),
                    units::signal_name(*signal),
                    Rough(*grace)
                )
            }
            Self::Extended { grace } => {
                write!(f, "asked for more time: SIGKILL in {}", Rough(*grace))
            }
            Self::Killed { reason, .. } => write!(f, "SIGKILL to everything of it: {reason}"),
            Self::StillThere { since } => write!(
                f,
                "still not gone {} after SIGKILL: it hangs in the kernel",
                Rough(*since)
            ),
            Self::Ended {
                status,
                ending,
                uptime,
            } => {
                write!(f, "{} after {}", ExitWords(*status), Rough(*uptime))?;
                ending.map_or(Ok(()), |ending| write!(f, " ({})", ending.word()))
            }
            Self::BackingOff { pause, failures } if *pause == Span::ZERO => {
                write!(f, "restarting at once ({failures} in a row)")
            }
            Self::BackingOff { pause, failures } => {
                write!(f, "restarting in {} ({failures} in a row)", Rough(*pause))
            }
            Self::Failed { retry: Some(retry) } => {
                write!(f, "failed too often; next try in {}", Rough(*retry))
            }
            Self::Failed { retry: None } => {
                f.write_str("failed too often; given up (`leasehold start` tries again)")
            }
            Self::Done => f.write_str("done: its restart policy wants no other"),
            Self::NotPrepared { why } => write!(f, "not started: {why}"),
            Self::ProbeFailed { why, times } => write!(f, "probe failed ({times} in a row): {why}"),
            Self::RestartWithheld { cap } => write!(
                f,
                "unwell, but there were {} for health in a minute, which is the cap; left running",
                count(*cap, "restart")
            ),
            Self::OldNews => f.write_str("news of an old generation dropped"),
            Self::Recovered => {
                f.write_str("its row could not be read; rebuilt from what the keeper knows")
            }
            Self::RolloutBegan { workers } => {
                write!(f, "rollout began: {} to replace", count(*workers, "worker"))
            }
            Self::RolloutDone => f.write_str("rollout done"),
            Self::RolloutFailed {
                worker,
                rollback: true,
            } => write!(
                f,
                "rollout failed at {worker}; going back to the revision before"
            ),
            Self::RolloutFailed {
                worker,
                rollback: false,
            } => write!(
                f,
                "rollout stopped: {worker} failed; the others keep their revision"
            ),
            Self::HeldBy { who } => write!(f, "held by {who}"),
            Self::Released { who } => write!(f, "released by {who}"),
            Self::Joined { cluster, ttl } => {
                write!(f, "has a lease of {} in cluster {cluster}", Rough(*ttl))
            }
            Self::Parted { why } => write!(f, "has no lease any more: {why}"),
            Self::Concern { why } => write!(f, "etcd: {why}"),
            Self::Relief { why } => write!(f, "etcd is well again: it was said that {why}"),
            Self::Drained { who } => write!(f, "drained by {who}"),
            Self::Undrained { who } => write!(f, "takes work again, by {who}"),
            Self::Scaled {
                workers: Some(n),
                who,
            } => write!(f, "scaled to {n} by {who}"),
            Self::Scaled { workers: None, who } => {
                write!(f, "back to its configured size by {who}")
            }
            Self::Grew { from, to, reason } => write!(f, "grows from {from} to {to}: {reason}"),
            Self::Shrank { from, to, reason } => write!(f, "shrinks from {from} to {to}: {reason}"),
            Self::GrowthBlocked {
                block,
                workers,
                wanted,
            } => write!(f, "stays at {workers} instead of {wanted}: {block}"),
            Self::Stuck { restart } => {
                f.write_str("uses all it can and gets nothing done, as far as can be told; ")?;
                f.write_str(if *restart {
                    "it is restarted"
                } else {
                    "it does not count, another one takes its place"
                })
            }
            Self::NotBelieved { text } => {
                write!(f, "says {text:?}, which cannot be; it is not believed")
            }
            Self::Paused { who } => write!(f, "its size is left alone, by {who}"),
            Self::SizeExpired => f.write_str("what was said of its size has expired"),
            Self::Accepted { changes: 0, .. } => {
                f.write_str("configuration accepted: nothing changes")
            }
            Self::Accepted { changes: 1, .. } => {
                f.write_str("configuration accepted: 1 fleet changes")
            }
            Self::Accepted { changes, .. } => {
                write!(f, "configuration accepted: {changes} fleets change")
            }
            Self::Rejected { why } => write!(f, "configuration rejected, nothing changed: {why}"),
            Self::ShuttingDown { now, by } => {
                write!(
                    f,
                    "{}",
                    if *now {
                        "killing everything"
                    } else {
                        "draining everything"
                    }
                )?;
                by.map_or(Ok(()), |(pid, uid)| {
                    write!(f, " (asked by pid {pid}, uid {uid})")
                })
            }
            Self::GateOpened {
                fence,
                waited,
                from,
                gap,
            } => {
                write!(f, "has its lock, fence {fence}")?;
                if *waited >= WAIT_TOLD {
                    write!(f, ", after a wait of {}", Rough(*waited))?;
                }
                if let Some(gap) = gap {
                    write!(f, ", {} after the last holder left", Rough(*gap))?;
                }
                from.as_ref()
                    .map_or(Ok(()), |from| write!(f, ", last held by {from}"))
            }
            Self::Promoted { fence } => write!(f, "stood by, and leads now, fence {fence}"),
            Self::Outlived { by } => write!(
                f,
                "ran on for {} when its lease was over: another node may have run it meanwhile",
                Rough(*by)
            ),
            Self::GateWaits { why, .. } => write!(f, "waits for its lock: {why}"),
            Self::GateReleased { who, .. } => {
                write!(f, "its lock is released by {who}, to whoever waits for it")
            }
            Self::GateShut { held, cause, .. } => {
                write!(f, "gave its lock back after {}: {cause}", Rough(*held))
            }
            Self::GateLost { why } => write!(f, "lost its lock: {why}"),
            Self::RunBegan {
                scheduled,
                attempt,
                late,
            } => {
                write!(f, "run of {scheduled} begins")?;
                match attempt {
                    0 | 1 if *late < Span::secs(1) => Ok(()),
                    0 | 1 => write!(f, ", {} late", Rough(*late)),
                    attempt => write!(f, ", attempt {attempt}"),
                }
            }
            Self::RunEnded {
                scheduled,
                attempts,
                outcome,
                ..
            } => {
                write!(f, "run of {scheduled} is over: {}", outcome.reason())?;
                match attempts {
                    0 | 1 => Ok(()),
                    attempts => write!(f, ", {attempts} attempts"),
                }
            }
            Self::RunRetries {
                scheduled,
                attempt,
                of,
                outcome,
                pause,
            } => write!(
                f,
                "run of {scheduled}, attempt {attempt} of {of}: {}; tried again in {}",
                outcome.reason(),
                Rough(*pause)
            ),
            Self::RunQueued { scheduled, waiting } => {
                write!(f, "run of {scheduled} waits; {waiting} in the queue")
            }
            Self::RunElsewhere { scheduled, node } => {
                write!(f, "run of {scheduled} is node {node}'s")
            }
            Self::RunSkipped { scheduled, why } => {
                write!(f, "run of {scheduled} skipped: {}", why.reason())
            }
            Self::RunsMissed {
                first,
                count: 1,
                why,
                ..
            } => write!(f, "run of {first} missed: {}", why.reason()),
            Self::RunsMissed {
                first,
                last,
                count,
                why,
            } => write!(
                f,
                "{count} runs from {first} to {last} missed: {}",
                why.reason()
            ),
            Self::RunUnclaimed { scheduled, why } => write!(
                f,
                "run of {scheduled} missed: it could not be claimed: {why}"
            ),
            Self::RunLost {
                scheduled,
                attempt,
                again,
            } => write!(
                f,
                "run of {scheduled}, attempt {attempt}, was lost with its keeper{}",
                if *again { "; it is tried again" } else { "" }
            ),
            Self::RunAsked { who } => write!(f, "a run now, asked by {who}"),
            Self::ClockSetBack { by } => write!(
                f,
                "the wall clock was set back by {}; ticks that had their turn are not started again",
                Rough(*by)
            ),
            Self::BookForgotten { why } => {
                write!(f, "its past is not known, it begins anew: {why}")
            }
            Self::BookNotKept { why } => {
                write!(
                    f,
                    "its history cannot be kept now, it is tried again: {why}"
                )
            }
            Self::PublishFailed { target, why } => {
                write!(f, "{target} is not published, it is tried again: {why}")
            }
            Self::PublishRestored { target, after } => {
                write!(f, "{target} is published again after {}", Rough(*after))
            }
            Self::LeaseLapsed => f.write_str("its lease was not renewed in time: it ends"),
            Self::DeadlineCame { late } => {
                write!(
                    f,
                    "killed by the keeper at its deadline ({} late)",
                    Rough(*late)
                )
            }
            Self::TookOver { workers } => {
                write!(
                    f,
                    "supervisor took over {}",
                    count(*workers, "living worker")
                )
            }
        }
    }
}

/// `released by root (pid 77)`, `its worker failed too often`.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Released { who } => return write!(f, "released by {who}"),
            Self::Stopped { who } => return write!(f, "stopped by {who}"),
            Self::ScaledIn => "its fleet is smaller now",
            Self::Removed => "its fleet is not configured any more",
            Self::Reconfigured => "another lock is configured now",
            Self::Shutdown => "the daemon stops",
            Self::Dependencies => "what its fleet depends on is not there",
            Self::Failed => "its worker failed too often",
            Self::Done => "its worker is through with its work",
            Self::NoRun => "the job has no run",
            Self::Lost => "it excluded nobody any more",
            Self::Lapsed => "its lease was not renewed in time",
            Self::Passed => "it could not begin, and others wait",
            Self::NotWanted => "nobody wanted it any more",
        })
    }
}

/// `its workers are busy`, for people.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "the processor time of its workers",
            Self::Backlog => "connections that nobody accepts",
            Self::Busy => "its workers say so",
            Self::Queue => "the length of its queue",
            Self::Min => "it must have so many",
            Self::Max => "it may not have more",
            Self::Manual => "an operator wants at least so many",
            Self::Wake => "somebody knocked",
            Self::Idle => "it has nothing to do",
        })
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Max => "scale.max",
            Self::HostCpu => "the machine has no idle processor left",
            Self::HostMemory => "the machine has not enough memory left",
            Self::ClusterMax => "the nodes of its cluster have as many as they may have together",
            Self::Etcd => "how many the other nodes have is not known: etcd is not to be had",
        })
    }
}

/// `billing/0 on vps-1 (keeper pid 77)`, `pid 77`.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.record {
            Some(record) => write!(
                f,
                "{} on {} (keeper pid {})",
                record.worker, record.node, self.pid
            ),
            None => write!(f, "pid {}", self.pid),
        }
    }
}

/// A duration for reading, not for parsing: `1.2s`, `340ms`, `2h5m`.
pub struct Rough(pub Span);

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            _ if self.0.is_forever() => f.pad("infinity"),
            0 if self.0 == Span::ZERO => f.pad("0s"),
            0 => f.pad(&format!("{}us", self.0.as_nanos() / 1_000)),
            1..=999 => f.pad(&format!("{ms}ms")),
            1_000..=9_999 => f.pad(&format!("{}.{}s", ms / 1_000, ms % 1_000 / 100)),
            10_000..=119_999 => f.pad(&format!("{}s", ms / 1_000)),
            120_000..=7_199_999 => f.pad(&format!("{}m{}s", ms / 60_000, ms / 1_000 % 60)),
            7_200_000..=172_799_999 => f.pad(&format!("{}h{}m", ms / 3_600_000, ms / 60_000 % 60)),
            _ => f.pad(&format!("{}d{}h", ms / 86_400_000, ms / 3_600_000 % 24)),
        }
    }
}

/// A status for reading: `exited with code 3`, `killed by SIGKILL`.
pub struct ExitWords(pub ExitStatus);

impl fmt::Display for ExitWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ExitStatus::Code(code) => write!(f, "exited with code {code}"),
            ExitStatus::Signal { number, core } => {
                write!(
                    f,
                    "ended by {}{}",
                    units::signal_name(number),
                    if core { " (core dumped)" } else { "" }
                )
            }
            ExitStatus::SpawnFailed { step, errno } => {
                let known = nix::errno::Errno::from_raw(errno);
                write!(
                    f,
                    "failed to {}: {known:?} ({})",
                    step.phrase(),
                    known.desc()
                )
            }
        }
    }
}
