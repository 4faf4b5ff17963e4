//! Stops threads in a way of which nobody hears.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::rig::{Rig, skip};

/// A tracer that has them.
pub(crate) struct Freeze(Child);

/// What has them; none if there is no C compiler.
pub(crate) fn tracer(rig: &Rig) -> Option<PathBuf> {
    let tracer = rig.path("tracer");
    match tracer.exists() {
        true => Some(tracer),
        false => rig.compile("tracer", include_str!("tracer.c"), &[]),
    }
}

impl Freeze {
    /// `how` is a word of `tracer.c`.
    pub(crate) fn new(rig: &Rig, how: &str, pid: i32) -> Option<Self> {
        let mut child = Command::new(tracer(rig)?)
            .args([how, &pid.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let freeze = Self(child);
        if line.is_empty() {
            skip("nobody may trace here (ptrace)");
            return None;
        }
        Some(freeze)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
