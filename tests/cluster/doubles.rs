//! Double faults, by name: each alone is survived by something, and the other one takes that away.

use leasehold::{config::spec::Takeover, time::Span};

use crate::{
    AT_ONCE, LOCKS, OLD, OLD_AND_EARLY, QUIET,
    node::Contended,
    rng::Rng,
    sweep_of,
    world::{Fault, Faults},
};

/// So many stories of each in CI, with five of them in each story.
const SEEDS: u64 = 52;

/// Who is meant, when it comes.
pub(crate) struct Roles<'a> {
    pub(crate) rng: &'a mut Rng,
    /// The node that has a lock.
    pub(crate) holder: usize,
    /// Another one.
    pub(crate) next: usize,
    /// The member of etcd that leads.
    pub(crate) leader: usize,
}

impl Roles<'_> {
    /// A wait of so many milliseconds.
    fn wait(&mut self, from: u64, to: u64) -> Span {
        self.rng.span(from, to)
    }

    /// The members that do not lead.
    fn followers(&self) -> [usize; 2] {
        [(self.leader + 1) % 3, (self.leader + 2) % 3]
    }
}

/// What happens, and how long after the first of it.
pub(crate) type Double = fn(&mut Roles<'_>) -> Vec<(Span, Fault)>;

fn play(name: &str, locks: &[Contended], double: fn(u64) -> Faults) {
    let totals = sweep_of(name, locks, SEEDS, double);
    // One story may have fewer.
    assert!(
        totals.stories == 1 || totals.doubles >= 3 * totals.stories,
        "{totals:?}"
    );
}

macro_rules! doubles {
    ($($locks:ident in $flavour:ident, leased for $ttl:ident: $(#[doc = $doc:literal] $name:ident = $double:expr;)+)+) => { $($(
        #[doc = $doc]
        #[test]
        fn $name() {
            play(concat!("doubles::", stringify!($name)), &$locks, |seed| Faults {
                double: Some($double),
                slewed: seed % 4 != 3,
                stubborn: seed % 2 == 0,
                hooks: seed % 3 == 1,
                far: seed % 5 == 0,
                flavour: $flavour,
                ttl: $ttl,
                ..QUIET
            });
        }
    )+)+ };
}

/// Whoever comes next waits until the last one must be dead: nothing else is promised when nobody there can be told.
const STRICT: [Contended; 1] = [Contended {
    takeover: Takeover::Strict,
    ..LOCKS[2]
}];

/// With a long lease, so that clocks which run apart do so for long.
pub(crate) const LONG: Span = Span::secs(30);

pub(crate) fn unwatched(of: &mut Roles<'_>) -> Vec<(Span, Fault)> {
    let (cut, hangs) = (of.wait(32_000, 40_000), of.wait(32_000, 40_000));
    let after = of.wait(0, 3_000);
    vec![
        (Span::ZERO, Fault::CutNode(of.holder, cut)),
        (after, Fault::KeeperHangsUnwatched(of.holder, hangs)),
    ]
}

const SHORT: Span = Span::secs(10);

doubles! {
    LOCKS in OLD, leased for SHORT:

    /// It wakes up before its deadline and asks for more time, and no answer reaches it.
    a_supervisor_that_hangs_is_cut_off_when_it_wakes = |of| {
        let hangs = of.wait(1_000, 5_500);
        let after = hangs.plus(of.wait(0, 500));
        let cut = of.wait(5_000, 15_000);
        vec![
            (Span::ZERO, Fault::SupervisorHangs(of.holder, hangs)),
            (after, Fault::CutNode(of.holder, cut)),
        ]
    };

    /// Nobody is there who would hear that nobody answers.
    a_node_is_cut_off_and_its_supervisor_hangs = |of| {
        let (cut, hangs) = (of.wait(5_000, 15_000), of.wait(2_000, 12_000));
        let after = of.wait(0, 3_000);
        vec![
            (Span::ZERO, Fault::CutNode(of.holder, cut)),
            (after, Fault::SupervisorHangs(of.holder, hangs)),
        ]
    };

    /// The supervisor alone is left to kill at the deadline.
    a_node_is_cut_off_and_its_keeper_hangs = |of| {
        let (cut, hangs) = (of.wait(8_000, 15_000), of.wait(100, 10_000));
        let after = of.wait(0, 8_000);
        vec![
            (Span::ZERO, Fault::CutNode(of.holder, cut)),
            (after, Fault::KeeperHangs(of.holder, hangs)),
        ]
    };

    /// Its successor knows no lease that was renewed, and cannot ask.
    a_node_is_cut_off_and_its_supervisor_dies = |of| {
        let cut = of.wait(2_000, 15_000);
        let after = of.wait(0, 5_000);
        vec![
            (Span::ZERO, Fault::CutNode(of.holder, cut)),
            (after, Fault::SupervisorDies(of.holder)),
        ]
    };

    /// The same where only its words, or only the answers, are lost.
    words_are_lost_one_way_and_a_supervisor_dies = |of| {
        let cut = of.wait(2_000, 15_000);
        let there = of.rng.chance(50);
        let after = of.wait(0, 5_000);
        vec![
            (Span::ZERO, Fault::CutOneWay(of.holder, cut, there)),
            (after, Fault::SupervisorDies(of.holder)),
        ]
    };

    /// The new one asks first the member that does not answer.
    the_leader_hangs_and_a_supervisor_dies = |of| {
        let hangs = of.wait(3_000, 15_000);
        let after = of.wait(0, 3_000);
        vec![
            (Span::ZERO, Fault::MemberHangs(None, hangs)),
            (after, Fault::SupervisorDies(of.holder)),
        ]
    };

    /// Every lease begins anew with the next leader, that of the dead node, too.
    the_machine_and_the_leader_die_at_once = |of| {
        let hangs = of.wait(5_000, 15_000);
        let after = of.wait(0, 2_000);
        vec![
            (Span::ZERO, Fault::MachineDies(of.holder)),
            (after, Fault::MemberHangs(None, hangs)),
        ]
    };

    /// Nobody may be told that it is over, and nobody is there who knew.
    the_quorum_is_lost_and_the_keeper_dies = |of| {
        let lost = of.wait(5_000, 20_000);
        let after = of.wait(0, 5_000);
        vec![
            (Span::ZERO, Fault::QuorumLost(lost)),
            (after, Fault::KeeperDies(of.holder)),
        ]
    };

    /// Whoever gives a lock away dies at any moment of it.
    a_supervisor_dies_while_it_hands_over = |of| {
        let after = of.wait(0, 800);
        vec![
            (Span::ZERO, Fault::Moved(of.holder, of.next)),
            (after, Fault::SupervisorDies(of.holder)),
        ]
    };

    /// So does whoever is to have it.
    the_next_supervisor_dies_while_it_is_handed_to = |of| {
        let after = of.wait(0, 1_500);
        vec![
            (Span::ZERO, Fault::Moved(of.holder, of.next)),
            (after, Fault::SupervisorDies(of.next)),
        ]
    };

    /// It has the lock, and does not hear of it.
    the_next_node_is_cut_off_while_it_is_handed_to = |of| {
        let after = of.wait(0, 1_000);
        let cut = of.wait(3_000, 15_000);
        vec![
            (Span::ZERO, Fault::Moved(of.holder, of.next)),
            (after, Fault::CutNode(of.next, cut)),
        ]
    };

    /// Holder and leader are on one side, alone.
    a_holder_is_cut_off_with_the_leader = |of| {
        let cut = of.wait(5_000, 20_000);
        let mut faults = vec![(Span::ZERO, Fault::MemberCut(Some(of.leader), cut))];
        let others = of.followers();
        faults.extend(others.map(|member| (Span::ZERO, Fault::CutLink(of.holder, member, cut))));
        faults
    };

    /// The leader's disk hangs, and it is the only one whom the holder reaches.
    a_disk_hangs_and_the_other_members_are_out_of_reach = |of| {
        let hangs = of.wait(5_000, 15_000);
        let mut faults = vec![(Span::ZERO, Fault::DiskHangs(hangs))];
        let others = of.followers();
        faults.extend(others.map(|member| (Span::ZERO, Fault::CutLink(of.holder, member, hangs))));
        faults
    };

    /// Nothing can be written, so nothing can be given away or proved.
    there_is_no_space_and_the_machine_dies = |of| {
        let after = of.wait(0, 3_000);
        let later = of.wait(8_000, 15_000);
        vec![
            (Span::ZERO, Fault::NoSpace),
            (after, Fault::MachineDies(of.holder)),
            (later, Fault::NoSpace),
        ]
    };

    /// What was missed is read again from a member that is behind.
    a_stream_breaks_and_a_member_lags = |of| {
        let member = of.followers()[0];
        let lag = of.wait(500, 3_000);
        vec![
            (Span::ZERO, Fault::Lags(member, lag)),
            (lag, Fault::StreamBreaks),
            (lag, Fault::Moved(of.next, of.next)),
        ]
    };

    AT_ONCE in OLD, leased for SHORT:

    /// It is told to run a hook while it sleeps, and hears of it when the worker is dead and its lock another's.
    a_node_is_cut_off_and_stops_its_worker_by_a_keeper_that_hangs = |of| {
        let (cut, hangs) = (of.wait(12_000, 20_000), of.wait(10_000, 18_000));
        let after = of.wait(0, 3_000);
        let stopped = after.plus(of.wait(0, 4_000));
        vec![
            (Span::ZERO, Fault::CutNode(of.holder, cut)),
            (after, Fault::KeeperHangsUnwatched(of.holder, hangs)),
            (stopped, Fault::Restarted(of.holder)),
        ]
    };

    AT_ONCE in OLD, leased for LONG:

    /// Nobody ends the supervisor's deadline but itself, by whichever clock is there first.
    a_node_is_cut_off_and_its_keeper_hangs_unwatched = unwatched;

    STRICT in OLD_AND_EARLY, leased for SHORT:

    /// etcd gives its lock to the next one while it knows nothing.
    a_lease_is_revoked_and_its_supervisor_hangs = |of| {
        let hangs = of.wait(2_000, 12_000);
        let after = of.wait(0, 1_000);
        vec![
            (Span::ZERO, Fault::SupervisorHangs(of.holder, hangs)),
            (after, Fault::LeaseRevoked),
        ]
    };

    /// Its place is gone, and it cannot hear that.
    a_place_is_deleted_and_its_node_is_cut_off = |of| {
        let cut = of.wait(2_000, 15_000);
        let after = of.wait(0, 200);
        vec![
            (Span::ZERO, Fault::CutNode(of.holder, cut)),
            (after, Fault::PlaceDeleted),
        ]
    };
}
