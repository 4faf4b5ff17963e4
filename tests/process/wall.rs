//! A wall clock that a daemon alone sees: a preloaded library shows it another one (`jump.c`), so that the next minute is a second away.

use std::{fs, path::PathBuf};

use jiff::Timestamp;

use crate::rig::Rig;

/// The wall clock that the daemon sees.
pub(crate) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// None if there is no C compiler.
    pub(crate) fn new(rig: &mut Rig) -> Option<Self> {
        let flags = ["-shared", "-fPIC"];
        let library = rig.compile("jump.so", include_str!("jump.c"), &flags)?;
        let file = rig.path("jump");
        rig.wrapper = vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", library.display()),
            format!("CLOCK_JUMP={}", file.display()),
        ];
        Some(Self { file })
    }

    pub(crate) fn set(&self, seconds: i64) {
        let new = self.file.with_extension("new");
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }

    /// The daemon sees it `before` so long before the minute that this many minutes from now begins; that minute.
    pub(crate) fn set_before(&self, minutes: i64, before: i64) -> Timestamp {
        let now = Timestamp::now().as_second();
        let minute = (now / 60 + minutes) * 60;
        self.set(minute - before - now);
        Timestamp::from_second(minute).unwrap()
    }
}
