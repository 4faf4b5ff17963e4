//! What somebody changes in a node's file while its locks are contended.

use leasehold::{
    config::{
        Config,
        spec::{AfterState, FleetSpec, SingletonSpec, Takeover},
    },
    id::Revision,
    time::Span,
};

use crate::{
    node::{fleet, process, seal},
    rng::Rng,
};

/// Whoever is told so ends before it is ready.
pub(crate) const BROKEN: &str = "broken";

/// Is never ready, and waited for.
const EARLY: &str = "early";

/// Another file than this one, for one node: nothing of it allows two where this one allows one.
pub(crate) fn edited(base: &Config, rng: &mut Rng) -> Config {
    let mut config = base.clone();
    let waits = rng.chance(20);
    if waits {
        let mut early = process("early");
        early.process.argv.push(BROKEN.to_owned());
        config.fleets.insert(fleet(EARLY), seal(early));
    }
    config.fleets.retain(|_, spec| {
        let Some(lock) = spec.singleton.as_mut().filter(|_| spec.cron.is_none()) else {
            return true;
        };
        // Nothing prepares beside whoever leads (E278).
        let may_be_warm = spec.process.pre_start.is_none();
        match rng.below(8) {
            0 => return false,
            1 if may_be_warm && rng.chance(50) => {
                spec.process.argv.push(BROKEN.to_owned());
                // Who waits without a worker is replaced at once, and nobody has failed.
                lock.warm = true;
            }
            1 => spec.process.argv.push(format!("v{}", rng.below(1_000))),
            2 => spec.stop.timeout = Span::secs(1 + rng.below(6)),
            3 => times(lock, rng),
            4 => lock.takeover = longer(lock.takeover, rng),
            5 if may_be_warm => lock.warm = !lock.warm,
            6 => lock.slots = 1,
            _ => {}
        }
        spec.rollout.rollback = rng.chance(50);
        if waits && rng.chance(50) {
            spec.after.insert(fleet(EARLY), AfterState::Ready);
        }
        *spec = sealed(spec.clone());
        true
    });
    if let Some(etcd) = config.etcd.as_mut().filter(|_| rng.chance(15)) {
        etcd.lease_ttl = Span::secs(*rng.pick(&[7, 14]));
        for spec in config.fleets.values_mut() {
            let lease = spec.singleton.as_mut().and_then(|lock| lock.lease.as_mut());
            lease
                .into_iter()
                .for_each(|lease| lease.ttl = etcd.lease_ttl);
            *spec = sealed(spec.clone());
        }
    }
    config.revision = Revision::of(format!("{:?}", config.fleets).as_bytes());
    config
}

/// What is to be done when a backup was restored.
pub(crate) fn of_a_higher_epoch(base: &Config) -> Config {
    let mut config = base.clone();
    let etcd = config.etcd.as_mut().expect("a cluster");
    etcd.epoch += 1;
    for spec in config.fleets.values_mut() {
        let lease = spec.singleton.as_mut().and_then(|lock| lock.lease.as_mut());
        lease.into_iter().for_each(|lease| lease.epoch = etcd.epoch);
        *spec = sealed(spec.clone());
    }
    config.revision = Revision::of(format!("{:?}", config.fleets).as_bytes());
    config
}

/// Told and killed earlier before the lease is over.
fn times(lock: &mut SingletonSpec, rng: &mut Rng) {
    if let Some(lease) = &mut lock.lease {
        lease.grace = Span::secs(2 + rng.below(2));
        lease.kill_margin = Span::secs(1 + rng.below(2));
    }
}

/// Whoever comes next waits no less.
fn longer(takeover: Takeover, rng: &mut Rng) -> Takeover {
    match takeover {
        Takeover::After(span) if rng.chance(50) => Takeover::After(span.plus(Span::secs(1))),
        _ => Takeover::Strict,
    }
}

/// As the configuration's reader has it: who runs under another lock is another one.
fn sealed(mut spec: FleetSpec) -> FleetSpec {
    let what = format!("{:?} {:?}", spec.process, spec.singleton);
    spec.revision = Revision::of(what.as_bytes());
    spec
}
