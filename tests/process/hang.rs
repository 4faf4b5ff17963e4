//! A directory that hangs whoever looks into it: a file system in user space that nobody serves.

use std::{fs, path::PathBuf};

use crate::rig::{Rig, is_root, skip, until_true};

pub(crate) struct Hang {
    program: PathBuf,
    place: PathBuf,
    mounted: PathBuf,
}

impl Hang {
    /// Not yet hanging; none, said on stderr, where that cannot be had.
    pub(crate) fn new(rig: &Rig) -> Option<Self> {
        if !is_root() || !fs::exists("/dev/fuse").is_ok_and(|there| there) {
            skip("only root can mount a file system that hangs, where there is FUSE");
            return None;
        }
        let program = rig.compile("hang", include_str!("hang.c"), &[])?;
        let place = rig.path("place");
        fs::create_dir(&place).unwrap();
        Some(Self {
            program,
            place,
            mounted: rig.path("hung"),
        })
    }

    /// What runs a program for which it hangs.
    pub(crate) fn words(&self) -> [String; 2] {
        [&self.program, &self.place].map(|path| path.display().to_string())
    }

    pub(crate) fn begin(&self) {
        fs::write(self.place.join("hang-now"), "").unwrap();
        until_true("it hangs", 5_000, || self.mounted.exists());
    }

    /// Whoever hangs there gets an error.
    pub(crate) fn end(&self) {
        let _ = fs::remove_file(&self.mounted);
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.end();
    }
}
