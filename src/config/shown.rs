//! A fleet's settings as people type them, for differences: keys of the file, `30s`, `8MiB`, words.

use std::collections::BTreeMap;

use crate::{
    config::{
        cron::OVERLAPS,
        fleet::{AFTER, ON_FAILURE, ON_FULL, POLICIES, SINKS, TARGETS, THEN},
        limits,
        process::{ON_ERROR, STDERR},
        publish::MODES,
        records::{PROTOCOLS, VERSIONS},
        scale::{SIGNALS, STUCK},
        spec::*,
        units,
    },
    id::Revision,
};

/// Settings by key.
#[derive(Default)]
struct Shown(BTreeMap<String, String>);

/// All settings of a fleet that differ between different fleets, by key. Free text is quoted; words, numbers and units are not.
pub(super) fn shown(spec: &FleetSpec) -> BTreeMap<String, String> {
    // Taken apart in full, so that a new setting cannot be forgotten here.
    let FleetSpec {
        revision: _,
        workers,
        process,
        sockets,
        ready,
        start: StartSpec { timeout, parallel },
        health,
        restart,
        stop,
        rollout,
        after,
        rank,
        log,
        singleton,
        scale,
        cron,
        publish,
    } = spec;
    let mut all = Shown::default();
    all.put("workers", workers);
    all.process(process);
    for (name, socket) in sockets {
        all.socket(name, socket);
    }
    all.ready(ready);
    all.put("start.timeout", timeout);
    all.put("start.parallel", parallel);
    all.health(health);
    all.restart(restart);
    all.stop(stop);
    all.rollout(rollout);
    for (name, state) in after {
        all.word(&format!("after.{name}"), &AFTER, state);
    }
    // Not typed: it follows from the dependencies of all fleets.
    all.put("depth of dependencies", rank);
    all.log(log);
    if let Some(singleton) = singleton {
        all.singleton(singleton);
    }
    if let Some(scale) = scale {
        all.scale(scale);
        // Its bounds say how many.
        all.0.remove("workers");
    }
    if let Some(publish) = publish {
        all.publish(publish);
    }
    if let Some(cron) = cron {
        all.cron(cron);
        all.put("success", format!("{:?}", restart.success));
        // A job cannot say it.
        all.0.remove("restart.success");
    }
    all.0
}

impl Shown {
    fn put(&mut self, key: &str, value: impl ToString) {
        self.0.insert(key.to_owned(), value.to_string());
    }

    fn maybe(&mut self, key: &str, value: &Option<impl ToString>) {
        if let Some(value) = value {
            self.put(key, value.to_string());
        }
    }

    fn word<T: PartialEq>(&mut self, key: &str, words: &[(&str, T)], value: &T) {
        let word = words.iter().find(|(_, meaning)| meaning == value);
        self.put(key, word.map_or("", |(word, _)| word));
    }

    fn process(&mut self, process: &ProcessSpec) {
        let ProcessSpec {
            program,
            argv,
            cwd,
            env,
            env_files,
            user,
            umask,
            rlimits,
            nice,
            affinity,
            session,
            no_new_privs,
            cgroup_limits,
            port_range,
            stderr_separate,
            pre_start,
            pre_stop,
        } = process;
        self.command("command", program, argv);
        self.maybe("cwd", &cwd.as_ref().map(|dir| format!("{dir:?}")));
        for (name, value) in env {
            let value = if is_secret(name) {
                mark(value)
            } else {
                format!("{value:?}")
            };
            self.put(&format!("env.{name}"), value);
        }
        if !env_files.is_empty() {
            let sign = |file: &EnvFile| if file.optional { "-" } else { "" };
            let files = env_files
                .iter()
                .map(|file| format!("{}{}", sign(file), file.path));
            self.put("env_file", format!("{:?}", files.collect::<Vec<_>>()));
        }
        if let Some(user) = user {
            let text = format!("{}:{} with groups {:?}", user.uid, user.gid, user.groups);
            self.put("user", text);
        }
        self.maybe("umask", &umask.map(|mode| format!("{mode:04o}")));
        self.limits(rlimits, cgroup_limits);
        self.maybe("limits.nice", nice);
        if !affinity.is_empty() {
            let list: Vec<String> = affinity.iter().map(u32::to_string).collect();
            self.put("limits.cpus", list.join(","));
        }
        self.put("session", session);
        self.put("no_new_privs", no_new_privs);
        let ports = port_range.map(|(low, high)| format!("{low}-{high}"));
        self.maybe("port_range", &ports);
        self.word("log.stderr", &STDERR, stderr_separate);
        for (key, hook) in [("hooks.pre_start", pre_start), ("hooks.pre_stop", pre_stop)] {
            if let Some(hook) = hook {
                self.command(&format!("{key}.run"), &hook.program, &hook.argv);
                self.put(&format!("{key}.timeout"), hook.timeout);
                self.word(&format!("{key}.on_error"), &ON_ERROR, &hook.abort);
            }
        }
    }

    /// The words as typed, and where the program was found: that may change by itself.
    fn command(&mut self, key: &str, program: &str, argv: &[String]) {
        let mut text = format!("{argv:?}");
        if argv.first().is_none_or(|word| word != program) {
            text += &format!(" ({program})");
        }
        self.put(key, text);
    }

    fn limits(&mut self, rlimits: &[(u32, u64, u64)], cgroup: &[(String, String)]) {
        for (resource, soft, _) in rlimits {
            let here = |(_, number): &&(&str, u32)| number == resource;
            if let Some((key, _)) = limits::COUNTS.iter().find(here) {
                self.put(&format!("limits.{key}"), soft);
            }
            if let Some((key, _)) = limits::SIZES.iter().find(here) {
                let size = match *soft {
                    u64::MAX => "infinity".to_owned(),
                    bytes => units::show_size(bytes),
                };
                self.put(&format!("limits.{key}"), size);
            }
        }
        for (file, value) in cgroup {
            for (key, _) in limits::CGROUP_SIZES.iter().filter(|(_, f)| f == file) {
                let bytes = value.parse().map(units::show_size);
                self.put(&format!("limits.{key}"), bytes.as_ref().unwrap_or(value));
            }
            for (key, ..) in limits::CGROUP_COUNTS.iter().filter(|(_, f, _)| f == file) {
                self.put(&format!("limits.{key}"), value);
            }
        }
    }

    fn socket(&mut self, name: &str, socket: &SocketSpec) {
        let SocketSpec {
            listen,
            backlog,
            reuse_port,
            mode,
        } = socket;
        let key = |last: &str| format!("socket.{name}.{last}");
        self.put(&key("listen"), listen);
        self.put(&key("backlog"), backlog);
        self.put(&key("reuse_port"), reuse_port);
        self.maybe(&key("mode"), &mode.map(|mode| format!("{mode:04o}")));
    }

    fn ready(&mut self, ready: &ReadySpec) {
        match ready {
            ReadySpec::Spawned => self.put("ready", "spawned"),
            ReadySpec::Delay(span) => self.put("ready", format!("delay={span}")),
            ReadySpec::Notify => self.put("ready", "notify"),
            ReadySpec::Probe(probe) => self.probe("ready", probe),
        }
    }

    fn probe(&mut self, table: &str, probe: &ProbeSpec) {
        let ProbeSpec {
            kind,
            interval,
            timeout,
            fail,
            pass,
        } = probe;
        let key = |last: &str| format!("{table}.{last}");
        match kind {
            ProbeKind::Tcp(address) => self.put(&key("tcp"), address),
            ProbeKind::Http { address, path } => {
                self.put(&key("http"), format!("http://{address}{path}"));
            }
            ProbeKind::Exec(hook) => self.command(&key("exec"), &hook.program, &hook.argv),
        }
        self.put(&key("interval"), interval);
        self.put(&key("timeout"), timeout);
        match table {
            "ready" => self.put(&key("pass"), pass),
            _ => self.put(&key("fail"), fail),
        }
    }

    fn health(&mut self, health: &HealthSpec) {
        let HealthSpec {
            watchdog,
            probe,
            restarts_per_minute,
        } = health;
        self.maybe("health.watchdog", watchdog);
        if let Some(probe) = probe {
            self.probe("health", probe);
        }
        self.put("health.restarts_per_minute", restarts_per_minute);
    }

    fn restart(&mut self, restart: &RestartSpec) {
        let RestartSpec {
            policy,
            backoff_min,
            backoff_max,
            burst,
            window,
            healthy,
            give_up,
            success,
        } = restart;
        self.word("restart.policy", &POLICIES, policy);
        self.put("restart.backoff", format!("{backoff_min}..{backoff_max}"));
        self.put("restart.burst", burst);
        self.put("restart.window", window);
        self.put("restart.healthy", healthy);
        self.word("restart.then", &THEN, give_up);
        self.put("restart.success", format!("{success:?}"));
    }

    fn stop(&mut self, stop: &StopSpec) {
        let StopSpec {
            signal,
            to,
            timeout,
            extend_max,
            deregister_delay,
        } = stop;
        self.put("stop.signal", units::signal_name(*signal));
        self.word("stop.to", &TARGETS, to);
        self.put("stop.timeout", timeout);
        self.put("stop.extend_max", extend_max);
        self.put("stop.deregister_delay", deregister_delay);
    }

    fn rollout(&mut self, rollout: &RolloutSpec) {
        let RolloutSpec {
            max_surge,
            max_unavailable,
            min_ready,
            rollback,
        } = rollout;
        self.put("rollout.max_surge", max_surge);
        self.put("rollout.max_unavailable", max_unavailable);
        self.put("rollout.min_ready", min_ready);
        self.word("rollout.on_failure", &ON_FAILURE, rollback);
    }

    fn singleton(&mut self, singleton: &SingletonSpec) {
        let SingletonSpec {
            lock,
            flock,
            slots,
            per_node,
            allow_network_fs,
            lease,
            preference,
            takeover,
            bond,
            warm,
        } = singleton;
        let authority = lease.as_ref().map(|lease| &lease.authority);
        let scope = match authority {
            Some(Authority::File(_)) => "test",
            Some(Authority::Cluster(_)) => "cluster",
            None => "node",
        };
        self.put("singleton.scope", scope);
        self.put("singleton.lock", lock);
        self.maybe(
            "singleton.flock",
            &flock.as_ref().map(|path| format!("{path:?}")),
        );
        self.put("singleton.slots", slots);
        self.put("singleton.allow_network_fs", allow_network_fs);
        self.put("singleton.warm", warm);
        let Some(lease) = lease.as_ref().filter(|_| singleton.is_of_cluster()) else {
            return;
        };
        self.put("singleton.per_node", per_node);
        self.put("singleton.grace", lease.grace);
        self.put("singleton.kill_margin", lease.kill_margin);
        let Preference {
            priority,
            node,
            spread,
            failback,
        } = preference;
        self.put("singleton.priority", priority);
        self.maybe("singleton.prefer", node);
        self.maybe("singleton.spread", spread);
        self.maybe("singleton.failback", failback);
        match takeover {
            Takeover::After(delay) => self.put("singleton.takeover_delay", delay),
            Takeover::Strict => self.put("singleton.takeover_delay", "strict"),
        }
        match bond {
            Bond::Strict => self.put("singleton.containment", "strict"),
            Bond::Weak => self.put("singleton.containment", "weak"),
        }
    }

    fn scale(&mut self, scale: &ScaleSpec) {
        let ScaleSpec {
            min,
            max,
            cluster_max,
            high,
            target,
            signals,
            worker_cores,
            warmup,
            up_window,
            down_window,
            weight,
            idle_timeout,
            wake,
            backlog_alert,
            stuck_after,
            restart_stuck,
            source,
            queue_per_worker,
        } = scale;
        let percent = |share: &u32| format!("{}%", f64::from(*share) / 10_000.0);
        let words = SIGNALS
            .iter()
            .filter(|(_, signal)| signals.contains(signal));
        let words: Vec<&str> = words.map(|(word, _)| *word).collect();
        self.put("scale.min", min);
        self.put("scale.max", max);
        self.maybe("scale.cluster_max", cluster_max);
        self.put("scale.high", percent(high));
        self.put("scale.target", percent(target));
        self.put("scale.signals", format!("{words:?}"));
        self.put("scale.worker_cores", f64::from(*worker_cores) / 1_000.0);
        self.put("scale.warmup", warmup);
        self.put("scale.up_window", up_window);
        self.put("scale.down_window", down_window);
        self.put("scale.weight", weight);
        self.put("scale.idle_timeout", idle_timeout);
        self.put("scale.wake", wake);
        self.maybe("scale.backlog_alert", backlog_alert);
        self.put("scale.stuck_after", stuck_after);
        self.word("scale.stuck", &STUCK, restart_stuck);
        if scale.uses(Signal::Queue) {
            self.put("scale.queue_per_worker", queue_per_worker / 1_000);
        }
        if let Some(SourceSpec {
            kind,
            interval,
            timeout,
        }) = source
        {
            match kind {
                SourceKind::Http { address, path } => {
                    self.put("scale.source.http", format!("http://{address}{path}"));
                }
                SourceKind::Exec(command) => {
                    self.command("scale.source.exec", &command.program, &command.argv);
                }
            }
            self.put("scale.source.interval", interval);
            self.put("scale.source.timeout", timeout);
        }
    }

    fn publish(&mut self, publish: &PublishSpec) {
        let PublishSpec {
            mode,
            address,
            port,
            files,
            haproxy_agent,
            // Ours, as the daemon was started; nobody types it here.
            environment: _,
            records,
        } = publish;
        self.word("publish.mode", &MODES, mode);
        self.put("publish.address", address);
        self.put("publish.port", port);
        self.maybe("publish.haproxy_agent", haproxy_agent);
        for file in files {
            let PublishedFile {
                template,
                path,
                check,
                reload,
            } = file;
            let key = |last: &str| format!("publish.file.{path}.{last}");
            self.put(&key("template"), format!("{template:?}"));
            for (name, command) in [("check", check), ("reload", reload)] {
                if let Some(command) = command {
                    self.command(&key(name), &command.program, &command.argv);
                    self.put(&key("timeout"), command.timeout);
                }
            }
        }
        if let Some(records) = records {
            self.records(records);
        }
    }

    fn records(&mut self, records: &RecordsSpec) {
        let RecordsSpec {
            traefik,
            coredns,
            kv,
        } = records;
        if let Some(traefik) = traefik {
            self.traefik(traefik);
        }
        if let Some(CorednsSpec {
            prefix,
            zone,
            name,
            srv,
            ttl,
            priority,
        }) = coredns
        {
            self.put("publish.coredns.prefix", prefix);
            self.put("publish.coredns.zone", zone);
            self.put("publish.coredns.name", name);
            self.maybe("publish.coredns.srv", srv);
            self.put("publish.coredns.ttl", ttl);
            self.put("publish.coredns.priority", priority);
        }
        for KvSpec { key, value } in kv {
            self.put(&format!("publish.kv.{key}"), format!("{value:?}"));
        }
    }

    fn traefik(&mut self, traefik: &TraefikSpec) {
        let TraefikSpec {
            version,
            rootkey,
            protocol,
            router,
            rule,
            entrypoints,
            middlewares,
            tls,
            scheme,
            passhostheader,
            healthcheck,
        } = traefik;
        self.word("publish.traefik.version", &VERSIONS, version);
        self.put("publish.traefik.rootkey", rootkey);
        self.word("publish.traefik.protocol", &PROTOCOLS, protocol);
        self.put("publish.traefik.router", router);
        self.maybe("publish.traefik.rule", rule);
        self.put("publish.traefik.entrypoints", entrypoints.join(", "));
        self.put("publish.traefik.middlewares", middlewares.join(", "));
        self.put("publish.traefik.tls", tls);
        self.put("publish.traefik.scheme", scheme);
        self.put("publish.traefik.passhostheader", passhostheader);
        if let Some(TraefikCheck {
            path,
            interval,
            timeout,
        }) = healthcheck
        {
            self.put("publish.traefik.healthcheck.path", path);
            self.maybe("publish.traefik.healthcheck.interval", interval);
            self.maybe("publish.traefik.healthcheck.timeout", timeout);
        }
    }

    fn cron(&mut self, cron: &CronSpec) {
        let CronSpec {
            cluster,
            schedule,
            timezone,
            overlap,
            catch_up,
            timeout,
            retry,
            jitter,
            history,
        } = cron;
        self.put("schedule", format!("{schedule:?}"));
        self.put("timezone", format!("{timezone:?}"));
        self.word("overlap", &OVERLAPS, overlap);
        self.put("catch_up", catch_up);
        self.put("timeout", timeout);
        self.put("retry.attempts", retry.attempts);
        let backoff = format!("{}..{}", retry.backoff_min, retry.backoff_max);
        self.put("retry.backoff", backoff);
        self.put("jitter", jitter);
        self.put("history", history);
        // Whose ticks they are; its lock, if it needs one, is shown apart.
        if *cluster {
            self.put("ticks", "cluster");
        }
    }

    fn log(&mut self, log: &LogSpec) {
        let LogSpec {
            sink,
            rotate_size,
            max_size,
            drop,
            buffer,
        } = log;
        self.word("log.sink", &SINKS, sink);
        for (key, bytes) in [
            ("rotate_size", rotate_size),
            ("max_size", max_size),
            ("buffer", buffer),
        ] {
            self.put(&format!("log.{key}"), units::show_size(*bytes));
        }
        self.word("log.on_full", &ON_FULL, drop);
    }
}

/// Does the name of a variable say that its value is nobody's business?
pub fn is_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    ["SECRET", "TOKEN", "PASSW", "KEY", "CREDENTIAL"]
        .iter()
        .any(|word| upper.contains(word))
}

/// Stands for a secret: two that differ look different.
pub fn mark(value: &str) -> String {
    format!("(secret {})", Revision::of(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_name_and_differ_when_they_change() {
        for name in ["API_TOKEN", "db_password", "STRIPE_KEY", "Client_Secret"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("RUST_LOG"));
        assert_ne!(mark("a"), mark("b"));
        assert!(!mark("hunter2").contains("hunter2"));
    }
}
