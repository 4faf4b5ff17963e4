//! Somebody else who wants the processors.

use std::process::{Child, Command};

pub(crate) struct Load(Vec<Child>);

impl Load {
    pub(crate) fn new(loops: usize) -> Self {
        let busy = |_| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "sh", "-c", "while :; do :; done"]);
            command.spawn().expect("a shell starts")
        };
        Self((0..loops).map(busy).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
