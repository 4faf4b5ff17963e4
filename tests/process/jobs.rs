//! `leasehold lock` on a terminal, below a shell with job control: the keys are the command's, and the shell sees one job.

use std::process::{Child, Command};

use rustix::process::Signal;

use crate::{
    lock::Lock,
    rig::{Rig, both_ways, send, skip, until, until_true},
    terminal::Terminal,
};

both_ways!(
    keys_reach_the_command_once,
    a_job_is_stopped_and_goes_on,
    the_background_leaves_the_terminal_alone,
    a_program_may_have_its_terminal_raw,
    a_pipeline_shares_the_terminal,
    nobody_could_continue_us,
);

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";

/// An interactive shell on a terminal of its own.
struct Shell {
    lock: Lock,
    terminal: Terminal,
    shell: Child,
}

impl Shell {
    fn new(rig: Rig) -> Option<Self> {
        let has = |name: &str| {
            Command::new(name)
                .arg("--version")
                .output()
                .is_ok_and(|o| o.status.success())
        };
        if !has("bash") || !has("setsid") {
            skip("no bash or setsid(1)");
            return None;
        }
        let lock = Lock::new(rig);
        let mut command = Command::new("setsid");
        command.args([
            "--ctty",
            "bash",
            "--norc",
            "--noprofile",
            "--noediting",
            "-i",
        ]);
        let held = format!(
            "{} lock {}",
            env!("CARGO_BIN_EXE_leasehold"),
            lock.words().join(" ")
        );
        command
            .env("HELD", held)
            .env("PS1", "$ ")
            .env("TERM", "dumb");
        let mut shell = None;
        let terminal = Terminal::open(command, |mut command| {
            shell = Some(command.spawn().unwrap())
        });
        let shell = Self {
            lock,
            terminal,
            shell: shell.unwrap(),
        };
        shell.says("set -o notify; echo re''ady", "ready");
        Some(shell)
    }

    /// Types a line; what is waited for must not stand in it.
    fn says(&self, line: &str, what: &str) {
        assert!(!line.contains(what), "the echo of {line:?} would do");
        self.terminal.answers(&format!("{line}\n"), what);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn keys_reach_the_command_once(rig: Rig) {
    let Some(shell) = Shell::new(rig) else { return };
    let script = "trap \"echo heard-it\" INT; trap \"exit 5\" QUIT; echo u\"\"p; while :; do sleep 0.05; done";
    shell.says(&format!("$HELD -- sh -c '{script}'"), "up\r\n");
    let count = || shell.terminal.shown().matches("heard-it\r\n").count();
    for presses in 1..=3 {
        shell.terminal.answers(CTRL_C, "heard-it\r\n");
        assert_eq!(count(), presses);
    }
    shell.terminal.answers("\x1c", "$ ");
    shell.says("echo co''de=$?", "code=5");
    assert_eq!(count(), 3, "{}", shell.terminal.shown());
    // Who has no handler ends, and so does the loop around it.
    shell.says(
        "while :; do echo ro''und; $HELD -- sleep 1000; done",
        "round\r\n",
    );
    until_true("it sleeps", 5_000, || shell.lock.holds());
    shell.terminal.answers(CTRL_C, "$ ");
    shell.says("echo co''de=$?", "code=130");
    assert_eq!(
        shell.terminal.shown().matches("round\r\n").count(),
        1,
        "{}",
        shell.terminal.shown()
    );
    // So does a script, whose shell is in the background meanwhile.
    shell.says(
        "bash -c 'echo be\"\"gun; $HELD -- sleep 1000; echo went\"\"-on'",
        "begun\r\n",
    );
    until_true("it sleeps", 5_000, || shell.lock.holds());
    shell.terminal.answers(CTRL_C, "$ ");
    shell.says("echo co''de=$?", "code=130");
    let shown = shell.terminal.shown();
    assert!(!shown.contains("went-on"), "{shown}");
    // ^C while it waits.
    shell.says(
        "$HELD -- sh -c 'echo h\"\"eld; exec sleep 1000' &",
        "held\r\n",
    );
    shell.says("$HELD -- true", "waiting for the lock");
    shell.terminal.answers(CTRL_C, "$ ");
    shell.says("echo co''de=$?", "code=130");
    shell.says("kill %1; wait %1; echo co''de=$?", "code=143");
    shell.lock.assert_nothing_left();
}

fn a_job_is_stopped_and_goes_on(rig: Rig) {
    let Some(shell) = Shell::new(rig) else { return };
    shell.says("$HELD -- sh -c 'echo u\"\"p; exec cat'", "up\r\n");
    for round in 0..3 {
        shell.terminal.answers(
            &format!("line-{round}\n"),
            &format!("line-{round}\r\nline-{round}\r\n"),
        );
        shell.terminal.answers(CTRL_Z, "Stopped");
        shell.says("echo sh''ell", "shell\r\n");
        shell.terminal.answers("fg\n", "$HELD -- ");
    }
    shell.terminal.answers("last\n", "last\r\nlast\r\n");
    shell.terminal.answers(CTRL_D, "$ ");
    shell.says("echo co''de=$?", "code=0");
    // Stopped, then sent to the background; it stops again when it wants to read.
    shell.says("$HELD -- sh -c 'echo u\"\"p; exec cat'", "up\r\n");
    shell.terminal.answers(CTRL_Z, "Stopped");
    shell.terminal.answers("bg\n", "Stopped");
    shell.terminal.answers("fg\n", "$HELD -- ");
    shell.terminal.answers("more\n", "more\r\nmore\r\n");
    shell.terminal.answers(CTRL_Z, "Stopped");
    // A stopped job ends by SIGTERM as any other: the shell continues it.
    shell.terminal.answers("kill %1\n", "Exit 143");
    shell.lock.assert_nothing_left();
}

fn the_background_leaves_the_terminal_alone(rig: Rig) {
    let Some(shell) = Shell::new(rig) else { return };
    shell.says(&format!("$HELD -- {UP_AND_WAITS} &"), "up\r\n");
    for n in 0..3 {
        shell.says(&format!("echo st''ill-{n}"), &format!("still-{n}"));
    }
    shell.terminal.answers("fg\n", "$HELD -- ");
    // The shell says so before it gives the terminal away.
    until_true("the job is in front", 5_000, || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", shell.shell.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[5] != fields[2]
    });
    shell.terminal.answers(CTRL_C, "$ ");
    shell.says("echo co''de=$?", "code=130");
    // A keeper that is killed leaves the shell its terminal.
    shell.says(
        "$HELD -- sh -c 'echo $PPID > $0; echo u\"\"p; exec cat' /tmp/$$.pid",
        "up\r\n",
    );
    let pid = std::fs::read_to_string(format!("/tmp/{}.pid", shell.shell.id())).unwrap();
    let _ = std::fs::remove_file(format!("/tmp/{}.pid", shell.shell.id()));
    let from = shell.terminal.shown().len();
    send(pid.trim().parse().unwrap(), Signal::KILL);
    until_true("the shell sees it", 5_000, || {
        shell.terminal.shown()[from..].contains("Killed")
    });
    // What is typed while the command is dying may be read by it.
    shell.lock.assert_nothing_left();
    shell.says("echo ba''ck", "back\r\n");
}

fn a_program_may_have_its_terminal_raw(rig: Rig) {
    let Some(shell) = Shell::new(rig) else { return };
    let program = shell.lock.rig.path("raw.py");
    let text = "import os, sys, termios, tty\n\
                before = termios.tcgetattr(0)\n\
                tty.setraw(0)\n\
                os.write(1, b'ra' + b'w\\r\\n')\n\
                keys = b''\n\
                while not keys.endswith(b'q'):\n    keys += os.read(0, 1)\n\
                termios.tcsetattr(0, termios.TCSADRAIN, before)\n\
                print('keys', keys)\n";
    std::fs::write(&program, text).unwrap();
    shell.says(
        &format!("$HELD -- python3 {}", program.display()),
        "raw\r\n",
    );
    shell.terminal.answers("\x03\x1aq", "keys b'\\x03\\x1aq'");
    shell.says(
        "echo co''de=$?; stty -a | grep -o ' [-]*icanon' ",
        "code=0\r\n icanon",
    );
    shell.lock.assert_nothing_left();
}

/// Where no shell is there to continue us, as in a container, ^Z does not stop us for ever.
fn nobody_could_continue_us(rig: Rig) {
    let lock = Lock::new(rig);
    let mut command = Command::new("setsid");
    command.args(["--ctty", env!("CARGO_BIN_EXE_leasehold"), "lock"]);
    command
        .args(lock.words())
        .args(["--", "sh", "-c", "echo up; exec cat"]);
    let mut child = None;
    let terminal = Terminal::open(command, |mut command| {
        child = Some(command.spawn().unwrap())
    });
    let mut child = child.unwrap();
    terminal.shows("up\r\n");
    terminal.answers(CTRL_Z, "^Z");
    terminal.answers("line\n", "line\r\nline\r\n");
    terminal.answers(CTRL_D, "");
    let status = until("it ends", 5_000, || {
        child.try_wait().unwrap().ok_or_else(|| terminal.shown())
    });
    assert_eq!(status.code(), Some(0));
    lock.assert_nothing_left();
}

/// Says so on stderr, and waits from then on. Not a shell that starts another program: a signal between its fork and its exec is lost in it.
const UP_AND_WAITS: &str = r#"python3 -SEc 'import os, signal as s; s.signal(2, s.SIG_DFL); os.write(2, b"up\n"); s.pause()'"#;

/// Others of the pipeline need the terminal too: the command gets it when it wants to read there.
fn a_pipeline_shares_the_terminal(rig: Rig) {
    let Some(shell) = Shell::new(rig) else { return };
    shell.says(
        "$HELD -- echo fir''st | sh -c 'cat; read key < /dev/tty; echo g\"\"ot-$key'",
        "first\r\n",
    );
    shell.terminal.answers("a\n", "got-a\r\n");
    shell.says(
        "$HELD -- sh -c 'echo u\"\"p >&2; read key < /dev/tty; echo g\"\"ot-$key' | cat",
        "up\r\n",
    );
    shell.terminal.answers("b\n", "got-b\r\n");
    shell.says(&format!("$HELD -- {UP_AND_WAITS} | cat"), "up\r\n");
    shell.terminal.answers(CTRL_C, "$ ");
    shell.says("echo co''de=${PIPESTATUS[0]}", "code=130");
    shell.lock.assert_nothing_left();
}
