//! On a terminal: the keeper is its foreground job, the supervisor a group in the background.

use std::{
    fs,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    process::Signal,
    termios::{LocalModes, tcgetattr},
};

use crate::rig::{Rig, both_ways, identities, send, skip, state_of, until, until_true};

/// Our side of a terminal.
pub(crate) struct Terminal {
    master: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts the rig's daemon on a terminal of its own, as its session's leader. `settings` are stty(1)'s.
    fn start(rig: &mut Rig, settings: &str) -> Option<Self> {
        let able = std::process::Command::new("setsid")
            .arg("--version")
            .output();
        if !able.is_ok_and(|output| output.status.success()) {
            skip("no setsid(1)");
            return None;
        }
        let words = format!("stty {settings} && exec \"$@\"");
        rig.wrapper = ["setsid", "--ctty", "/bin/sh", "-c", &words, "sh"]
            .map(str::to_owned)
            .to_vec();
        let mut command = rig.run_command();
        command.env("NO_COLOR", "1");
        Some(Self::open(command, |command| rig.spawn_as(command)))
    }

    /// A new terminal, and a command with its stdio there.
    pub(crate) fn open(mut command: Command, spawn: impl FnOnce(Command)) -> Self {
        let pair = nix::pty::openpty(None, None).unwrap();
        command
            .stdin(pair.slave.try_clone().unwrap())
            .stdout(pair.slave.try_clone().unwrap())
            .stderr(pair.slave);
        spawn(command);
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut screen, theirs) = (
            fs::File::from(pair.master.try_clone().unwrap()),
            Arc::clone(&shown),
        );
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO says that nobody has it open any more.
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                let mut shown = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                shown.extend_from_slice(&buffer[..length]);
            }
        });
        Self {
            master: pair.master,
            shown,
        }
    }

    pub(crate) fn shown(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Waits for something that was not there when this was called.
    fn shows_anew(&self, what: &str) {
        let from = self.shown().len();
        until(what, 5_000, || {
            let shown = self.shown();
            let new = shown.get(from..).unwrap_or_default();
            new.contains(what)
                .then_some(())
                .ok_or_else(|| new.to_owned())
        });
    }

    /// Waits until it shows something.
    pub(crate) fn shows(&self, what: &str) {
        until(what, 10_000, || {
            let shown = self.shown();
            shown.contains(what).then_some(()).ok_or(shown)
        });
    }

    /// Types, and waits for what that brings.
    pub(crate) fn answers(&self, keys: &str, what: &str) {
        let from = self.shown().len();
        let mut keyboard = fs::File::from(self.master.try_clone().unwrap());
        keyboard.write_all(keys.as_bytes()).unwrap();
        until(what, 10_000, || {
            let shown = self.shown();
            let new = shown.get(from..).unwrap_or_default();
            new.contains(what)
                .then_some(())
                .ok_or_else(|| format!("after {keys:?}: {shown}"))
        });
    }

    fn press(&self, key: u8) {
        let mut keyboard = fs::File::from(self.master.try_clone().unwrap());
        keyboard.write_all(&[key]).unwrap();
    }
}

/// Process group, session and the terminal's foreground group of a process.
fn groups_of(pid: i32) -> [i32; 3] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(") ").unwrap().1.to_owned();
    let field = |n: usize| rest.split(' ').nth(n).unwrap().parse().unwrap();
    [field(2), field(3), field(5)]
}

const CTRL_C: u8 = 3;
const CTRL_Z: u8 = 26;

both_ways!(a_terminal_that_stops_background_writers_stops_nobody);

/// `stty tostop`: whoever writes from the background is stopped, unless it takes no notice. Neither is anybody by ^Z, and ^C drains.
fn a_terminal_that_stops_background_writers_stops_nobody(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = ["/bin/sh", "-c", "while :; do echo tick; sleep 0.05; done"]
        workers = 2
    "#,
    );
    let Some(terminal) = Terminal::start(&mut rig, "tostop") else {
        return;
    };
    let before = rig.settle(10_000);
    let (keeper, supervisor) = (rig.keeper(), before.supervisor());
    // It is what it should be: such a terminal, with the supervisor in its background.
    let modes = tcgetattr(&terminal.master).unwrap().local_modes;
    assert!(modes.contains(LocalModes::TOSTOP));
    assert_eq!(groups_of(keeper), [keeper, keeper, keeper]);
    let [group, session, foreground] = groups_of(supervisor);
    assert!(group == supervisor && session == keeper && foreground == keeper);
    let nobody_stopped = |supervisor: i32| {
        for pid in [keeper, supervisor] {
            assert_ne!(state_of(pid), Some('T'), "{}", terminal.shown());
        }
        assert_eq!(
            rig.status().supervisor(),
            supervisor,
            "{}",
            terminal.shown()
        );
    };
    terminal.shows_anew("web/1 | tick");
    terminal.press(CTRL_Z);
    terminal.shows_anew("web/1 | tick");
    // What the keeper says itself, and the first words of the next supervisor.
    nobody_stopped(supervisor);
    send(supervisor, Signal::KILL);
    until_true("the keeper says so", 2_000, || {
        terminal.shown().contains("starting it again")
    });
    let after = rig.wait("another supervisor", 3_000, |s| {
        s.supervisor() != supervisor
    });
    terminal.shows_anew("web/1 | tick");
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    nobody_stopped(after.supervisor());
    terminal.press(CTRL_C);
    let status = rig.ended(6_000);
    assert_eq!(status.code(), Some(0), "{status}: {}", terminal.shown());
    until_true("it says so", 2_000, || {
        terminal.shown().contains("drained; everything is stopped")
    });
    rig.assert_nothing_left();
}
