//! Output that is not in files: where it is, and the command that prints it from there.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    cli::{Failure, client::Client},
    config::spec::{LogSpec, Sink},
    engine::command::matches,
};

/// Of the configuration, what is needed here.
#[derive(Deserialize)]
struct Configured {
    fleets: BTreeMap<String, Fleet>,
}

#[derive(Deserialize)]
struct Fleet {
    log: LogSpec,
}

/// Where the output of each fleet goes.
#[derive(Default)]
pub(super) struct Sinks(BTreeMap<String, Sink>);

impl Sinks {
    pub(super) fn ask(client: &Client) -> Result<Self, Failure> {
        let configured: Configured = client.get("/v1/config")?;
        let sinks = configured.fleets.into_iter();
        Ok(Self(
            sinks.map(|(name, fleet)| (name, fleet.log.sink)).collect(),
        ))
    }

    /// Where the output of `web`, or of `web/3`, goes; if it is not known, to a file.
    pub(super) fn of(&self, name: &str) -> Sink {
        let fleet = name.split('/').next().unwrap_or(name);
        self.0.get(fleet).copied().unwrap_or(Sink::File)
    }

    /// Does the output of a fleet that this selects go there?
    pub(super) fn have(&self, pattern: &str, there: Sink) -> bool {
        let mut fleets = self.0.iter();
        fleets.any(|(fleet, sink)| *sink == there && matches(pattern, fleet))
    }

    /// The command that prints from the journal what these names select; `workers` are all there are. None if nothing is there.
    pub(super) fn command(
        &self,
        names: &[String],
        workers: &[String],
        lines: usize,
        follow: bool,
    ) -> Option<String> {
        let mut alternatives = Vec::new();
        let fleets = self.0.iter().filter(|(_, sink)| **sink == Sink::Journal);
        for (fleet, _) in fleets {
            if names.is_empty() || names.iter().any(|name| matches(name, fleet)) {
                alternatives.push(format!("LEASEHOLD_FLEET={fleet}"));
                continue;
            }
            let prefix = format!("{fleet}/");
            let slots = workers.iter().filter_map(|id| id.strip_prefix(&prefix));
            // A slot that is not used now may have been, and its lines are still there.
            let named = names.iter().filter_map(|name| name.strip_prefix(&prefix));
            let mut slots: Vec<&str> = slots
                .filter(|slot| {
                    names
                        .iter()
                        .any(|name| matches(name, &format!("{prefix}{slot}")))
                })
                .chain(named.filter(|slot| slot.parse::<u32>().is_ok()))
                .collect();
            slots.sort_unstable();
            slots.dedup();
            // Values of one field are alternatives; those of two must both hold.
            let slots: String = slots
                .iter()
                .map(|slot| format!(" LEASEHOLD_SLOT={slot}"))
                .collect();
            if !slots.is_empty() {
                alternatives.push(format!("LEASEHOLD_FLEET={fleet}{slots}"));
            }
        }
        let follow = if follow { " -f" } else { "" };
        (!alternatives.is_empty())
            .then(|| format!("journalctl -n {lines}{follow} {}", alternatives.join(" + ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_selects_what_was_named() {
        let sinks = [
            ("web", Sink::Journal),
            ("api", Sink::Journal),
            ("db", Sink::File),
        ];
        let sinks = Sinks(sinks.map(|(name, sink)| (name.to_owned(), sink)).into());
        let workers = ["api/0", "web/0", "web/1", "web/2"].map(str::to_owned);
        let command = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            sinks.command(&names, &workers, 20, false)
        };
        let is = |matches: &str| Some(format!("journalctl -n 20 {matches}"));
        assert_eq!(
            command(&[]),
            is("LEASEHOLD_FLEET=api + LEASEHOLD_FLEET=web")
        );
        assert_eq!(command(&["w*"]), is("LEASEHOLD_FLEET=web"));
        assert_eq!(
            command(&["web/1", "web/7", "api"]),
            is("LEASEHOLD_FLEET=api + LEASEHOLD_FLEET=web LEASEHOLD_SLOT=1 LEASEHOLD_SLOT=7")
        );
        assert_eq!(
            command(&["web/?"]),
            is("LEASEHOLD_FLEET=web LEASEHOLD_SLOT=0 LEASEHOLD_SLOT=1 LEASEHOLD_SLOT=2")
        );
        assert_eq!(command(&["db"]), None);
    }
}
