//! A keeper that was started for one command (`leasehold lock`): the command gets our arguments, environment, stdio and terminal, our signals
//! are passed on to it, and our end is its end.
//!
//! Which lock it needs, and when it is had, is the supervisor's business, as with any worker. Job control is ours:
//!
//! ```text
//!   the command stops (^Z)  ──▶ the terminal is taken back, our own job stops with it
//!   our job is continued    ──▶ the command gets the terminal again if we have it (`fg`), and goes on
//!   it wants a terminal that our job has and it has not ──▶ it gets it, and goes on
//! ```

use std::{
    ffi::{CStr, CString},
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    process::{Pid, getpgrp, test_kill_process_group},
    termios::{tcgetpgrp, tcsetpgrp},
};

use crate::{
    sys::{
        child::{self, Child},
        host,
        seats::Place,
        spawn::{self, Birthplace, FIRST_PASS, Order, Program, SpawnFailure, Spawner},
    },
    wire::{ExitStatus, SpawnStep},
};

/// What is to be run, as it was typed.
pub struct Command {
    /// Its path, found.
    pub program: CString,
    /// Its arguments, the first being its name.
    pub argv: Vec<CString>,
    /// What to end with if nobody can be had to see to its lock.
    pub otherwise: u8,
}

/// The command and what has become of it.
pub(super) struct Errand {
    command: Command,
    terminal: Terminal,
    /// Signals that were ignored when we were started: they stay so, for us and for the command.
    pub(super) ignored: u64,
    /// Descriptors that we were started with: `<(...)` of a shell, say.
    kept: Vec<i32>,
    /// Its leader, from its spawn on.
    leader: Option<i32>,
    ended: Option<ExitStatus>,
    /// Its stop has stopped us.
    is_stopped: bool,
    /// We went on before the SIGCONT that continued us was looked at: that one is not for the command.
    went_on: bool,
    /// What called off the waiting.
    called_off: Option<i32>,
}

impl Errand {
    /// Looks at what we were started with; before any signal is caught or descriptor opened.
    pub(super) fn new(command: Command) -> Self {
        Self {
            command,
            terminal: Terminal::find(),
            ignored: host::ignored_signals(),
            kept: spawn::inherited(),
            leader: None,
            ended: None,
            is_stopped: false,
            went_on: false,
            called_off: None,
        }
    }

    /// Starts the command. `env` goes before our own environment.
    pub(super) fn spawn(
        &self,
        spawner: &mut Spawner,
        env: Vec<CString>,
        pass: &[BorrowedFd<'_>],
        cgroup: Option<BorrowedFd<'_>>,
        rlimits: &[(u32, u64, u64)],
        (seat, birthplace): (Option<Place>, Birthplace<'_>),
    ) -> Result<Child, SpawnFailure> {
        let first_pass = self.free_numbers(pass.len());
        let env: Vec<CString> = inherited(&env)
            .chain(env.iter().map(|one| renumbered(one, first_pass)))
            .collect();
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut start = |program: &CStr, argv: &[CString]| {
            spawner.spawn(&Order {
                program: Program::Path(program),
                birthplace,
                argv,
                env: &env,
                listen_pid: false,
                stdin: Some(stdin.as_fd()),
                stdout: Some(stdout.as_fd()),
                stderr: Some(stderr.as_fd()),
                pass,
                first_pass,
                keep: &self.kept,
                cgroup,
                session: false,
                cwd: None,
                user: None,
                umask: None,
                rlimits,
                nice: None,
                affinity: &[],
                // What runs as somebody else could not be killed at the deadline (sudo, setuid).
                no_new_privs: seat.is_some() && !rustix::process::geteuid().is_root(),
                reset_oom_score: false,
                die_with_parent: true,
                seat,
                foreground: self.terminal.is_all_ours(),
                ignored: self.ignored,
            })
        };
        let Command { program, argv, .. } = &self.command;
        match start(program, argv) {
            // A script that does not say whose: the shell's, as execvp(3) has it.
            Err(SpawnFailure {
                step: SpawnStep::Exec,
                errno: libc::ENOEXEC,
            }) => {
                let head = [c"sh".to_owned(), program.clone()];
                let argv: Vec<CString> = head
                    .into_iter()
                    .chain(argv.iter().skip(1).cloned())
                    .collect();
                start(c"/bin/sh", &argv)
            }
            done => done,
        }
    }

    /// The first of so many numbers in a row that the command does not get from whoever started us: its lock's and its page's.
    fn free_numbers(&self, wanted: usize) -> i32 {
        let is_kept = |number: i32| self.kept.contains(&number);
        let free = |first: &i32| (*first..).take(wanted).all(|number| !is_kept(number));
        (FIRST_PASS..).find(free).unwrap_or(FIRST_PASS)
    }

    /// With what we are to end if it cannot even be waited for; none if something may have to be waited for.
    pub(super) fn otherwise(&self) -> Option<u8> {
        self.may_begin().then_some(self.command.otherwise)
    }

    /// It was started.
    pub(super) fn began(&mut self, leader: i32) {
        self.leader = Some(leader);
        // Its first act was to take the terminal, where it was to.
        if self.terminal.is_alone {
            self.terminal.given_to = Pid::from_raw(leader);
        }
    }

    /// May it be started? Once, and not when nobody wants it any more.
    pub(super) fn may_begin(&self) -> bool {
        self.leader.is_none() && self.ended.is_none() && self.called_off.is_none()
    }

    /// Its leader ended, or it could not be started.
    pub(super) fn ended(&mut self, status: ExitStatus) {
        if let ExitStatus::SpawnFailed { step, errno } = status {
            super::say(&format!(
                "{}: failed to {}: {}",
                self.command.program.to_string_lossy(),
                step.phrase(),
                host::errno_text(errno)
            ));
        }
        self.ended.get_or_insert(status);
    }

    /// A signal came while there was nothing to pass it on to: it is the waiting that ends. True the first time.
    pub(super) fn call_off(&mut self, number: i32) -> bool {
        self.may_begin() && self.called_off.replace(number).is_none()
    }

    /// Was it run, or can it not be?
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// Does it run?
    pub(super) fn is_running(&self) -> bool {
        self.leader.is_some() && self.ended.is_none()
    }

    /// The command was stopped by this signal; true if it is to be continued at once.
    pub(super) fn stopped(&mut self, number: i32) -> bool {
        let by_terminal = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&number);
        let Some(leader) = self.leader.filter(|_| by_terminal) else {
            // Who freezes it by SIGSTOP means it alone.
            return false;
        };
        if number != libc::SIGTSTP && self.terminal.give(leader) {
            return true;
        }
        self.terminal.take_back();
        self.is_stopped = true;
        child::stop_our_group(number);
        let resumed = self.terminal.is_foreground();
        self.went_on = resumed;
        resumed && self.resumed()
    }

    /// ^Z while there is no command yet.
    pub(super) fn stop_waiting(&self) {
        child::stop_our_group(libc::SIGTSTP);
    }

    /// Our job was continued; true if the command is to be continued too.
    pub(super) fn continued(&mut self) -> bool {
        if std::mem::take(&mut self.went_on) {
            return false;
        }
        self.resumed()
    }

    fn resumed(&mut self) -> bool {
        if std::mem::take(&mut self.is_stopped)
            && let Some(leader) = self.leader
        {
            self.terminal.give_again(leader);
        }
        true
    }

    /// Takes the terminal back, and ends us as the command was ended by ^C: shells that run us in a loop or a script must see that, and
    /// those that are of our group have not, if the command alone was in the foreground.
    pub(super) fn finish(&mut self) {
        let alone = self.terminal.given_to.is_some();
        self.terminal.take_back();
        let by_key = matches!(
            self.ended,
            Some(ExitStatus::Signal {
                number: libc::SIGINT,
                ..
            })
        );
        if by_key && self.terminal.is_foreground() {
            child::end_by_interrupt(alone);
        }
    }

    /// What we end with; `otherwise` if neither the command nor a signal says.
    pub(super) fn code(&self, otherwise: u8) -> u8 {
        let of_signal = |number: i32| 128_u8.saturating_add(number as u8);
        match (self.ended, self.called_off) {
            (Some(ExitStatus::Code(code)), _) => code as u8,
            (Some(ExitStatus::Signal { number, .. }), _) => of_signal(number),
            (
                Some(ExitStatus::SpawnFailed {
                    step: SpawnStep::Exec,
                    errno: libc::ENOENT | libc::ENOTDIR,
                }),
                _,
            ) => 127,
            (Some(ExitStatus::SpawnFailed { .. }), _) => 126,
            (None, Some(number)) => of_signal(number),
            (None, None) => otherwise,
        }
    }
}

/// Our own environment, byte for byte, without what `instead` sets anew.
fn inherited(instead: &[CString]) -> impl Iterator<Item = CString> {
    let name = |variable: &CString| {
        let bytes = variable.as_bytes();
        bytes.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec)
    };
    let names: Vec<Vec<u8>> = instead.iter().filter_map(name).collect();
    std::env::vars_os()
        .filter(move |(name, _)| !names.iter().any(|known| known == name.as_encoded_bytes()))
        .filter_map(|(name, value)| {
            let bytes = [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat();
            CString::new(bytes).ok()
        })
}

/// The engine counts on what is passed beginning at [`FIRST_PASS`].
fn renumbered(variable: &CString, first: i32) -> CString {
    let moved = || -> Option<CString> {
        let (name, number) = variable.to_str().ok()?.split_once('=')?;
        if !["LEASEHOLD_LOCK_FD", "LEASEHOLD_PAGE_FD"].contains(&name) {
            return None;
        }
        let number = number.parse::<i32>().ok()? - FIRST_PASS + first;
        CString::new(format!("{name}={number}")).ok()
    };
    moved().unwrap_or_else(|| variable.clone())
}

/// The terminal that our job runs on, if there is one.
struct Terminal {
    controlling: Option<OwnedFd>,
    ours: Pid,
    /// The command's group, while it has the terminal from us.
    given_to: Option<Pid>,
    /// Are stdin and stdout both that terminal? Then we are alone on it; in a pipeline its other members need it as well.
    is_alone: bool,
}

impl Terminal {
    fn find() -> Self {
        let ours = getpgrp();
        let controlling = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .ok();
        // Of a terminal that is not ours it cannot be asked.
        let is_alone = tcgetpgrp(io::stdin()).is_ok() && io::stdout().is_terminal();
        Self {
            controlling: controlling.map(Into::into),
            ours,
            given_to: None,
            is_alone,
        }
    }

    fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(self.controlling.as_ref()?).ok()
    }

    fn is_foreground(&self) -> bool {
        self.foreground() == Some(self.ours)
    }

    /// Is the command to begin in the foreground?
    fn is_all_ours(&self) -> bool {
        self.is_alone && self.is_foreground()
    }

    /// Makes the command's group the foreground, if that is ours to give.
    fn give(&mut self, leader: i32) -> bool {
        let (Some(terminal), Some(group)) = (&self.controlling, Pid::from_raw(leader)) else {
            return false;
        };
        let done = self.is_foreground() && tcsetpgrp(terminal, group).is_ok();
        if done {
            self.given_to = Some(group);
        }
        done
    }

    /// After a stop: what waits for a pipeline's other members goes on without it, until it wants it.
    fn give_again(&mut self, leader: i32) {
        if self.is_alone {
            self.give(leader);
        }
    }

    /// The command has it no more. A shell that gave it to another job meanwhile is left alone.
    fn take_back(&mut self) {
        let (Some(terminal), Some(group)) = (&self.controlling, self.given_to.take()) else {
            return;
        };
        // A shell of the command's may have given it to a job that is gone with it.
        let is_free = self
            .foreground()
            .is_none_or(|now| now == group || test_kill_process_group(now).is_err());
        if is_free {
            // We are in the background, and ignore SIGTTOU.
            let _ = tcsetpgrp(terminal, self.ours);
        }
    }
}
