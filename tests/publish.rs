//! The templates in `examples/publish`, rendered over lists of every kind: what comes out stands in `tests/publish`, and is read by
//! the programs that it is for, where they are installed. `UPDATE_GOLDEN=1 cargo test --test publish` writes it anew.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use leasehold::{
    config::spec::PublishMode,
    engine::publish::{Endpoint, FileJob, Listing, Presence},
    id::{Revision, SlotIndex},
    publish::render,
};

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn endpoint(slot: Option<u32>, port: u16, weight: u32) -> Endpoint {
    Endpoint {
        slot: slot.map(SlotIndex),
        port,
        weight,
        state: match weight {
            0 => Presence::Draining,
            _ => Presence::Ready,
        },
        revision: Revision(7),
    }
}

/// A node, workers of which one goes, only one that goes, nobody.
fn lists() -> [(&'static str, &'static str, Vec<Endpoint>); 4] {
    [
        ("node", "2001:db8::5", vec![endpoint(None, 8080, 400)]),
        (
            "workers",
            "10.0.0.5",
            vec![
                endpoint(Some(0), 9000, 1),
                endpoint(Some(1), 9001, 0),
                endpoint(Some(3), 9003, 1),
            ],
        ),
        ("last", "10.0.0.5", vec![endpoint(Some(2), 9002, 0)]),
        ("nobody", "10.0.0.5", Vec::new()),
    ]
}

fn rendered(template: &str, address: &str, endpoints: Vec<Endpoint>) -> String {
    let ready = endpoints.iter().map(|one| one.weight).sum();
    let listing = Listing {
        mode: PublishMode::Worker,
        address: address.to_owned(),
        endpoints,
        ready,
        desired: 4,
        open: true,
        config: Revision(9),
    };
    let job = FileJob {
        fleet: "web".parse().unwrap(),
        node: "vps-1".to_owned(),
        listing,
        template: root(&format!("examples/publish/{template}"))
            .display()
            .to_string(),
        path: String::new(),
        aside: None,
    };
    render(&job).unwrap_or_else(|why| panic!("{why}"))
}

fn check(template: &str, ending: &str, look: impl Fn(&str)) {
    for (name, address, endpoints) in lists() {
        let text = rendered(template, address, endpoints);
        let golden = root(&format!("tests/publish/{name}.{ending}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(text, expected, "{}", golden.display());
        look(&text);
    }
}

/// A program's own word on a file; nothing where it is not installed.
fn ask(program: &str, args: &[&str]) {
    let Ok(output) = Command::new(program).args(args).output() else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
}

#[test]
fn nginx() {
    check("nginx-upstream.j2", "nginx.conf", |text| {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("nginx.conf");
        let here = dir.path().display();
        let text = format!(
            "pid {here}/pid;\nerror_log {here}/error;\nevents {{}}\nhttp {{\naccess_log off;\n{text}server {{ listen unix:{here}/s; location / {{ proxy_pass http://web; }} }}\n}}\n"
        );
        fs::write(&main, text).unwrap();
        ask("nginx", &["-t", "-c", &main.display().to_string()]);
    });
}

#[test]
fn haproxy() {
    check("haproxy-backend.j2", "haproxy.cfg", |text| {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("haproxy.cfg");
        let defaults = "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n";
        let front = format!(
            "frontend in\n    bind unix@{}/s\n    default_backend web\n",
            dir.path().display()
        );
        fs::write(&main, format!("{defaults}{text}{front}")).unwrap();
        ask("haproxy", &["-c", "-f", &main.display().to_string()]);
    });
}

#[test]
fn envoy() {
    check("envoy-eds.json.j2", "envoy.json", |text| {
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        let resource = &document["resources"][0];
        assert_eq!(resource["cluster_name"], "web");
        let endpoints = resource["endpoints"][0]["lb_endpoints"].as_array().unwrap();
        for one in endpoints {
            let address = &one["endpoint"]["address"]["socket_address"];
            assert!(address["port_value"].as_u64().unwrap() >= 8080, "{one}");
            assert!(one["load_balancing_weight"].as_u64().unwrap() > 0, "{one}");
        }
    });
}
