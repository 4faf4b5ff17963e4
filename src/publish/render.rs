//! Templates. Pure but for the template's file, which is read each time: who edits it sees it in the next rendering.

use std::{
    fs::{self, File},
    io::{self, Read},
};

use crate::{config::template, engine::publish::FileJob};

/// A template larger than this is somebody's mistake.
const TEMPLATE_MAX: u64 = 1 << 20;

/// The file's text. The error is for people, and names the template's line.
pub fn render(job: &FileJob) -> Result<String, String> {
    let name = &job.template;
    let text = read(name).map_err(|error| format!("cannot read the template {name}: {error}"))?;
    let context = job.listing.context(&job.fleet, &job.node);
    template::fill(name, &text, &context).map_err(|error| template::words(name, &error))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::PublishMode,
        engine::publish::{Endpoint, Listing, Presence},
        id::Revision,
    };

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
