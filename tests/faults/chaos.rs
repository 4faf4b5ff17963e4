//! Faults at random, one into another, all of them such as `takeover_delay = "strict"` covers; its seed is printed.

use leasehold::{
    sys::clock,
    time::{Moment, Span},
};
use rustix::process::Signal;

use crate::{
    etcdctl,
    proxy::Proxy,
    rig::{lives, pause, send},
    world::{How, Times, WORKER, World, all_rows},
};

/// xorshift64.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let asked = std::env::var("LEASEHOLD_FAULTS_SEED").ok();
        let seed = asked.and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| leasehold::sys::host::seed() | 1);
        eprintln!("LEASEHOLD_FAULTS_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What is out of order now, and until when.
#[derive(Default)]
struct Broken {
    frozen_member: Option<(usize, Moment)>,
    dead_member: Option<(usize, Moment)>,
    cut: Option<(usize, Moment)>,
}

fn rounds() -> u64 {
    let asked = std::env::var("LEASEHOLD_TEST_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[test]
fn whatever_happens_there_are_never_two() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let mut dice = Dice::new();
    let ways: Vec<Vec<Proxy>> = (0..3)
        .map(|_| Proxy::to_all(&world.etcd, Span::millis(1)))
        .collect();
    for way in &ways {
        let mut endpoints: Vec<String> = way.iter().map(Proxy::endpoint).collect();
        endpoints.rotate_left(dice.below(3) as usize);
        world.node(&How {
            worker: "-i",
            takeover: "strict",
            endpoints: Some(endpoints),
            ..How::default()
        });
    }
    world.somebody(15_000);
    let mut broken = Broken::default();
    for round in 0..rounds() {
        let node = dice.below(3) as usize;
        let member = dice.below(3) as usize;
        let lasts = clock::now().after(Span::millis(dice.below(8_000)));
        let whole = broken.frozen_member.is_none() && broken.dead_member.is_none();
        let die = dice.below(12);
        eprintln!(
            "{} round {round}: {die} at node {node}, member {member}",
            jiff::Zoned::now().strftime("%H:%M:%S.%3f")
        );
        match die {
            0 => {
                if let Some(run) = world.oracle.runs().last() {
                    send(run.leader, Signal::KILL);
                }
            }
            1 => send(world.nodes[node].status().supervisor(), Signal::KILL),
            2 => send(world.nodes[node].status().supervisor(), Signal::STOP),
            3 => {
                world.nodes[node].kill_keeper();
                pause(dice.below(1_000));
                world.nodes[node].start();
            }
            4 => {
                let supervisor = world.nodes[node].status().supervisor();
                send(world.nodes[node].keeper(), Signal::STOP);
                send(supervisor, Signal::KILL);
                world.nodes[node].kill_keeper();
                pause(dice.below(3_000));
                world.nodes[node].start();
            }
            5 => {
                world.nodes[node].drain(15_000);
                pause(dice.below(500));
                world.nodes[node].start();
            }
            6 if whole => {
                world.etcd.freeze(member);
                broken.frozen_member = Some((member, lasts));
            }
            7 if whole => {
                world.etcd.kill(member);
                broken.dead_member = Some((member, lasts));
            }
            8 if broken.cut.is_none() => {
                ways[node].iter().for_each(Proxy::hold);
                broken.cut = Some((node, lasts));
            }
            9 => {
                if let Some(place) = etcdctl::queue(&world.etcd).unwrap_or_default().first() {
                    let _ = world
                        .etcd
                        .ctl(&["lease", "revoke", etcdctl::lease_of(place)]);
                }
            }
            10 => {
                let places = etcdctl::queue(&world.etcd).unwrap_or_default();
                if !places.is_empty() {
                    let place = &places[dice.below(places.len() as u64) as usize];
                    let _ = world.etcd.ctl(&["del", place]);
                }
            }
            _ => {
                let _ = world.nodes[node].cli(&["stop", WORKER]);
                pause(dice.below(500));
                let _ = world.nodes[node].cli(&["start", WORKER]);
            }
        }
        pause(dice.below(2_500));
        mend(&mut world, &mut broken, &ways, clock::now());
        let faults = world.oracle.faults();
        assert!(faults.is_empty(), "{faults:?}");
    }
    mend(&mut world, &mut broken, &ways, Moment(u64::MAX));
    let holder = world.somebody(60_000);
    for node in 0..3 {
        if node != holder.node && lives(holder.leader) {
            world.stands_by_within(node, 40_000);
        }
    }
    world.verdict(
        "forty of all that at random, one into another, `takeover_delay = \"strict\"`",
        "never two; afterwards one runs and two stand by",
    );
}

/// What has been broken long enough is mended.
fn mend(world: &mut World, broken: &mut Broken, ways: &[Vec<Proxy>], now: Moment) {
    let over = |what: &mut Option<(usize, Moment)>| what.take_if(|(_, until)| *until <= now);
    if let Some((member, _)) = over(&mut broken.frozen_member) {
        world.etcd.thaw(member);
    }
    if let Some((member, _)) = over(&mut broken.dead_member) {
        world.etcd.start(member);
    }
    if let Some((node, _)) = over(&mut broken.cut) {
        ways[node].iter().for_each(Proxy::release);
    }
}
