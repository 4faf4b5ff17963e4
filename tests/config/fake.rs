//! A machine that is the same everywhere: what a configuration asks of its surroundings, from a table.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use leasehold::{
    config::{LastResort, Surroundings},
    wire::Credentials,
};

/// A machine with two CPUs, one user, a few programs, and the files it is given.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeMachine {
    files: BTreeMap<PathBuf, String>,
    pub(crate) root: bool,
    pub(crate) last_resort: LastResort,
}

impl FakeMachine {
    pub(crate) fn with(files: impl IntoIterator<Item = (PathBuf, String)>) -> Self {
        Self {
            files: files.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// Directories that are there and may not be read.
const LOCKED: &str = "locked.d";
const PROGRAMS: [&str; 6] = [
    "/bin/sh",
    "/bin/sleep",
    "/bin/true",
    "/srv/app/worker",
    "/usr/bin/env",
    "/usr/bin/python3",
];

impl Surroundings for FakeMachine {
    fn variable(&self, name: &str) -> Option<String> {
        let value = match name {
            "PATH" => "/usr/bin:/bin",
            "LANG" => "C.UTF-8",
            "HOME" => "/home/operator",
            "USER" | "LOGNAME" => "operator",
            "PORT" => "8080",
            "DOLLARS" => "$${PORT}",
            "EMPTY" => "",
            "LEASEHOLD_TEST_GATE" => "1",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let found = self.files.get(path).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(2))
    }

    fn is_regular(&self, path: &Path) -> io::Result<bool> {
        if path.starts_with("/dev") {
            return Ok(false);
        }
        self.read(path).map(|_| true)
    }

    fn matching(&self, dir: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
        if dir.ends_with(LOCKED) {
            return Err(io::Error::from_raw_os_error(13));
        }
        let (head, tail) = pattern.split_once('*').unwrap_or((pattern, ""));
        let fits = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let fits = |name: &str| {
                name.len() >= head.len() + tail.len()
                    && name.starts_with(head)
                    && name.ends_with(tail)
            };
            path.parent() == Some(dir) && name.is_some_and(fits)
        };
        Ok(self.files.keys().filter(fits).cloned().collect())
    }

    fn credentials(
        &self,
        user: &str,
        group: Option<&str>,
        groups: Option<&[String]>,
    ) -> Result<Credentials, String> {
        if !matches!(user, "web" | "1000") {
            return Err(format!("no user `{user}` on this machine"));
        }
        let asked = group
            .into_iter()
            .chain(groups.into_iter().flatten().map(String::as_str));
        for name in asked {
            if !matches!(name, "web" | "adm") {
                return Err(format!("no group `{name}` on this machine"));
            }
        }
        Ok(Credentials {
            uid: 1000,
            gid: 1000,
            groups: vec![1000, 4],
        })
    }

    fn home(&self, _user: &str) -> Option<(String, String)> {
        Some(("/home/web".to_owned(), "web".to_owned()))
    }

    fn is_executable(&self, path: &Path) -> bool {
        PROGRAMS.iter().any(|program| Path::new(program) == path)
    }

    fn hostname(&self) -> String {
        "vps1".to_owned()
    }

    fn is_root(&self) -> bool {
        self.root
    }

    fn last_resort(&self) -> LastResort {
        self.last_resort
    }

    fn nofile_hard(&self) -> u64 {
        4096
    }

    fn cpus(&self) -> u32 {
        2
    }

    fn usable_cores(&self) -> u32 {
        2_000
    }
}
