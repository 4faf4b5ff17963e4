//! A number from outside that a fleet follows: the depth of a broker's queue, asked for by HTTP or of a program.

use crate::{
    config::spec::{FleetSpec, HookSpec, SourceKind, SourceSpec},
    engine::{
        effect::{Effect, Effects, ExitWords},
        fleet::{Fleet, Room},
        spawn,
        supervisor::Supervisor,
    },
    id::{FleetName, Generation, SlotIndex, WorkerId},
    time::Moment,
    wire::{ExitStatus, Op, RowKey, Stopping, TaskKind},
};

/// What is asked of a fleet's source, and what it said. A new supervisor asks anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inquiry {
    /// When it was asked last.
    asked_at: Option<Moment>,
    question: Question,
    /// What it said last, and when.
    said: Option<(Moment, Result<u64, String>)>,
}

/// Who is asked. One at a time: whoever comes next is asked when nobody else is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Question {
    /// Nobody is.
    #[default]
    Nobody,
    /// A program, which runs. If it ends well, the driver is asked what it wrote.
    Program,
    /// A program in whose answer nobody believes any more: it is being killed.
    Dismissed,
    /// The driver, which asks a server, or reads what a program wrote, and always answers.
    Driver {
        /// Its answer is believed; otherwise it is about what is not configured any more.
        heeded: bool,
    },
}

impl Supervisor {
    /// Whom nobody listens to any more leaves: the daemon ends, or its fleet goes.
    pub(super) fn end_sources(&mut self, now: Moment, out: &mut Effects) {
        let stopping = self.asked.stopping != Stopping::No;
        let idle = |fleet: &Fleet| fleet.inquiry.is_heeded() && (stopping || fleet.removed);
        for name in self.fleets_where(idle) {
            self.with_fleet(&name, now, out, Fleet::dismiss_source);
        }
    }

    /// What a fleet's source says.
    pub(super) fn sourced(&mut self, name: &FleetName, result: Result<u64, String>, now: Moment) {
        if let Some(fleet) = self.fleets.get_mut(name) {
            fleet.inquiry.answered(result, now);
        }
    }
}

impl Inquiry {
    /// Is somebody asked, whether that is believed or not?
    pub(super) fn is_open(&self) -> bool {
        self.question != Question::Nobody
    }

    /// Is somebody asked whose answer will be believed?
    fn is_heeded(&self) -> bool {
        match self.question {
            Question::Program => true,
            Question::Driver { heeded } => heeded,
            Question::Nobody | Question::Dismissed => false,
        }
    }

    /// Is a program there?
    pub(super) fn runs_program(&self) -> bool {
        match self.question {
            Question::Program | Question::Dismissed => true,
            Question::Nobody | Question::Driver { .. } => false,
        }
    }

    /// What the source said last.
    pub(super) fn said(&self) -> Option<&Result<u64, String>> {
        self.said.as_ref().map(|(_, said)| said)
    }

    /// What it said last, in thousandths, while that can still be true.
    pub(super) fn believed(&self, source: &SourceSpec, now: Moment) -> Option<u64> {
        let (at, result) = self.said.as_ref()?;
        let fresh = at.after(source.interval.times(2).plus(source.timeout)) > now;
        result.as_ref().ok().copied().filter(|_| fresh)
    }

    /// The driver's answer.
    fn answered(&mut self, result: Result<u64, String>, now: Moment) {
        match self.question {
            Question::Driver { heeded } => {
                self.question = Question::Nobody;
                if heeded {
                    self.said = Some((now, result));
                }
            }
            Question::Nobody | Question::Program | Question::Dismissed => {}
        }
    }
}

/// Whom a fleet follows that is made so.
fn source(spec: &FleetSpec) -> Option<&SourceSpec> {
    spec.scale.as_ref()?.source.as_ref()
}

impl Fleet {
    fn source_key(&self) -> RowKey {
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot: SlotIndex(0),
        };
        RowKey::Task(worker, TaskKind::ScaleSource)
    }

    pub(super) fn source_deadline(&self) -> Option<Moment> {
        let source = source(&self.spec).filter(|_| !self.inquiry.is_open())?;
        let asked_at = self.inquiry.asked_at;
        Some(asked_at.map_or(Moment(0), |at| at.after(source.interval)))
    }

    /// Asks whoever knows how long the queue is, when it is time to.
    pub(super) fn ask_source(&mut self, room: &mut Room<'_>) {
        if self.source_deadline().is_none_or(|at| at > room.now) {
            return;
        }
        let Some(source) = source(&self.spec).cloned() else {
            return;
        };
        self.inquiry.asked_at = Some(room.now);
        match source.kind {
            SourceKind::Http { address, path } => {
                self.inquiry.question = Question::Driver { heeded: true };
                room.out.list.push(Effect::AskSource {
                    fleet: self.name.clone(),
                    address,
                    path,
                    timeout: source.timeout,
                });
            }
            SourceKind::Exec(command) => self.run_source(&command, room),
        }
    }

    /// It runs as the fleet's workers do, and what it says first is the number.
    fn run_source(&mut self, command: &HookSpec, room: &mut Room<'_>) {
        self.inquiry.question = Question::Program;
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot: SlotIndex(0),
        };
        let spec = spawn::source(&worker, &self.spec, room.facts, command);
        room.out.keeper(Op::Spawn {
            key: self.source_key(),
            after: Generation::default(),
            body: Vec::new(),
            stop: spawn::stop_record(&self.spec),
            deadline: Some(command.timeout),
            spec: Box::new(spec),
        });
    }

    /// It ended, or could not be run.
    pub(super) fn source_ended(
        &mut self,
        status: Result<ExitStatus, &'static str>,
        room: &mut Room<'_>,
    ) {
        match self.inquiry.question {
            Question::Program => self.hear_program(status, room),
            Question::Dismissed => self.inquiry.question = Question::Nobody,
            Question::Nobody | Question::Driver { .. } => {}
        }
    }

    fn hear_program(&mut self, status: Result<ExitStatus, &'static str>, room: &mut Room<'_>) {
        let why = match status {
            Ok(ExitStatus::Code(0)) => {
                self.inquiry.question = Question::Driver { heeded: true };
                room.out.list.push(Effect::ReadSource(self.name.clone()));
                return;
            }
            Ok(status) => ExitWords(status).to_string(),
            Err(why) => why.to_owned(),
        };
        self.inquiry.question = Question::Nobody;
        self.inquiry.said = Some((room.now, Err(format!("its program {why}"))));
    }

    /// A program of the last supervisor's is there: its answer was for that one.
    pub(super) fn inherit_source(&mut self, room: &mut Room<'_>) {
        self.inquiry.question = Question::Program;
        self.dismiss_source(room);
    }

    /// It follows somebody else from now on, or nobody: what was said, or is about to be, is not about that.
    pub(super) fn follow_source(&mut self, before: &FleetSpec, room: &mut Room<'_>) {
        if source(before) != source(&self.spec) {
            self.dismiss_source(room);
            (self.inquiry.said, self.inquiry.asked_at) = (None, None);
        }
    }

    /// Nobody waits for an answer any more.
    fn dismiss_source(&mut self, room: &mut Room<'_>) {
        match self.inquiry.question {
            Question::Program => {
                self.inquiry.question = Question::Dismissed;
                room.out.keeper(Op::Kill {
                    key: self.source_key(),
                    generation: Generation::default().next(),
                    body: Vec::new(),
                });
            }
            Question::Driver { .. } => self.inquiry.question = Question::Driver { heeded: false },
            Question::Nobody | Question::Dismissed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{
            Config,
            spec::{ScaleSpec, Signal},
        },
        engine::{Event, event::Purpose, supervisor::Origin},
        time::{Clocks, Span},
        wire::{ExitRecord, Header, Process, StopRecord},
    };

    fn server(path: &str) -> Option<SourceKind> {
        Some(SourceKind::Http {
            address: "127.0.0.1:80".to_owned(),
            path: path.to_owned(),
        })
    }

    fn program(path: &str) -> Option<SourceKind> {
        Some(SourceKind::Exec(HookSpec {
            program: path.to_owned(),
            argv: vec![path.to_owned()],
            timeout: Span::secs(2),
            abort: false,
        }))
    }

    /// One fleet, which sleeps, and follows a source if there is one.
    fn config(source: Option<SourceKind>) -> Config {
        let mut spec = FleetSpec::unknown(&StopRecord::default());
        spec.scale = Some(ScaleSpec {
            signals: vec![Signal::Queue],
            source: source.map(|kind| SourceSpec {
                kind,
                interval: Span::secs(5),
                timeout: Span::secs(2),
            }),
            ..ScaleSpec::between(0, 4)
        });
        Origin::of([("web", spec)]).config
    }

    /// A supervisor and the second that it is at.
    struct Story {
        engine: Supervisor,
        second: u64,
    }

    impl Story {
        /// It begins with the keeper's rows; what it does is said in words.
        fn begin(config: Config, rows: Vec<(RowKey, Header, Vec<u8>)>) -> (Self, Vec<String>) {
            let origin = Origin {
                config,
                rows,
                ..Origin::of([])
            };
            let mut out = Effects::default();
            let engine = Supervisor::new(origin, Clocks::default(), &mut out);
            (Self { engine, second: 0 }, words(&out))
        }

        /// A second later something happens.
        fn then(&mut self, event: Event) -> Vec<String> {
            self.second += 1;
            let mut out = Effects::default();
            let now = Moment(Span::secs(self.second).as_nanos());
            self.engine.step(event, now.into(), &mut out);
            words(&out)
        }

        fn reload(&mut self, config: Config) -> Vec<String> {
            self.then(Event::ConfigRead {
                purpose: Purpose::Reload(None),
                result: Ok(Box::new(config)),
            })
        }

        fn answers(&mut self, thousandths: u64) -> Vec<String> {
            self.then(Event::Sourced {
                fleet: "web".parse().unwrap(),
                result: Ok(thousandths),
            })
        }

        fn ends(&mut self, process: Process) -> Vec<String> {
            self.then(Event::Rows(vec![(key(), header(process))]))
        }

        /// What is believed of the queue, in thousandths.
        fn believed(&self) -> Option<Result<u64, String>> {
            let now = Moment(Span::secs(self.second).as_nanos());
            let status = self.engine.status(now);
            status.fleets[0].scale.as_ref()?.source.clone()
        }
    }

    fn key() -> RowKey {
        let worker = WorkerId::new("web".parse().unwrap(), 0);
        RowKey::Task(worker, TaskKind::ScaleSource)
    }

    fn header(process: Process) -> Header {
        Header {
            generation: Generation::default().next(),
            process,
            stop: StopRecord::default(),
        }
    }

    fn over(status: ExitStatus) -> Process {
        Process::Gone(ExitRecord {
            pid: 1,
            status,
            since: Moment(0),
            at: Moment(0),
        })
    }

    /// What is done about sources.
    fn words(out: &Effects) -> Vec<String> {
        let said = |effect: &Effect| match effect {
            Effect::AskSource { path, .. } => Some(format!("asks {path}")),
            Effect::ReadSource(_) => Some("reads".to_owned()),
            Effect::Keeper(Op::Spawn { spec, .. }) => Some(format!("runs {}", spec.program)),
            Effect::Keeper(Op::Kill { key: whose, .. }) if *whose == key() => {
                Some("kills".to_owned())
            }
            _ => None,
        };
        out.list.iter().filter_map(said).collect()
    }

    #[test]
    fn a_server_that_is_configured_away_is_not_believed() {
        let (mut story, begin) = Story::begin(config(server("/a")), Vec::new());
        assert_eq!(begin, ["asks /a"]);
        story.reload(config(server("/b")));
        assert_eq!(story.answers(9_000), ["asks /b"]);
        assert_eq!(story.believed(), None);
        story.answers(2_000);
        assert_eq!(story.believed(), Some(Ok(2_000)));
        // Nobody asked.
        story.answers(7_000);
        assert_eq!(story.believed(), Some(Ok(2_000)));
    }

    #[test]
    fn a_program_that_is_configured_away_is_ended_and_not_believed() {
        let done = || over(ExitStatus::Code(0));
        let (mut story, begin) = Story::begin(config(program("/bin/a")), Vec::new());
        assert_eq!(begin, ["runs /bin/a"]);
        assert_eq!(story.reload(config(program("/bin/b"))), ["kills"]);
        assert_eq!(story.ends(done()), ["runs /bin/b"]);
        assert_eq!(story.ends(done()), ["reads"]);
        // It has ended, and what it wrote is being read.
        story.reload(config(server("/c")));
        assert_eq!(story.answers(9_000), ["asks /c"]);
        assert_eq!(story.believed(), None);
        // Nobody is asked, and then somebody is again.
        story.reload(config(None));
        story.reload(config(program("/bin/a")));
        assert_eq!(story.answers(9_000), ["runs /bin/a"]);
        assert_eq!(story.believed(), None);
        story.ends(over(ExitStatus::Code(3)));
        let failed = "its program exited with code 3".to_owned();
        assert_eq!(story.believed(), Some(Err(failed)));
    }

    #[test]
    fn who_was_asked_for_a_fleet_that_went_says_nothing_of_one_that_came() {
        for kind in [server("/a"), program("/bin/a")] {
            let (mut story, asked) = Story::begin(config(kind.clone()), Vec::new());
            story.reload(Origin::of([]).config);
            story.reload(config(kind.clone()));
            let mut done = match kind {
                Some(SourceKind::Exec(_)) => story.ends(over(ExitStatus::Code(0))),
                _ => story.answers(9_000),
            };
            assert_eq!(story.believed(), None);
            for _ in 0..5 {
                done.extend(story.then(Event::Tick));
            }
            assert_eq!(done, asked);
        }
    }

    #[test]
    fn who_was_asked_by_the_last_supervisor_is_ended() {
        let alive = Process::Alive(crate::wire::Alive {
            pid: 1,
            start_ticks: 1,
            since: Moment(0),
            containment: crate::wire::Containment::Group,
        });
        let rows = vec![(key(), header(alive), Vec::new())];
        let (mut story, begin) = Story::begin(config(program("/bin/a")), rows);
        assert_eq!(begin, ["kills"]);
        assert_eq!(story.ends(over(ExitStatus::Code(0))), ["runs /bin/a"]);
        assert_eq!(story.believed(), None);
    }
}
