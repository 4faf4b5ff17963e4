//! Templates of published files and records: what they see, and how they are filled in. Pure; who has a list brings it.

use minijinja::{
    AutoEscape, Environment, Error, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Serde,
};
use serde::Serialize;

use crate::config::spec::PublishMode;

/// Steps that a template may take, and that many more for each endpoint: one that loops for ever fails.
const FUEL: u64 = 1_000_000;
const FUEL_EACH: u64 = 10_000;

/// What templates see.
#[derive(Debug, Serialize)]
pub struct Context<'a> {
    /// Whose list it is.
    pub fleet: &'a str,
    /// On which node.
    pub node: &'a str,
    /// What an endpoint is.
    pub mode: PublishMode,
    /// Of all endpoints.
    pub address: &'a str,
    /// Who takes work.
    pub endpoints: Vec<Shown<'a>>,
    /// Who does not any more.
    pub draining: Vec<Shown<'a>>,
    /// How many workers take work.
    pub ready: u32,
    /// How many should.
    pub desired: u32,
    /// The accepted configuration's.
    pub config_rev: String,
}

/// An endpoint as templates see it.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// `web`, `web/3`.
    pub id: String,
    /// Whose, where each worker has its own.
    pub slot: Option<u32>,
    /// The list's.
    pub address: &'a str,
    /// Its port there.
    pub port: u16,
    /// Address and port as they are written together: `[::1]:80`.
    pub authority: String,
    /// How many take work there.
    pub weight: u32,
    /// `ready` or `draining`.
    pub state: &'static str,
    /// What it was spawned from.
    pub revision: String,
}

/// The file's text. `name` is the template's, `text` what stands in it.
pub fn fill(name: &str, text: &str, context: &Context<'_>) -> Result<String, Error> {
    let count = (context.endpoints.len() + context.draining.len()) as u64;
    let environment = environment(FUEL + FUEL_EACH * count);
    let parsed = environment.template_from_named_str(name, text)?;
    parsed.render(Value::from(Serde(context)))
}

/// A text for each endpoint that takes work, in their order; it sees that endpoint's own words beside those of the whole list.
pub fn fill_each(name: &str, text: &str, context: &Context<'_>) -> Result<Vec<String>, Error> {
    let environment = environment(FUEL_EACH);
    let parsed = environment.template_from_named_str(name, text)?;
    let list = Value::from(Serde(context));
    let endpoints = context.endpoints.iter();
    let texts = endpoints.map(|one| {
        let own = Value::from(Serde(one));
        parsed.render(minijinja::context! { ..own, ..list.clone() })
    });
    texts.collect()
}

fn environment(fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the usual braces do not contradict each other"));
    environment.set_fuel(Some(fuel));
    environment
}

/// What is wrong with it, for people: `name:2: undefined value`.
pub fn words(name: &str, error: &Error) -> String {
    let line = error
        .line()
        .map_or_else(String::new, |line| format!(":{line}"));
    let detail = error
        .detail()
        .map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{name}{line}: {}{detail}", error.kind())
}

/// Fills it in with lists of every kind, and throws the texts away. The error is the first one's, with the list that it came of.
pub(super) fn try_out(name: &str, text: &str, mode: PublishMode) -> Result<(), String> {
    let lists: [(u16, u16, &str); 3] = match mode {
        PublishMode::Node => [
            (0, 0, "nobody in the list"),
            (1, 0, "an endpoint in the list"),
            (0, 1, "an endpoint that drains in the list"),
        ],
        PublishMode::Worker => [
            (0, 0, "nobody in the list"),
            (2, 0, "two endpoints in the list"),
            (1, 1, "an endpoint and one that drains in the list"),
        ],
    };
    for (ready, draining, what) in lists {
        let context = sample(("web", "node"), mode, ready, draining);
        fill(name, text, &context)
            .map_err(|error| format!("{}, with {what}", words(name, &error)))?;
    }
    Ok(())
}

/// What comes of a record's template for as many endpoints as there can be of a kind, as if they were those of this fleet on this node.
pub(super) fn try_each(
    (name, text): (&str, &str),
    of: (&str, &str),
    mode: PublishMode,
) -> Result<Vec<String>, String> {
    let ready = match mode {
        PublishMode::Node => 1,
        PublishMode::Worker => 2,
    };
    fill_each(name, text, &sample(of, mode, ready, 0)).map_err(|error| words(name, &error))
}

/// A list that there might be.
fn sample<'a>(
    (fleet, node): (&'a str, &'a str),
    mode: PublishMode,
    ready: u16,
    draining: u16,
) -> Context<'a> {
    let shown = |slot: u16, state: &'static str| Shown {
        id: match mode {
            PublishMode::Node => fleet.to_owned(),
            PublishMode::Worker => format!("{fleet}/{slot}"),
        },
        slot: (mode == PublishMode::Worker).then_some(u32::from(slot)),
        address: "127.0.0.1",
        port: 8_080 + slot,
        authority: format!("127.0.0.1:{}", 8_080 + slot),
        weight: u32::from(state == "ready"),
        state,
        revision: "0".repeat(16),
    };
    Context {
        fleet,
        node,
        mode,
        address: "127.0.0.1",
        endpoints: (0..ready).map(|slot| shown(slot, "ready")).collect(),
        draining: (ready..ready + draining)
            .map(|slot| shown(slot, "draining"))
            .collect(),
        ready: u32::from(ready),
        desired: 2,
        config_rev: "0".repeat(16),
    }
}
