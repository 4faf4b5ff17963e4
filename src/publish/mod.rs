//! What becomes of a fleet's list of endpoints outside of the engine: files, and the answer to HAProxy's agent-check. When something is
//! written, checked and reloaded is decided by the engine (`engine/sheet.rs`); commands are run by the keeper.
//!
//! | file | what |
//! | --- | --- |
//! | `render` | a list and a template become a text |
//! | `file` | a text gets into its place, whole or not at all |
//! | `agent` | HAProxy asks, on a thread of its own |

mod agent;
mod file;
mod render;

pub use agent::{Agents, word};
pub use file::Files;
pub use render::render;
