//! The real world, as a configuration may ask about it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    config::{LastResort, Surroundings},
    sys::host,
    wire::{Containment, Credentials, Welcome},
};

/// This machine.
pub struct ThisMachine {
    last_resort: LastResort,
}

impl ThisMachine {
    /// As somebody sees it who may be anybody.
    pub fn from_outside() -> Self {
        let here = std::process::id() == 1 || host::may_make_namespaces();
        Self {
            last_resort: if here {
                LastResort::ThereIs
            } else {
                LastResort::NoneHere
            },
        }
    }

    /// As the daemon sees it, of which we are the supervisor: what we may do, its keeper may.
    pub fn of_daemon(welcome: &Welcome) -> Self {
        let there_is = welcome.containment == Containment::Unit
            || welcome.keeper == 1
            || host::may_make_namespaces();
        Self {
            last_resort: if there_is {
                LastResort::ThereIs
            } else {
                LastResort::None
            },
        }
    }
}

impl Surroundings for ThisMachine {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn is_regular(&self, path: &Path) -> io::Result<bool> {
        Ok(fs::metadata(path)?.is_file())
    }

    fn matching(&self, dir: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
        let (head, tail) = pattern.split_once('*').unwrap_or((pattern, ""));
        let fits = |name: &str| {
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(fits) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    fn credentials(
        &self,
        user: &str,
        group: Option<&str>,
        groups: Option<&[String]>,
    ) -> Result<Credentials, String> {
        host::credentials(user, group, groups)
    }

    fn home(&self, user: &str) -> Option<(String, String)> {
        host::home(user)
    }

    fn is_executable(&self, path: &Path) -> bool {
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }

    fn hostname(&self) -> String {
        host::hostname()
    }

    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn last_resort(&self) -> LastResort {
        self.last_resort
    }

    fn nofile_hard(&self) -> u64 {
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_or(1024, |(_, hard)| hard)
    }

    fn cpus(&self) -> u32 {
        // The configured ones, not those that this process may use: a worker's affinity is its own.
        let configured = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_CONF);
        configured
            .ok()
            .flatten()
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1)
            .max(1)
    }

    fn usable_cores(&self) -> u32 {
        host::usable_cores()
    }
}
