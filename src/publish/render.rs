//! Templates. Pure but for the template's file, which is read each time: who edits it sees it in the next rendering.

use std::{
    fs::{self, File},
    io::{self, Read},
};

use minijinja::{
    AutoEscape, Environment, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Serde,
};
use serde::Serialize;

use crate::{
    config::spec::PublishMode,
    engine::publish::{Endpoint, FileJob, Listing, Presence, authority},
};

/// A template larger than this is somebody's mistake.
const TEMPLATE_MAX: u64 = 1 << 20;
/// Steps that a template may take, and that many more for each endpoint: one that loops for ever fails.
const FUEL: u64 = 1_000_000;
const FUEL_EACH: u64 = 10_000;

/// What templates see.
#[derive(Serialize)]
struct Context<'a> {
    fleet: &'a str,
    node: &'a str,
    mode: PublishMode,
    address: &'a str,
    /// Who takes work.
    endpoints: Vec<Shown<'a>>,
    /// Who does not any more.
    draining: Vec<Shown<'a>>,
    ready: u32,
    desired: u32,
    config_rev: String,
}

/// An endpoint as templates see it.
#[derive(Serialize)]
struct Shown<'a> {
    /// `web`, `web/3`.
    id: String,
    slot: Option<u32>,
    address: &'a str,
    port: u16,
    /// Address and port as they are written together: `[::1]:80`.
    authority: String,
    weight: u32,
    state: Presence,
    revision: String,
}

/// The file's text. The error is for people, and names the template's line.
pub fn render(job: &FileJob) -> Result<String, String> {
    let template = &job.template;
    let text =
        read(template).map_err(|error| format!("cannot read the template {template}: {error}"))?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the usual braces do not contradict each other"));
    let count = job.listing.endpoints.len() as u64;
    environment.set_fuel(Some(FUEL + FUEL_EACH * count));
    let Listing {
        mode,
        address,
        endpoints,
        ready,
        desired,
        open: _,
        config,
    } = &job.listing;
    let of = |state: Presence| -> Vec<Shown<'_>> {
        let its = endpoints.iter().filter(|one| one.state == state);
        its.map(|one| shown(job, one)).collect()
    };
    let context = Context {
        fleet: job.fleet.as_str(),
        node: &job.node,
        mode: *mode,
        address,
        endpoints: of(Presence::Ready),
        draining: of(Presence::Draining),
        ready: *ready,
        desired: *desired,
        config_rev: config.to_string(),
    };
    let parsed = environment.template_from_named_str(template, &text);
    let rendered = parsed.and_then(|parsed| parsed.render(Value::from(Serde(context))));
    rendered.map_err(|error| {
        let line = error
            .line()
            .map_or_else(String::new, |line| format!(":{line}"));
        let detail = error
            .detail()
            .map_or_else(String::new, |detail| format!(": {detail}"));
        format!("{template}{line}: {}{detail}", error.kind())
    })
}

fn read(path: &str) -> io::Result<String> {
    // Who opens a pipe waits for somebody who writes to it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    File::open(path)?
        .take(TEMPLATE_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > TEMPLATE_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

fn shown<'a>(job: &'a FileJob, one: &Endpoint) -> Shown<'a> {
    let address = &job.listing.address;
    Shown {
        id: match one.slot {
            Some(slot) => format!("{}/{slot}", job.fleet),
            None => job.fleet.to_string(),
        },
        slot: one.slot.map(|slot| slot.0),
        address,
        port: one.port,
        authority: authority(address, one.port),
        weight: one.weight,
        state: one.state,
        revision: one.revision.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::spec::PublishMode, id::Revision};

    fn job(template: &str) -> (tempfile::TempDir, FileJob) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.j2");
        std::fs::write(&path, template).unwrap();
        let listing = Listing {
            mode: PublishMode::Node,
            address: "::1".to_owned(),
            endpoints: vec![Endpoint {
                slot: None,
                port: 80,
                weight: 3,
                state: Presence::Ready,
                revision: Revision::default(),
            }],
            ready: 3,
            desired: 4,
            open: true,
            config: Revision::default(),
        };
        let job = FileJob {
            fleet: "web".parse().unwrap(),
            node: "n1".to_owned(),
            listing,
            template: path.display().to_string(),
            path: String::new(),
            aside: None,
        };
        (dir, job)
    }

    #[test]
    fn a_template_sees_the_list() {
        let (_dir, job) = job(
            "{% for e in endpoints %}{{ e.id }} {{ e.authority }} {{ e.weight }} <{{ node }}>\n{% endfor %}{{ draining | length }} {{ ready }}/{{ desired }}\n",
        );
        assert_eq!(render(&job).unwrap(), "web [::1]:80 3 <n1>\n0 3/4\n");
    }

    #[test]
    fn what_is_wrong_with_a_template_is_named_with_its_line() {
        for (template, word) in [
            ("a\n{{ nobody }}\n", ":2: undefined value"),
            ("{% for e in endpoints %}", "syntax error"),
            (
                "{% for a in range(10000) %}{% for b in range(10000) %}{{ a + b }}{% endfor %}{% endfor %}",
                "fuel",
            ),
            ("{% include 'other' %}", "template not found"),
        ] {
            let (_dir, job) = job(template);
            let error = render(&job).unwrap_err();
            assert!(error.contains(word), "{template}: {error}");
        }
        let (dir, mut job) = job("");
        let path = std::mem::replace(&mut job.template, "/dev/null".to_owned());
        let error = render(&job).unwrap_err();
        assert!(error.contains("it is no regular file"), "{error}");
        job.template = path;
        drop(dir);
        assert!(
            render(&job)
                .unwrap_err()
                .contains("cannot read the template")
        );
    }
}
