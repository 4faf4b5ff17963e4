//! The real kernel behind [`Kernel`]: seats with a pidfd and a cgroup leaf, or a family found by scanning.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use crate::{
    id::Generation,
    keeper::{
        core::Kernel,
        errand::Errand,
        nest::{self, Egg, Nest},
    },
    sys::{
        cgroup::{Leaf, Tree, Watch, leaf_name},
        child::{self, Child, Zombie},
        clock, family,
        page::{Contents, Page},
        pipe,
        poll::{EventFlags, Poll},
        seats::{Claim, Hold, Leader, Place, Seats},
        spawn::{Birthplace, FIRST_PASS, Order, Program, SpawnFailure, Spawner},
    },
    time::{Clocks, Moment, Span},
    wire::{self, Alive, Containment, ExitStatus, PageSpec, RowKey, SpawnSpec, SpawnStep, Target},
};

/// Tokens below this are the loop's own.
pub(super) const FIRST_TOKEN: u64 = 16;
/// Orphans are looked for at most this often: the search is O(children).
const ORPHANS_EVERY: Span = Span::millis(100);
/// A family whose members were killed is looked at again after this, if no death of a child wakes us first.
const FAMILY_AGAIN: Span = Span::millis(100);

/// Orphans that keep dying hold up a family's end for no longer than this.
const CHURN_PATIENCE: Span = Span::secs(3);
/// So many passes over /proc in one turn.
const PASSES_MAX: usize = 32;

/// What happened to a seat.
pub(super) enum SeatNews {
    /// The leader ended.
    LeaderEnded(RowKey, ExitStatus),
    /// Nothing is left of it.
    Empty(RowKey),
}

/// The lease of a generation; its page is zero once this is dropped.
enum Lease {
    /// Without a deadline; none: it is under one since.
    Open(Option<Page>),
    /// Under a deadline.
    Timed(Hold),
    /// Under that of its worker, before whose end it runs.
    Farewell(Claim),
}

impl Lease {
    /// Where it is named for the deadline thread.
    fn place(&self) -> Option<Place> {
        match self {
            Self::Open(_) => None,
            Self::Timed(hold) => Some(hold.place()),
            Self::Farewell(claim) => Some(claim.place()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self {
            Self::Open(page) => {
                if let Some(page) = page {
                    page.words().write(&Contents::OVER);
                }
            }
            // The other thread's hands are taken off first.
            Self::Timed(_) | Self::Farewell(_) => {}
        }
    }
}

/// The PID namespace of a generation, if it was given one.
enum Enclosure {
    /// It is among us.
    None,
    /// This is the first process of it, which is watched under the token.
    Open(Child, u64),
    /// Nobody was left in it, and none can come.
    Gone,
}

/// What belongs to one living (or clearing) generation.
struct Seat {
    generation: Generation,
    child: Child,
    start_ticks: u64,
    token: u64,
    enclosure: Enclosure,
    leaf: Option<Leaf>,
    watch: Option<Watch>,
    ended: bool,
    /// Its leader's number may be somebody else's by now.
    reaped: bool,
    /// Its leaf was empty when its leader had ended, and is gone.
    alone: bool,
    kill: bool,
    lease: Option<Lease>,
}

impl Seat {
    /// Nothing is asked of the leader's number any more once it has ended: the rest is known by its leaf, or by its namespace.
    fn needs_no_zombie(&self) -> bool {
        self.leaf.is_some() || !matches!(self.enclosure, Enclosure::None)
    }

    /// It is known by who it is related to, and by nothing else.
    fn is_family(&self) -> bool {
        !self.needs_no_zombie()
    }

    fn place(&self) -> Option<Place> {
        self.lease.as_ref().and_then(Lease::place)
    }
}

/// A generation that was just begun.
struct Begun {
    child: Child,
    leaf: Option<Leaf>,
    lease: Option<Lease>,
    init: Option<Child>,
}

/// Everything of the kernel's that the keeper has its hands on.
pub(super) struct Linux {
    pub(super) poll: Poll,
    pub(super) held: BTreeMap<String, OwnedFd>,
    spawner: Spawner,
    tree: Option<Tree>,
    /// Made for the first worker that needs it.
    nest: Option<Nest>,
    seats: BTreeMap<RowKey, Seat>,
    tokens: BTreeMap<u64, RowKey>,
    next_token: u64,
    cookie: String,
    nofile: (u64, u64),
    timed: &'static Seats,
    reset_oom_score: bool,
    /// The supervisor's pid: a child of ours that is nobody's orphan.
    pub(super) supervisor: Option<i32>,
    orphans_at: Option<Moment>,
    families_at: Option<Moment>,
    families_not_before: Moment,
    churns_since: Option<Moment>,
    stubborn: Vec<Leaf>,
    /// Those of whom the leader, or the first process of the namespace, ended and waitid does not show it yet.
    looks: BTreeSet<RowKey>,
    /// The command that we were started for, if it is one.
    pub(super) errand: Option<Errand>,
}

impl Linux {
    pub(super) fn new(
        spawner: Spawner,
        tree: Option<Tree>,
        cookie: String,
        nofile: (u64, u64),
        timed: &'static Seats,
    ) -> io::Result<Self> {
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        Ok(Self {
            poll: Poll::new()?,
            held: BTreeMap::new(),
            spawner,
            tree,
            nest: None,
            seats: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_TOKEN,
            cookie,
            nofile,
            timed,
            reset_oom_score: score.trim().parse().is_ok_and(|n: i32| n < 0),
            supervisor: None,
            orphans_at: None,
            families_at: None,
            families_not_before: Moment(0),
            churns_since: None,
            stubborn: Vec::new(),
            looks: BTreeSet::new(),
            errand: None,
        })
    }

    pub(super) fn containment(&self) -> Containment {
        self.tree.as_ref().map_or(Containment::Group, Tree::kind)
    }

    /// Does all that we started end with us, whatever it does? With the unit, and with the first process of our own PID namespace.
    fn is_everybodys_end(&self) -> bool {
        self.containment() == Containment::Unit || std::process::id() == 1
    }

    pub(super) fn cgroup(&self) -> Option<String> {
        self.tree
            .as_ref()
            .map(|tree| tree.path().display().to_string())
    }

    /// Starts the supervisor from its binary's descriptor; `links`, to us and to the deadline thread, become its descriptors 3 and 4.
    pub(super) fn spawn_supervisor(
        &mut self,
        binary: BorrowedFd<'_>,
        argv: &[CString],
        env: &[CString],
        links: &[BorrowedFd<'_>; 2],
    ) -> Result<Child, SpawnFailure> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        self.spawner.spawn(&Order {
            program: Program::Descriptor(binary),
            birthplace: Birthplace::Here,
            argv,
            env,
            listen_pid: false,
            stdin: None,
            stdout: Some(stdout.as_fd()),
            stderr: Some(stderr.as_fd()),
            pass: links,
            first_pass: FIRST_PASS,
            keep: &[],
            cgroup: None,
            session: false,
            cwd: None,
            user: None,
            umask: None,
            rlimits: &[],
            nice: None,
            affinity: &[],
            no_new_privs: false,
            reset_oom_score: false,
            die_with_parent: false,
            seat: None,
            foreground: false,
            ignored: 0,
        })
    }

    /// May a process be started? Always, but for the one command that we were started for.
    pub(super) fn may_spawn(&self) -> bool {
        self.errand.as_ref().is_none_or(Errand::may_begin)
    }

    /// A signal to every group that a leader of ours leads.
    pub(super) fn signal_all(&self, number: i32) {
        for seat in self.seats.values().filter(|seat| !seat.reaped) {
            let _ = seat.child.signal_group(number);
        }
    }

    /// The signal by which the one command was just stopped, if it was.
    pub(super) fn take_stopped(&self) -> Option<i32> {
        self.errand.as_ref()?;
        let mut living = self.seats.values().filter(|seat| !seat.reaped);
        living.find_map(|seat| seat.child.take_stopped())
    }

    /// When [`Linux::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        [self.orphans_at, self.families_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// A child of ours changed state: perhaps an orphan, perhaps the last of a family.
    pub(super) fn child_changed(&mut self, now: Moment) {
        self.orphans_at.get_or_insert(now.after(ORPHANS_EVERY));
        if self.clearing_families().next().is_some() {
            self.families_at = Some(self.families_not_before.max(now));
        }
    }

    /// Has the end of a child be an event of that row's; its token.
    fn watch(&mut self, child: &Child, key: &RowKey) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        let _ = self.poll.add(child, token, flags);
        self.tokens.insert(token, key.clone());
        token
    }

    /// What an event on `token` means.
    pub(super) fn event(&mut self, token: u64) -> Option<SeatNews> {
        let key = self.tokens.get(&token)?.clone();
        let seat = self.seats.get(&key)?;
        if matches!(seat.enclosure, Enclosure::Open(_, of_init) if of_init == token) {
            return self.init_ended(key);
        }
        if !seat.ended {
            return self.look_at_leader(key);
        }
        (!seat.watch.as_ref()?.populated().unwrap_or(true)).then_some(SeatNews::Empty(key))
    }

    fn look_again(&mut self, key: RowKey) -> Option<SeatNews> {
        if self.seats.get(&key)?.ended {
            self.init_ended(key)
        } else {
            self.look_at_leader(key)
        }
    }

    fn look_at_leader(&mut self, key: RowKey) -> Option<SeatNews> {
        let seat = self.seats.get_mut(&key)?;
        let end = seat.child.peek();
        let Some(status) = end.ok().flatten() else {
            self.look_later(key);
            return None;
        };
        seat.ended = true;
        // With a leaf nothing needs the zombie any more, and unreaped it would hide orphans behind it from waitid, or keep its
        // namespace from its end; of a family it keeps the number of the group.
        if seat.needs_no_zombie() {
            if let Some(place) = seat.place() {
                place.forget_process();
            }
            let _ = seat.child.reap();
            seat.reaped = true;
        }
        // Most leaders were alone: then there is nobody to kill and nothing to wait for.
        seat.alone = seat.leaf.as_ref().is_some_and(Leaf::remove_if_empty);
        let _ = self.poll.remove(&seat.child);
        Some(SeatNews::LeaderEnded(key, status))
    }

    /// A tracer holds its zombie, and the descriptor would say the same at once.
    fn look_later(&mut self, key: RowKey) {
        self.looks.insert(key);
        let at = clock::now().after(ORPHANS_EVERY);
        self.orphans_at.get_or_insert(at);
    }

    /// The first process of a namespace has ended, and so has everybody else in there.
    fn init_ended(&mut self, key: RowKey) -> Option<SeatNews> {
        let seat = self.seats.get_mut(&key)?;
        let Enclosure::Open(init, token) = &seat.enclosure else {
            return None;
        };
        if let Some(place) = seat.place() {
            place.forget_init();
        }
        if !init.reap().is_ok_and(|end| end.is_some()) {
            self.look_later(key);
            return None;
        }
        let _ = self.poll.remove(init);
        self.tokens.remove(token);
        seat.enclosure = Enclosure::Gone;
        if seat.ended { self.clear(&key) } else { None }
    }

    /// After the leader's end was recorded and the rest killed: empty already, or watched until it is.
    pub(super) fn clear(&mut self, key: &RowKey) -> Option<SeatNews> {
        let now = clock::now();
        let seat = self.seats.get_mut(key)?;
        match seat.enclosure {
            Enclosure::None => {}
            // Its first process was killed, and its end is what proves the others'.
            Enclosure::Open(..) => return None,
            Enclosure::Gone if seat.leaf.is_none() => return Some(SeatNews::Empty(key.clone())),
            Enclosure::Gone => {}
        }
        let Some(leaf) = &seat.leaf else {
            self.families_at = Some(self.families_not_before.max(now));
            return None;
        };
        if seat.alone {
            return Some(SeatNews::Empty(key.clone()));
        }
        match leaf.watch() {
            Ok(watch) => {
                let flags = EventFlags::PRI | EventFlags::ERR;
                let _ = self.poll.add(&watch, seat.token, flags);
                // It may have emptied before it was watched.
                let empty = !watch.populated().unwrap_or(true);
                seat.watch = Some(watch);
                empty.then(|| SeatNews::Empty(key.clone()))
            }
            Err(_) => {
                // Out of descriptors, most likely: looked at again with the orphans.
                self.orphans_at.get_or_insert(now.after(ORPHANS_EVERY));
                None
            }
        }
    }

    /// Leaves that could not be watched and have become empty.
    fn unwatched(&mut self, now: Moment) -> Vec<SeatNews> {
        let seats = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.ended && seat.watch.is_none())
            .filter(|(_, seat)| !matches!(seat.enclosure, Enclosure::Open(..)));
        let leaves: Vec<(RowKey, bool)> = seats
            .filter_map(|(key, seat)| {
                Some((key.clone(), seat.leaf.as_ref()?.populated().unwrap_or(true)))
            })
            .collect();
        if leaves.iter().any(|(_, populated)| *populated) {
            self.orphans_at.get_or_insert(now.after(ORPHANS_EVERY));
        }
        leaves
            .into_iter()
            .filter(|(_, populated)| !populated)
            .map(|(key, _)| SeatNews::Empty(key))
            .collect()
    }

    /// Does what is due: orphans, families.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<SeatNews> {
        let mut news = Vec::new();
        if self.orphans_at.is_some_and(|at| at <= now) {
            self.orphans_at = None;
            self.reap_orphans(now);
            self.stubborn.retain(|leaf| leaf.remove().is_err());
            news = self.unwatched(now);
            for key in std::mem::take(&mut self.looks) {
                news.extend(self.look_again(key));
            }
        }
        if self.families_at.is_some_and(|at| at <= now) {
            self.families_at = None;
            news.extend(self.search_families(now));
        }
        news
    }

    fn is_ours(&self, pid: i32) -> bool {
        self.supervisor == Some(pid)
            || self.seats.values().any(|seat| match &seat.enclosure {
                Enclosure::Open(init, _) if init.pid() == pid => true,
                _ => seat.child.pid() == pid && !seat.reaped,
            })
    }

    fn reap_orphans(&mut self, now: Moment) {
        loop {
            match child::reap_orphan(|pid| self.is_ours(pid)) {
                Zombie::Reaped(_) => {}
                Zombie::None => return,
                Zombie::Ours(_) => break,
            }
        }
        // A leader that is still unreaped hides the others from waitid. With a leaf it is reaped at once; without one it stays until
        // its family is empty, and the others are found by name.
        if self.tree.is_some() {
            self.orphans_at = Some(now.after(ORPHANS_EVERY));
            return;
        }
        let me = std::process::id() as i32;
        self.reap_zombies(&family::search(&[], &self.cookie, Some(me)).zombies);
    }

    /// Reaps those of our dead children that are orphans; true if there was one.
    fn reap_zombies(&self, zombies: &[i32]) -> bool {
        let orphans: Vec<i32> = zombies
            .iter()
            .copied()
            .filter(|pid| !self.is_ours(*pid))
            .collect();
        for pid in &orphans {
            child::reap_pid(*pid);
        }
        !orphans.is_empty()
    }

    fn clearing_families(&self) -> impl Iterator<Item = (&RowKey, &Seat)> {
        self.seats
            .iter()
            .filter(|(_, seat)| seat.is_family() && (seat.ended || seat.kill))
    }

    /// Passes over /proc for all families that are ending: kills who is left, tells which are empty.
    ///
    /// A pass that finds nobody proves nothing while orphans of ours still die: whoever forks and exits faster than we look is
    /// seen by its dead parents alone.
    fn search_families(&mut self, now: Moment) -> Vec<SeatNews> {
        let heads: Vec<family::Head> = self
            .clearing_families()
            .map(|(key, seat)| family::Head {
                key: key.clone(),
                generation: seat.generation,
                pid: seat.child.pid(),
                start_ticks: seat.start_ticks,
            })
            .collect();
        if heads.is_empty() {
            return Vec::new();
        }
        let me = std::process::id() as i32;
        let mut found = family::search(&heads, &self.cookie, Some(me));
        let mut churn = self.reap_zombies(&found.zombies) || found.unread;
        for _ in 0..PASSES_MAX {
            if found.members.is_empty() && !churn {
                break;
            }
            for member in &found.members {
                family::kill(member, &heads);
            }
            found = family::search(&heads, &self.cookie, Some(me));
            churn = self.reap_zombies(&found.zombies) || found.unread;
        }
        // The search costs what the machine has processes: leave half of the time to everything else.
        let after = clock::now();
        self.families_not_before = after.after(after.since(now));
        // Other workers' orphans may die all day: after a while they are not waited for any more.
        let churns_since = *self.churns_since.get_or_insert(now);
        if !churn {
            self.churns_since = None;
        }
        let churn = churn && churns_since.after(CHURN_PATIENCE) > after;
        if !found.members.is_empty() || churn {
            self.families_at = Some(self.families_not_before.max(after.after(FAMILY_AGAIN)));
        }
        if churn {
            return Vec::new();
        }
        let is_left = |n: usize| found.members.iter().any(|member| member.head == n);
        let ended = |key: &RowKey| self.seats.get(key).is_some_and(|seat| seat.ended);
        let empty = heads
            .iter()
            .enumerate()
            .filter(|(n, head)| !is_left(*n) && ended(&head.key));
        empty
            .map(|(_, head)| SeatNews::Empty(head.key.clone()))
            .collect()
    }

    /// Removes the cgroup directory; the last thing a keeper does.
    pub(super) fn dismantle(&mut self) {
        self.stubborn.retain(|leaf| leaf.remove().is_err());
        if let Some(tree) = &self.tree {
            let _ = tree.remove();
        }
    }

    fn make_leaf(
        &self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> io::Result<Option<Leaf>> {
        let Some(tree) = &self.tree else {
            return Ok(None);
        };
        let leaf = tree.leaf(&leaf_name(key, generation))?;
        for (file, value) in &spec.cgroup_limits {
            leaf.limit(file, value)?;
        }
        Ok(Some(leaf))
    }

    /// The page that a gated worker gets, or the hook before it, and its place among the deadlines.
    fn make_lease(
        &self,
        key: &RowKey,
        generation: Generation,
        spec: PageSpec,
        leaf: Option<&Leaf>,
        init: Option<&Child>,
    ) -> Result<(Lease, OwnedFd), SpawnFailed> {
        let page = |e: io::Error| SpawnFailed(SpawnStep::Page, errno(&e));
        let contents = contents(&spec, generation);
        // A hook has the place that its worker will have.
        let (RowKey::Slot(worker) | RowKey::Task(worker, _)) = key else {
            return Err(SpawnFailed(SpawnStep::Page, libc::EINVAL));
        };
        if !spec.timed {
            let (page, fd) = Page::new(&contents).map_err(page)?;
            return Ok((Lease::Open(Some(page)), fd));
        }
        let killer = leaf.and_then(Leaf::killer);
        let held = self.timed.hold(wire::seat_key(worker), killer, &contents);
        let (hold, fd) = held
            .map_err(page)?
            .ok_or(SpawnFailed(SpawnStep::Deadline, libc::ETIME))?;
        if let Some(init) = init {
            hold.place().set_init(init.pid());
        }
        Ok((Lease::Timed(hold), fd))
    }

    /// The place of a hook beside the worker before whose end it runs, if his end has a deadline.
    fn make_farewell(
        &self,
        key: &RowKey,
        leaf: Option<&Leaf>,
        init: Option<&Child>,
    ) -> Result<Option<Lease>, SpawnFailed> {
        let RowKey::Task(worker, _) = key else {
            return Ok(None);
        };
        let slot = self.seats.get(&RowKey::Slot(worker.clone()));
        let Some(Lease::Timed(hold)) = slot.and_then(|seat| seat.lease.as_ref()) else {
            return Ok(None);
        };
        let claim = hold.farewell(leaf.and_then(Leaf::killer));
        let claim = claim.ok_or(SpawnFailed(SpawnStep::Deadline, libc::ETIME))?;
        if let Some(init) = init {
            claim.place().set_init(init.pid());
        }
        Ok(Some(Lease::Farewell(claim)))
    }

    /// A namespace for it, if nothing of it may outlive us and our end alone does not see to that.
    fn make_namespace(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Option<Egg>, SpawnFailed> {
        if !spec.dies_with_keeper || self.is_everybodys_end() {
            return Ok(None);
        }
        if self.nest.is_none() {
            let made = Nest::new();
            self.nest = Some(made.map_err(|e| SpawnFailed(SpawnStep::Namespace, errno(&e)))?);
        }
        let marks = c_strings(self.marks(key, generation))
            .map_err(|_| SpawnFailed(SpawnStep::Prepare, libc::EINVAL))?;
        let egg = self
            .nest
            .as_ref()
            .map(|nest| nest.make(&mut self.spawner, &key.to_string(), &marks));
        Ok(egg.transpose()?)
    }

    /// By which a process of that generation is known.
    fn marks(&self, key: &RowKey, generation: Generation) -> impl Iterator<Item = String> + use<> {
        let run = format!("LEASEHOLD_RUN={}", self.cookie);
        family::marks_of(key, generation).into_iter().chain([run])
    }

    /// Its containment, its page and its process, or nothing.
    fn begin(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Begun, SpawnFailed> {
        let egg = self.make_namespace(key, generation, spec)?;
        let leaf = self
            .make_leaf(key, generation, spec)
            .map_err(|e| SpawnFailed(SpawnStep::Cgroup, errno(&e)));
        let begun = leaf.and_then(|leaf| {
            let child = self.begin_in(key, generation, spec, leaf.as_ref(), egg.as_ref());
            if let (Err(_), Some(leaf)) = (&child, &leaf) {
                let _ = leaf.remove();
            }
            let (child, lease) = child?;
            Ok((child, leaf, lease))
        });
        if let (Err(_), Some(egg)) = (&begun, &egg) {
            nest::discard(&egg.init);
        }
        let (child, leaf, lease) = begun?;
        Ok(Begun {
            child,
            leaf,
            lease,
            init: egg.map(|egg| egg.init),
        })
    }

    /// Its page and its process; the page is over where there is none.
    fn begin_in(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
        leaf: Option<&Leaf>,
        egg: Option<&Egg>,
    ) -> Result<(Child, Option<Lease>), SpawnFailed> {
        let init = egg.map(|egg| &egg.init);
        let (lease, page) = match spec.page {
            Some(page) => {
                let (lease, page) = self.make_lease(key, generation, page, leaf, init)?;
                (Some(lease), Some(page))
            }
            None if spec.ends_with_worker => (self.make_farewell(key, leaf, init)?, None),
            None => (None, None),
        };
        let birthplace = egg.map_or(Birthplace::Here, |egg| {
            Birthplace::Namespace(egg.namespace.as_fd())
        });
        let place = lease.as_ref().and_then(Lease::place);
        let page = page.as_ref().map(AsFd::as_fd);
        let child = self.start(key, generation, spec, leaf, (place, page), birthplace)?;
        Ok((child, lease))
    }

    fn start(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
        leaf: Option<&Leaf>,
        (place, page): (Option<Place>, Option<BorrowedFd<'_>>),
        birthplace: Birthplace<'_>,
    ) -> Result<Child, SpawnFailed> {
        let prepare = |_| SpawnFailed(SpawnStep::Prepare, libc::EINVAL);
        let program = CString::new(spec.program.as_str()).map_err(prepare)?;
        let argv = c_strings(spec.argv.iter().cloned()).map_err(prepare)?;
        let marks = self.marks(key, generation);
        let env = c_strings(spec.env.iter().cloned().chain(marks)).map_err(prepare)?;
        let cwd = spec
            .cwd
            .as_deref()
            .map(CString::new)
            .transpose()
            .map_err(prepare)?;
        let writer = |name: &Option<String>| -> Result<Option<OwnedFd>, SpawnFailed> {
            let Some(name) = name else { return Ok(None) };
            let pipe = self
                .held
                .get(name)
                .ok_or(SpawnFailed(SpawnStep::Prepare, libc::EBADF))?;
            pipe::writer(pipe)
                .map(Some)
                .map_err(|e| SpawnFailed(SpawnStep::Descriptors, errno(&e)))
        };
        let stdout = writer(&spec.stdout)?;
        let separate = spec.stderr != spec.stdout;
        let stderr = if separate {
            writer(&spec.stderr)?
        } else {
            None
        };
        let merged = if separate { &stderr } else { &stdout };
        let pass: Option<Vec<BorrowedFd<'_>>> = spec
            .pass
            .iter()
            .map(|name| self.held.get(name).map(AsFd::as_fd))
            .collect();
        let mut pass = pass.ok_or(SpawnFailed(SpawnStep::Prepare, libc::EBADF))?;
        pass.extend(page);
        let cgroup = leaf
            .map(Leaf::open)
            .transpose()
            .map_err(|e| SpawnFailed(SpawnStep::Cgroup, errno(&e)))?;
        let mut rlimits = spec.rlimits.clone();
        if !rlimits
            .iter()
            .any(|(resource, ..)| *resource == libc::RLIMIT_NOFILE)
        {
            rlimits.push((libc::RLIMIT_NOFILE, self.nofile.0, self.nofile.1));
        }
        if spec.program.is_empty() {
            let errand = self.errand.as_ref();
            let errand = errand.ok_or(SpawnFailed(SpawnStep::Prepare, libc::ENOENT))?;
            let cgroup = cgroup.as_ref().map(AsFd::as_fd);
            return errand
                .spawn(
                    &mut self.spawner,
                    env,
                    &pass,
                    cgroup,
                    &rlimits,
                    (place, birthplace),
                )
                .map_err(|failure| SpawnFailed(failure.step, failure.errno));
        }
        let order = Order {
            program: Program::Path(&program),
            birthplace,
            argv: &argv,
            env: &env,
            listen_pid: spec.env.iter().any(|v| v.starts_with("LISTEN_FDS=")),
            stdin: None,
            stdout: stdout.as_ref().map(AsFd::as_fd),
            stderr: merged.as_ref().map(AsFd::as_fd),
            pass: &pass,
            first_pass: FIRST_PASS,
            keep: &[],
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            session: spec.session,
            cwd: cwd.as_deref(),
            user: spec.user.as_ref(),
            umask: spec.umask,
            rlimits: &rlimits,
            nice: spec.nice,
            affinity: &spec.affinity,
            no_new_privs: spec.no_new_privs,
            reset_oom_score: self.reset_oom_score,
            die_with_parent: true,
            seat: place,
            foreground: false,
            ignored: 0,
        };
        Ok(self.spawner.spawn(&order)?)
    }
}

struct SpawnFailed(SpawnStep, i32);

impl From<SpawnFailure> for SpawnFailed {
    fn from(SpawnFailure { step, errno }: SpawnFailure) -> Self {
        Self(step, errno)
    }
}

impl From<SpawnFailed> for ExitStatus {
    fn from(SpawnFailed(step, errno): SpawnFailed) -> Self {
        Self::SpawnFailed { step, errno }
    }
}

impl Kernel for Linux {
    fn spawn(
        &mut self,
        key: &RowKey,
        generation: Generation,
        spec: &SpawnSpec,
    ) -> Result<Alive, ExitStatus> {
        let started = self.begin(key, generation, spec);
        if let (Err(SpawnFailed(step, errno)), Some(errand)) = (&started, &mut self.errand) {
            let (step, errno) = (*step, *errno);
            errand.ended(ExitStatus::SpawnFailed { step, errno });
        }
        let Begun {
            child,
            leaf,
            lease,
            init,
        } = started?;
        if let Some(errand) = &mut self.errand {
            errand.began(child.pid());
        }
        let start_ticks = child.start_ticks();
        let alive = Alive {
            pid: child.pid(),
            start_ticks,
            since: clock::now(),
            containment: init
                .as_ref()
                .map_or(self.containment(), |init| Containment::Namespace {
                    init: init.pid(),
                    start_ticks: init.start_ticks(),
                }),
        };
        let token = self.watch(&child, key);
        let enclosure = init.map_or(Enclosure::None, |init| {
            let token = self.watch(&init, key);
            Enclosure::Open(init, token)
        });
        let seat = Seat {
            generation,
            child,
            start_ticks,
            token,
            enclosure,
            leaf,
            watch: None,
            ended: false,
            reaped: false,
            alone: false,
            kill: false,
            lease,
        };
        let before = self.seats.insert(key.clone(), seat);
        debug_assert!(before.is_none(), "{key} was spawned on top of another");
        Ok(alive)
    }

    fn promote(&mut self, key: &RowKey, spec: &PageSpec) -> bool {
        let (Some(seat), RowKey::Slot(worker)) = (self.seats.get_mut(key), key) else {
            return false;
        };
        let contents = contents(spec, seat.generation);
        let page = match &mut seat.lease {
            Some(Lease::Open(page)) if spec.timed => page.take(),
            Some(Lease::Open(page)) => {
                let said = page.as_ref().map(|page| page.words().write(&contents));
                return said.is_some();
            }
            // Told twice, by a supervisor that died in between and by its successor.
            Some(Lease::Timed(hold)) => return hold.fence() == spec.fence,
            Some(Lease::Farewell(_)) | None => None,
        };
        let Some(page) = page else {
            return false;
        };
        let killer = seat.leaf.as_ref().and_then(Leaf::killer);
        let who = Leader {
            pidfd: seat.child.as_fd().as_raw_fd(),
            group: seat.child.pid(),
            init: match &seat.enclosure {
                Enclosure::Open(init, _) => Some(init.pid()),
                Enclosure::None | Enclosure::Gone => None,
            },
        };
        let key = wire::seat_key(worker);
        let hold = self.timed.promote(key, killer, page, &contents, who);
        seat.lease = hold.map(Lease::Timed);
        seat.lease.is_some()
    }

    fn signal(&mut self, key: &RowKey, number: i32, to: Target) {
        let Some(seat) = self.seats.get(key).filter(|seat| !seat.reaped) else {
            return;
        };
        let _ = match to {
            Target::Leader => seat.child.signal(number),
            Target::Group => seat.child.signal_group(number),
        };
    }

    fn kill(&mut self, key: &RowKey) {
        let Some(seat) = self.seats.get_mut(key) else {
            return;
        };
        seat.kill = true;
        if let Enclosure::Open(init, _) = &seat.enclosure {
            let _ = init.signal(libc::SIGKILL);
        }
        match &seat.leaf {
            Some(_) if seat.alone => {}
            Some(leaf) => {
                let _ = leaf.kill();
            }
            None if seat.reaped => {}
            None => {
                let _ = seat.child.signal_group(libc::SIGKILL);
                let _ = seat.child.signal(libc::SIGKILL);
                self.families_at = Some(self.families_not_before.max(clock::now()));
            }
        }
    }

    fn release(&mut self, key: &RowKey) {
        let Some(mut seat) = self.seats.remove(key) else {
            return;
        };
        // Before the leader is reaped: from here on the deadline thread knows nothing of it.
        seat.lease = None;
        self.tokens.remove(&seat.token);
        if let Some(watch) = &seat.watch {
            let _ = self.poll.remove(watch);
        }
        if !seat.reaped {
            let _ = seat.child.reap();
        }
        if let Some(leaf) = seat.leaf.filter(|_| !seat.alone)
            && leaf.remove().is_err()
        {
            self.stubborn.push(leaf);
            self.orphans_at
                .get_or_insert(clock::now().after(ORPHANS_EVERY));
        }
    }
}

/// What a page says first. A standby's is over.
fn contents(spec: &PageSpec, generation: Generation) -> Contents {
    Contents {
        until: match spec.role {
            wire::STANDBY => Contents::OVER.until,
            _ => Clocks::NEVER,
        },
        fence: spec.fence,
        epoch: spec.epoch,
        generation: generation.0,
        role: spec.role,
    }
}

fn c_strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>, std::ffi::NulError> {
    texts.map(CString::new).collect()
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
