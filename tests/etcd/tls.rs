//! TLS: whom we trust, and who we are.

use std::{fs, path::Path, process::Command};

use leasehold::{
    engine::cluster::rpc::{Failure, News, Request},
    etcd::{Settings, Tls},
    time::Span,
};

use crate::{
    client::Client,
    daemon::{Mode, Rig as Daemon},
    real::ready,
    rig::{Cluster, Setup, address, until},
    silence::{granted, read},
};

const LIMIT: Span = Span::secs(3);

fn openssl(dir: &Path, args: &[&str]) {
    let out = Command::new("openssl").current_dir(dir).args(args).output();
    let out = out.expect("openssl is not there (Debian: openssl)");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn key(dir: &Path, args: &[&str]) {
    let usual = [
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    openssl(dir, &[&usual[..], args].concat());
}

/// `NAME.pem` and `NAME.key`, signed by itself.
fn authority(dir: &Path, name: &str) {
    let (key_file, cert) = (format!("{name}.key"), format!("{name}.pem"));
    let subject = format!("/CN={name}");
    key(
        dir,
        &[
            "-x509", "-days", "30", "-subj", &subject, "-keyout", &key_file, "-out", &cert,
        ],
    );
}

/// Signed by an authority, for this name.
fn certificate(dir: &Path, authority: &str, name: &str, alternative: &str) {
    let file = |end: &str| format!("{name}.{end}");
    let subject = format!("/CN={name}");
    key(
        dir,
        &[
            "-subj",
            &subject,
            "-keyout",
            &file("key"),
            "-out",
            &file("csr"),
        ],
    );
    let extensions =
        format!("subjectAltName={alternative}\nextendedKeyUsage=serverAuth,clientAuth\n");
    fs::write(dir.join(file("ext")), extensions).unwrap();
    let (ca, ca_key) = (format!("{authority}.pem"), format!("{authority}.key"));
    openssl(
        dir,
        &[
            "x509",
            "-req",
            "-days",
            "30",
            "-in",
            &file("csr"),
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-extfile",
            &file("ext"),
            "-out",
            &file("pem"),
        ],
    );
}

struct Rig {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Rig {
    /// A member with a certificate for `alternative` that asks for one.
    fn new(alternative: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca", "other"] {
            authority(dir.path(), name);
            let ours = format!("{name}-client");
            certificate(dir.path(), name, &ours, "DNS:client");
        }
        certificate(dir.path(), "ca", "server", alternative);
        let at = |name: &str| dir.path().join(name).display().to_string();
        let cluster = Cluster::with(Setup {
            members: 1,
            args: vec![
                format!("--cert-file={}", at("server.pem")),
                format!("--key-file={}", at("server.key")),
                format!("--trusted-ca-file={}", at("ca.pem")),
                "--client-cert-auth".to_owned(),
            ],
            tls: true,
        })?;
        Some(Self { cluster, dir })
    }

    fn client(&self, ca: &str, identity: Option<&str>) -> Client {
        let file = |name: String| fs::read(self.dir.path().join(name)).unwrap();
        let identity =
            identity.map(|name| (file(format!("{name}.pem")), file(format!("{name}.key"))));
        Client::new(Settings {
            endpoints: self.cluster.endpoints(),
            user: None,
            tls: Some(Tls {
                ca: file(format!("{ca}.pem")),
                identity,
            }),
        })
    }

    fn why_not(&self, ca: &str, identity: Option<&str>) -> String {
        let mut client = self.client(ca, identity);
        let watch = client.watch(0, "a/", LIMIT);
        let end = client.next_news(watch, LIMIT);
        let is_end = matches!(
            &end,
            Some(News::WatchEnded {
                why: Failure::Unreachable(_),
                ..
            })
        );
        assert!(is_end, "{end:?}");
        match client.call(0, read(), LIMIT).result {
            Err(Failure::Unreachable(why)) => why,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn certificates_are_checked_on_both_sides() {
    let Some(rig) = Rig::new(&format!("IP:{}", address())) else {
        return;
    };
    let mut client = rig.client("ca", Some("ca-client"));
    ready(&mut client, 1);
    let lease = granted(&mut client, 0, 60);
    client.ask(0, Request::KeepAlive(lease)).unwrap();
    client.ask(0, read()).unwrap();
    let watch = client.watch(0, "a/", LIMIT);
    assert!(matches!(
        client.next_news(watch, LIMIT),
        Some(News::Watching { .. })
    ));

    let why = rig.why_not("other", Some("ca-client"));
    assert_eq!(why, "its certificate does not hold: UnknownIssuer");
    for identity in [None, Some("other-client")] {
        let why = rig.why_not("ca", identity);
        assert!(
            why.contains("accept our certificate"),
            "{identity:?}: {why}"
        );
    }
}

#[test]
fn only_one_side_speaks_tls() {
    let Some(rig) = Rig::new(&format!("IP:{}", address())) else {
        return;
    };
    ready(&mut rig.client("ca", Some("ca-client")), 1);
    let plain = rig.cluster.endpoints().remove(0).replace("https", "http");
    let mut client = Client::to(vec![plain]);
    let result = client.call(0, read(), LIMIT).result;
    assert!(matches!(result, Err(Failure::Unreachable(_))), "{result:?}");

    let Some(plain) = Cluster::alone() else {
        return;
    };
    ready(&mut Client::of(&plain), 1);
    let mut client = Client::new(Settings {
        endpoints: vec![plain.endpoints().remove(0).replace("http", "https")],
        user: None,
        tls: Some(Tls {
            ca: fs::read(rig.dir.path().join("ca.pem")).unwrap(),
            identity: None,
        }),
    });
    let result = client.call(0, read(), LIMIT).result;
    let is_told = matches!(
        &result,
        Err(Failure::Unreachable(why))
            if why == "it hung up instead of speaking TLS" || why == "connection reset"
    );
    assert!(is_told, "{result:?}");
}

#[test]
fn a_certificate_for_another_name_does_not_hold() {
    let Some(rig) = Rig::new("DNS:somebody.else") else {
        return;
    };
    let mut client = rig.client("ca", Some("ca-client"));
    until("etcd is up", Span::secs(30), || {
        match client.call(0, read(), LIMIT).result {
            Err(Failure::Unreachable(why)) if why != "connection refused" => {
                assert!(
                    why.starts_with(
                        "its certificate does not hold: certificate not valid for name"
                    ),
                    "{why}"
                );
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });
}

/// Renewed ones are not waited for with the next restart, and a file that cannot be used costs nothing.
#[test]
fn certificates_are_read_again_at_a_reload() {
    let Some(rig) = Rig::new(&format!("IP:{}", address())) else {
        return;
    };
    let dir = rig.dir.path();
    let have = |identity: &str| {
        for end in ["pem", "key"] {
            fs::copy(
                dir.join(format!("{identity}.{end}")),
                dir.join(format!("ours.{end}")),
            )
            .unwrap();
        }
    };
    ready(&mut rig.client("ca", Some("ca-client")), 1);
    have("other-client");
    let mut node = Daemon::new(Mode::Group).expect("groups are everywhere");
    let at = |name: &str| dir.join(name).display().to_string();
    node.configure(&format!(
        r#"
        [etcd]
        endpoints = {:?}
        tls = {{ ca = "{}", cert = "{}", key = "{}" }}
        [fleet.billing]
        command = [{{worker}}, "sleep"]
        singleton = {{ scope = "cluster", containment = "weak", flock = "{{dir}}/lock" }}
        "#,
        rig.cluster.endpoints(),
        at("ca.pem"),
        at("ours.pem"),
        at("ours.key"),
    ));
    node.start();
    until("it is said why there is no lease", Span::secs(10), || {
        let all = node.ok(&["singletons"]);
        let is_said = all.contains("accept our certificate");
        if is_said { Ok(()) } else { Err(all) }
    });
    have("ca-client");
    node.ok(&["reload"]);
    let with = node.wait("it has its lock", 20_000, |status| {
        !status.of("billing").is_empty()
    });
    let refused = |why: &str| {
        let said = node.cli(&["reload"]);
        let text = format!("{}{}", said.out, said.err);
        assert!(said.code != 0 && text.contains(why), "{text}");
    };
    fs::write(dir.join("ours.pem"), "nothing\n").unwrap();
    refused("etcd.tls.cert names a file with no certificate in PEM");
    fs::copy(dir.join("ca-client.pem"), dir.join("ours.pem")).unwrap();
    fs::copy(dir.join("other-client.key"), dir.join("ours.key")).unwrap();
    refused("keys may not be consistent");
    fs::copy(dir.join("ours.pem"), dir.join("ours.key")).unwrap();
    refused("etcd.tls.key names a file with no private key in PEM");
    fs::remove_file(dir.join("ours.key")).unwrap();
    refused("ours.key (etcd.tls): No such file");
    assert_eq!(
        with.worker("billing/0").unwrap().pid,
        node.status().worker("billing/0").unwrap().pid
    );
}
