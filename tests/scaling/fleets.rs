//! Configurations of the plants.

use std::collections::BTreeMap;

use leasehold::{
    config::{
        Config,
        spec::{
            FleetSpec, HttpSpec, ListenAddress, NodeSpec, ReadySpec, RestartPolicy, ScaleSpec,
            Sink, SocketSpec,
        },
    },
    id::{FleetName, Revision},
    time::Span,
    wire::StopRecord,
};

use crate::{plant::Demand, scene::Scene};

/// How many may wait at a socket.
pub(crate) const BACKLOG: u32 = 511;

/// What fleets are called.
pub(crate) fn names(count: usize) -> Vec<FleetName> {
    let all = ["web", "late", "third"];
    let names = all.iter().take(count);
    names.map(|name| name.parse().expect("a name")).collect()
}

/// What is configured: in the prologue every fleet has its first workers.
pub(crate) fn config(scene: &Scene, demands: &[Demand], prologue: bool) -> Config {
    let specs = demands.iter().zip(&scene.begin).map(|(demand, begin)| {
        let min = if prologue {
            scene.min.max(*begin)
        } else {
            scene.min
        };
        spec(scene, demand, min)
    });
    let fleets: BTreeMap<FleetName, FleetSpec> =
        names(demands.len()).into_iter().zip(specs).collect();
    Config {
        revision: Revision::of(format!("{fleets:?}").as_bytes()),
        path: "scaling.toml".to_owned(),
        base: String::new(),
        node: NodeSpec {
            name: "sim".to_owned(),
            restart_rate: 20_000,
            restart_burst: 50,
            cpu_reserve: 100_000,
            memory_reserve: 100_000,
        },
        http: HttpSpec::default(),
        etcd: None,
        fleets,
    }
}

fn spec(scene: &Scene, demand: &Demand, min: u32) -> FleetSpec {
    let mut spec = FleetSpec::unknown(&StopRecord::default());
    spec.workers = min;
    spec.process.program = "/bin/serve".to_owned();
    spec.process.argv = vec!["serve".to_owned()];
    spec.log.sink = Sink::None;
    spec.ready = ReadySpec::Notify;
    spec.start.timeout = Span::secs(90);
    spec.stop.timeout = Span::secs(200);
    spec.stop.extend_max = Span::secs(200);
    spec.restart.policy = RestartPolicy::Always;
    spec.restart.backoff_min = Span::millis(200);
    spec.restart.backoff_max = Span::secs(5);
    spec.restart.burst = 100;
    spec.restart.window = Span::secs(30);
    spec.restart.healthy = Span::secs(5);
    spec.restart.give_up = false;
    // Everything else is as it is by default.
    spec.scale = Some(ScaleSpec {
        weight: (demand.weight * 100.0) as u32,
        ..ScaleSpec::between(min, scene.max)
    });
    if scene.socket {
        let socket = SocketSpec {
            listen: ListenAddress::Tcp(([127, 0, 0, 1], 8080).into()),
            backlog: BACKLOG,
            reuse_port: false,
            mode: None,
        };
        spec.sockets.insert("http".to_owned(), socket);
    }
    spec.revision = Revision::of(format!("{:?}", spec.process).as_bytes());
    spec
}
