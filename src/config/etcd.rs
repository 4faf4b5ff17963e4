//! `[etcd]`: the cluster that this node belongs to.

use crate::{
    config::{
        document::Place,
        forms,
        section::Section,
        spec::{EtcdSpec, LOCAL, TlsSpec},
    },
    time::Span,
};

/// Of a node's lease. Below two seconds etcd grants two; above five minutes it would be checkpointed.
const TTL: (Span, Span) = (Span::secs(2), Span::secs(300));

/// Reads it; none if there is no such table.
pub(super) fn etcd(section: &Section<'_, '_>) -> Option<EtcdSpec> {
    if section.is_absent() {
        return None;
    }
    let tls = tls(section);
    let endpoints = endpoints(section, tls.is_some());
    let ttl = section.span("lease_ttl").unwrap_or(Span::secs(10));
    if ttl < TTL.0 || ttl > TTL.1 || !ttl.as_nanos().is_multiple_of(Span::secs(1).as_nanos()) {
        let message = format!(
            "{} = {ttl} is no lease that etcd gives",
            section.name("lease_ttl")
        );
        let help = format!("whole seconds, from {} to {}", TTL.0, TTL.1);
        section.fault("E273", "lease_ttl", message, &help);
    }
    let (user, password) = (section.string("user"), section.string("password"));
    if user.is_some() != password.is_some() {
        let key = if user.is_some() { "user" } else { "password" };
        let message = format!("{} stands alone", section.name(key));
        let help = "user = \"NAME\" and password = \"${file:/etc/leasehold/etcd.password}\"";
        section.fault("E272", key, message, help);
    }
    let spec = EtcdSpec {
        endpoints,
        cluster: cluster(section),
        lease_ttl: ttl,
        user: user.zip(password),
        tls,
        epoch: section
            .integer("epoch", 0, i64::from(u32::MAX))
            .unwrap_or(0) as u64,
    };
    section.finish();
    Some(spec)
}

fn cluster(section: &Section<'_, '_>) -> String {
    let named = section.parsed("cluster", &forms::LOCK);
    let name = named.map_or_else(|| "main".to_owned(), |name| name.to_string());
    if name == LOCAL {
        // Files of a lock, and its fences, are kept by the name of the cluster on each machine.
        let message = format!(
            "{} = {name:?} is how locks of one machine alone are kept",
            section.name("cluster")
        );
        section.fault("E279", "cluster", message, "any other name");
    }
    name
}

fn tls(section: &Section<'_, '_>) -> Option<TlsSpec> {
    let table = section.section("tls");
    if table.is_absent() {
        return None;
    }
    let path = |key| {
        let path = table.string(key)?;
        Some(table.base().join(path).display().to_string())
    };
    let (ca, cert, key) = (path("ca"), path("cert"), path("key"));
    if ca.is_none() {
        let message = format!("{} does not say whom to trust", table.path);
        table.fault("E271", "ca", message, "ca = \"/etc/leasehold/ca.pem\"");
    }
    if cert.is_some() != key.is_some() {
        let alone = if cert.is_some() { "cert" } else { "key" };
        let message = format!("{} stands alone", table.name(alone));
        let help = "cert and key go together: one is of no use without the other";
        table.fault("E271", alone, message, help);
    }
    table.finish();
    Some(TlsSpec {
        ca: ca.unwrap_or_default(),
        identity: cert.zip(key),
    })
}

fn endpoints(section: &Section<'_, '_>, has_tls: bool) -> Vec<String> {
    let named = section.strings("endpoints").unwrap_or_default();
    if named.is_empty() && section.refused("endpoints").is_none() {
        let message = format!("{} does not say where etcd is", section.path);
        let help = "endpoints = [\"http://10.0.0.1:2379\", …], every member's";
        section.fault("E270", "endpoints", message, help);
    }
    let mut seen: Vec<String> = Vec::new();
    for (text, place) in named {
        let wrong = wrong_endpoint(&text, has_tls, &seen);
        if let Some((message, help)) = wrong {
            refuse(section, place, message, help);
        }
        seen.push(text);
    }
    seen
}

fn refuse(section: &Section<'_, '_>, place: Place, message: String, help: &str) {
    let reader = section.reader;
    reader.fault("E270", Some(place), message, "here", help.to_owned());
}

/// What is wrong with an endpoint, and what would do.
fn wrong_endpoint(text: &str, has_tls: bool, before: &[String]) -> Option<(String, &'static str)> {
    let written = "write http://HOST:PORT or https://HOST:PORT";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Some((format!("{text:?} does not say how to talk to it"), written));
    };
    if rest.contains(|c: char| c.is_whitespace() || "/?#@".contains(c)) {
        let message = format!("{text:?} says more than where it is");
        let help =
            "write http://HOST:PORT or https://HOST:PORT; user and password are keys of their own";
        return Some((message, help));
    }
    let port = rest
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    let Some((host, Ok(1..))) = port else {
        return Some((format!("{text:?} has no port"), written));
    };
    if host.is_empty() {
        return Some((format!("{text:?} has no host"), written));
    }
    if before.iter().any(|other| other == text) {
        let help = "name every member once: whoever is asked twice is still one";
        return Some((format!("{text:?} stands there twice"), help));
    }
    match (scheme, has_tls) {
        ("http", false) | ("https", true) => None,
        ("http", true) => Some((
            format!("{text:?} is not encrypted, and there is a tls table"),
            "write https://, or remove tls",
        )),
        ("https", false) => Some((
            format!("{text:?} needs the certificate of an authority to trust"),
            "tls = { ca = \"/etc/leasehold/ca.pem\" }",
        )),
        _ => Some((format!("{scheme:?} is no way to talk to etcd"), written)),
    }
}
