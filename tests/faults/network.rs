//! What may befall the network: it is far, it is cut, it carries one way alone.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use leasehold::{sys::clock, time::Span};

use crate::{
    proxy::Proxy,
    rig::{is_root, pause, skip, until_true},
    world::{Holder, How, Times, World, all_rows, milliseconds},
};

#[test]
fn at_fifty_milliseconds_a_hand_over_takes_one_round_trip() {
    far(Span::millis(50));
}

#[test]
fn at_a_hundred_milliseconds_a_hand_over_takes_one_round_trip() {
    if all_rows() {
        far(Span::millis(100));
    }
}

/// Where a renewal takes longer than an attempt may, nobody could hold anything.
#[test]
fn at_four_hundred_milliseconds_leases_are_renewed() {
    if all_rows() {
        far(Span::millis(400));
    }
}

fn far(rtt: Span) {
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let one_way = Span::nanos(rtt.as_nanos() / 2);
    let proxies = Proxy::to_all(&world.etcd, one_way);
    let how = How {
        endpoints: Some(proxies.iter().map(Proxy::endpoint).collect()),
        ..How::default()
    };
    let started = clock::now();
    let mut holder = world.three(&how);
    let acquired = started.until(world.run(&holder).first);
    let mut gaps = Vec::new();
    for _ in 0..5 {
        // A stop and a start ask for no new session.
        world.nodes[holder.node].ok(&["stop", "billing"]);
        let next = world.after(&holder, Span::secs(5));
        gaps.push(world.run(&holder).last.until(world.run(&next).first));
        world.nodes[holder.node].ok(&["start", "billing"]);
        world.stands_by(holder.node);
        holder = next;
    }
    gaps.sort();
    let trips = |span: Span| {
        let tenths = span.as_nanos() * 10 / rtt.as_nanos();
        format!("{}.{} RTT", tenths / 10, tenths % 10)
    };
    world.verdict(
        &format!("RTT of {} to every member: five hand-overs", milliseconds(rtt)),
        &format!(
            "hand-over {} in the median ({}); from the start of a daemon to its worker {} ({}), session and all",
            milliseconds(gaps[2]),
            trips(gaps[2]),
            milliseconds(acquired),
            trips(acquired)
        ),
    );
}

/// It takes what it is told, and says nothing more.
#[test]
fn a_member_that_falls_silent_is_left_for_another() {
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let proxies = Proxy::to_all(&world.etcd, Span::ZERO);
    let holder = world.three(&How {
        endpoints: Some(proxies.iter().map(Proxy::endpoint).collect()),
        ..How::default()
    });
    let silent = clock::now();
    proxies[0].hold();
    world.is_renewed_since(&holder, silent);
    let after = milliseconds(silent.until(clock::now()));
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.nodes[holder.node].drain(5_000);
    world.after(&holder, Span::secs(2));
    world.verdict(
        "the member that everybody asks falls silent, default times, then SIGTERM of the holder",
        &format!(
            "same process, no drain; a renewal was verified again after {after}; handed over at once"
        ),
    );
}

/// A network namespace with a wire to ours, and members behind it.
struct Island {
    name: String,
    /// Our end of the wire.
    outer: String,
    proxies: Vec<Proxy>,
}

impl Island {
    /// None, loudly, where there can be none.
    fn new(world: &World, number: u8) -> Option<Self> {
        let there = |tool: &str| Command::new(tool).arg("-V").output().is_ok();
        if !is_root() || !there("ip") || !there("nft") {
            skip("no network namespaces (needs root, and Debian's iproute2 and nftables)");
            return None;
        }
        sweep();
        let pid = std::process::id();
        let name = format!("lhf-{pid}-{number}");
        let (outer, inner) = (format!("lh{pid}-{number}"), format!("li{pid}-{number}"));
        let net = [10, 200 + (pid >> 8) as u8 % 50, pid as u8, number * 4];
        let ours = Ipv4Addr::new(net[0], net[1], net[2], net[3] + 1);
        let theirs = Ipv4Addr::new(net[0], net[1], net[2], net[3] + 2);
        if !run(&["ip", "netns", "add", &name]) {
            skip("no network namespace can be made here");
            return None;
        }
        // From here on it is taken away again.
        let mut island = Self {
            name: name.clone(),
            outer: outer.clone(),
            proxies: Vec::new(),
        };
        let ours_there = format!("{ours}/30");
        let theirs_there = format!("{theirs}/30");
        for words in [
            &[
                "ip", "link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &name,
            ][..],
            &["ip", "addr", "add", &ours_there, "dev", &outer],
            &["ip", "link", "set", &outer, "up"],
            &[
                "ip",
                "-n",
                &name,
                "addr",
                "add",
                &theirs_there,
                "dev",
                &inner,
            ],
            &["ip", "-n", &name, "link", "set", &inner, "up"],
            &["ip", "-n", &name, "link", "set", "lo", "up"],
        ] {
            assert!(run(words), "{words:?}");
        }
        island.proxies = Proxy::from_to_all(IpAddr::V4(ours), &world.etcd, Span::ZERO);
        Some(island)
    }

    fn how(&self) -> How {
        let path = format!("--net=/run/netns/{}", self.name);
        How {
            endpoints: Some(self.proxies.iter().map(Proxy::endpoint).collect()),
            // Not `ip netns exec`, which would hide our cgroups.
            wrapper: vec!["nsenter".to_owned(), path],
            ..How::default()
        }
    }

    /// Packets are dropped: those that come in, those that go out.
    fn drop_packets(&self, hooks: &[&str]) {
        let mut rules = "table inet lh {\n".to_owned();
        for hook in hooks {
            rules +=
                &format!("chain {hook} {{ type filter hook {hook} priority 0; policy drop; }}\n");
        }
        self.nft(&(rules + "}\n"));
    }

    fn heal(&self) {
        self.nft("delete table inet lh\n");
    }

    fn nft(&self, rules: &str) {
        let path = format!("--net=/run/netns/{}", self.name);
        assert!(run(&["nsenter", &path, "nft", rules]), "{rules}");
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // The namespace ends with whoever is in it, and some time later; the wire ends now.
        run(&["ip", "link", "del", &self.outer]);
        run(&["ip", "netns", "del", &self.name]);
    }
}

fn run(words: &[&str]) -> bool {
    let output = Command::new(words[0]).args(&words[1..]).output();
    output.is_ok_and(|output| {
        if !output.status.success() {
            eprintln!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        output.status.success()
    })
}

/// What tests left that were killed.
fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("lhf-")
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            run(&["ip", "netns", "del", &name]);
        }
    }
}

/// The next one begins at once: it must not find the wire of the last.
#[test]
fn an_island_is_gone_when_it_is_left() {
    let Some(world) = World::new(Times::QUICK) else {
        return;
    };
    for _ in 0..3 {
        let Some(island) = Island::new(&world, 1) else {
            return;
        };
        let path = format!("--net=/run/netns/{}", island.name);
        let mut someone = Command::new("nsenter")
            .args([&path, "sleep", "60"])
            .spawn()
            .unwrap();
        drop(island);
        someone.kill().unwrap();
        someone.wait().unwrap();
    }
}

/// The holder, or somebody who waits, on an island; the others at home.
fn one_on_an_island(holds: bool) -> Option<(World, Island, Holder)> {
    let mut world = World::new(Times::QUICK)?;
    let island = Island::new(&world, 1)?;
    let how = How {
        worker: "-gi",
        ..island.how()
    };
    let home = How {
        worker: "-gi",
        ..How::default()
    };
    let holder = world.holding(if holds { &how } else { &home });
    for how in [&home, if holds { &home } else { &how }] {
        let node = world.node(how);
        world.stands_by(node);
    }
    Some((world, island, holder))
}

#[test]
fn a_holder_that_is_cut_off_is_dead_before_another_begins() {
    cut_off(&["input", "output"], "holder cut off");
}

#[test]
fn a_holder_that_hears_no_answers_is_dead_before_another_begins() {
    cut_off(&["input"], "what is said to the holder is lost");
}

#[test]
fn a_holder_whose_words_are_lost_is_dead_before_another_begins() {
    if all_rows() {
        cut_off(&["output"], "what the holder says is lost");
    }
}

fn cut_off(hooks: &[&str], fault: &str) {
    let Some((world, island, holder)) = one_on_an_island(true) else {
        return;
    };
    let cut = clock::now();
    island.drop_packets(hooks);
    let next = world.after(&holder, world.times.failover().plus(world.times.ttl));
    assert_ne!(next.node, holder.node);
    world.ended_as_its_lease_did(&holder, cut, true);
    let (last, first) = (world.run(&holder).last, world.run(&next).first);
    island.heal();
    world.stands_by_within(holder.node, 40_000);
    world.verdict(
        &format!("{fault} (nft), worker ignores SIGTERM"),
        &format!(
            "dead {} after the cut, another began {} after it; stands by when it is healed",
            milliseconds(cut.until(last)),
            milliseconds(cut.until(first))
        ),
    );
}

#[test]
fn somebody_who_waits_and_is_cut_off_disturbs_nobody() {
    if !all_rows() {
        return;
    }
    let Some((mut world, island, holder)) = one_on_an_island(false) else {
        return;
    };
    let cut = clock::now();
    island.drop_packets(&["input", "output"]);
    until_true("its lease is over", 20_000, || {
        clock::now() >= cut.after(world.times.failover())
    });
    assert_eq!(world.queue().len(), 2);
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    island.heal();
    until_true("it is in the queue again", 40_000, || {
        pause(100);
        world.queue().len() == 3
    });
    world.nodes[holder.node].drain(10_000);
    world.after(&holder, Span::secs(3));
    world.verdict(
        "a node that waits is cut off (nft) and healed, then SIGTERM of the holder",
        "the holder noticed nothing; the lost one waits again; handed over at once",
    );
}
