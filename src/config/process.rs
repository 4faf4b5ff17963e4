//! What reaches a worker's process: command, environment, identity, limits, hooks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    config::{
        Surroundings,
        commands::{Placeholders, Programs},
        forms, limits,
        section::{Origin, Section},
        spec::*,
    },
    time::Span,
    wire::Credentials,
};

/// `log.stderr`: is it separate?
pub(super) const STDERR: [(&str, bool); 2] = [("merge", false), ("separate", true)];
/// A hook's `on_error`: does it abort?
pub(super) const ON_ERROR: [(&str, bool); 2] = [("abort", true), ("ignore", false)];

/// Reads the process of a fleet, and says where its other programs (those of exec probes) are found.
pub(super) fn process<'p, 'r, 'a>(
    section: &Section<'r, 'a>,
    placeholders: &'p Placeholders<'r, 'a>,
) -> (ProcessSpec, Programs<'p, 'r, 'a>) {
    let user = section.string("user");
    let credentials = credentials(section, user.as_deref());
    let cwd = working_dir(section);
    let env = environment(section, user.as_deref(), credentials.as_ref(), placeholders);
    let programs = Programs {
        placeholders,
        search: env.get("PATH").cloned().unwrap_or_default(),
        dir: cwd
            .as_ref()
            .map_or_else(|| section.base().to_owned(), PathBuf::from),
    };
    let (program, argv) = programs.command(section, "command").unwrap_or_default();
    let hooks = section.section("hooks");
    let (pre_start, pre_stop) = (
        hook(&hooks, "pre_start", &programs),
        hook(&hooks, "pre_stop", &programs),
    );
    hooks.finish();
    let limits = limits::limits(&section.section("limits"));
    let env_files = section.strings("env_file").unwrap_or_default();
    let spec = ProcessSpec {
        program,
        argv,
        cwd,
        env,
        env_files: env_files
            .into_iter()
            .map(|(path, _)| env_file(section.base(), &path))
            .collect(),
        user: credentials,
        umask: section.parsed("umask", &forms::MODE),
        rlimits: limits.rlimits,
        nice: limits.nice,
        affinity: limits.affinity,
        session: section.boolean("session").unwrap_or(false),
        no_new_privs: section.boolean("no_new_privs").unwrap_or(false),
        cgroup_limits: limits.cgroup,
        port_range: section.parsed("port_range", &forms::PORTS),
        stderr_separate: section
            .tables("log")
            .word("stderr", &STDERR)
            .unwrap_or(false),
        pre_start,
        pre_stop,
    };
    (spec, programs)
}

/// `cwd`, also called `working_dir`.
fn working_dir(section: &Section<'_, '_>) -> Option<String> {
    let (short, long) = (section.string("cwd"), section.string("working_dir"));
    let first = prefer_first((section, "cwd"), (section, "working_dir"));
    let dir = if first { short } else { long };
    dir.map(|dir| absolute(section.base(), &dir))
}

/// Of two keys with one meaning, is the first in force? The one that the table has itself; both at once is a fault.
pub(super) fn prefer_first(
    (first, first_key): (&Section<'_, '_>, &'static str),
    (second, second_key): (&Section<'_, '_>, &'static str),
) -> bool {
    let (a, b) = (first.origin(first_key), second.origin(second_key));
    if a.is_some() && a == b {
        let message = format!(
            "{} and {} say the same thing twice",
            first.name(first_key),
            second.name(second_key)
        );
        second.fault("E160", second_key, message, "keep one of them");
    }
    b.is_none() || a == Some(Origin::Own)
}

fn env_file(base: &Path, typed: &str) -> EnvFile {
    let (path, optional) = typed
        .strip_prefix('-')
        .map_or((typed, false), |path| (path, true));
    EnvFile {
        path: absolute(base, path),
        optional,
    }
}

fn credentials(section: &Section<'_, '_>, user: Option<&str>) -> Option<Credentials> {
    let around = section.reader.around;
    let group = section.string("group");
    let groups = section.strings("groups");
    let Some(user) = user else {
        for key in ["group", "groups"] {
            if section.value(key).is_some() {
                let message = format!("{} without a user", section.name(key));
                let help = "set `user` too: groups are changed together with it";
                section.fault("E110", key, message, help);
            }
        }
        return None;
    };
    // One question for each name, so that the one that is wrong can be pointed at.
    let unknown = |key: &'static str, place, why: String| {
        let message = format!("{}: {why}", section.name(key));
        let help = "create it (sysusers.d, useradd), or name another".to_owned();
        section.reader.fault("E112", place, message, "", help);
    };
    if let Err(why) = around.credentials(user, None, None) {
        unknown("user", section.place_of("user"), why);
        return None;
    }
    if let Some(group) = &group
        && let Err(why) = around.credentials(user, Some(group), None)
    {
        unknown("group", section.place_of("group"), why);
        return None;
    }
    for (name, place) in groups.iter().flatten() {
        if let Err(why) = around.credentials(user, None, Some(std::slice::from_ref(name))) {
            unknown("groups", Some(place.clone()), why);
        }
    }
    if !around.is_root() {
        let message = format!(
            "{} needs root: only root may become another user",
            section.name("user")
        );
        let help = "remove it, or run the daemon as root";
        section.fault("E111", "user", message, help);
    }
    let groups: Option<Vec<String>> =
        groups.map(|list| list.into_iter().map(|(name, _)| name).collect());
    around
        .credentials(user, group.as_deref(), groups.as_deref())
        .ok()
}

/// What of our own environment reaches what is run as ourselves.
pub(super) fn own_environment(around: &dyn Surroundings) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    env.insert(
        "PATH".to_owned(),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    );
    for name in ["PATH", "LANG", "TZ", "HOME", "USER", "LOGNAME"] {
        env.extend(around.variable(name).map(|value| (name.to_owned(), value)));
    }
    env
}

/// A clean environment: what a login would have, then `env`.
fn environment(
    section: &Section<'_, '_>,
    user: Option<&str>,
    credentials: Option<&Credentials>,
    placeholders: &Placeholders<'_, '_>,
) -> BTreeMap<String, String> {
    let around = section.reader.around;
    let mut env = own_environment(around);
    if let Some((home, login)) = user
        .filter(|_| credentials.is_some())
        .and_then(|user| around.home(user))
    {
        env.extend([
            ("HOME".to_owned(), home),
            ("USER".to_owned(), login.clone()),
            ("LOGNAME".to_owned(), login),
        ]);
    }
    let given = section.section("env");
    for entry in given.entries() {
        let name = &entry.name;
        let fault = |code, message, help: &str| {
            let place = Some(entry.place.clone());
            let help = help.to_owned();
            given.reader.fault(code, place, message, "this name", help);
        };
        if name.is_empty() || name.contains('=') || name.contains('\0') {
            let message = format!("{name:?} cannot be the name of an environment variable");
            fault("E113", message, "a name has no `=`");
        } else if name.starts_with("LEASEHOLD_") {
            let message = format!("`{name}` is set by leasehold itself");
            let help = "choose a name that does not begin with LEASEHOLD_";
            fault("E114", message, help);
        } else if let Some(text) = given.entry_string(&entry) {
            placeholders.check(&text, &entry.value.place);
            env.insert(name.clone(), text);
        }
    }
    env
}

fn hook(
    hooks: &Section<'_, '_>,
    key: &'static str,
    programs: &Programs<'_, '_, '_>,
) -> Option<HookSpec> {
    let section = hooks.section(key);
    if section.is_absent() {
        return None;
    }
    let (program, argv) = programs.command(&section, "run").unwrap_or_default();
    let spec = HookSpec {
        program,
        argv,
        timeout: section.span("timeout").unwrap_or(Span::secs(10)),
        abort: section
            .word("on_error", &ON_ERROR)
            .unwrap_or(key == "pre_start"),
    };
    section.finish();
    Some(spec)
}

fn absolute(base: &Path, typed: &str) -> String {
    base.join(typed).display().to_string()
}
