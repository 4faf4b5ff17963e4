//! A node that takes no work: everything on it is stopped against the dependencies, what it has of the cluster goes to others, and it stays
//! so over restarts and reboots until an operator says otherwise. What was held before is held afterwards.

use crate::{
    engine::{
        command::{By, Denial, Reply},
        effect::{Effects, Subject, What},
        intent::Hold,
        operate::Change,
        supervisor::Supervisor,
    },
    exit::ExitCode,
    id::RequestId,
};

impl Supervisor {
    pub(super) fn drain_node(
        &mut self,
        request: RequestId,
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        if self.intent.node.is_some() {
            return Ok(Some(Reply::AlreadySo));
        }
        let mut intent = self.intent.clone();
        let who = by.who.clone();
        intent.node = Some(Hold {
            who: by.who,
            when: by.when,
        });
        let change = Change {
            intent,
            records: vec![(Subject::Node, What::Drained { who })],
            forgive: false,
        };
        Ok(self.save(Some(request), Vec::new(), change, out))
    }

    pub(super) fn undrain_node(
        &mut self,
        request: RequestId,
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        if self.intent.node.is_none() {
            return Ok(Some(Reply::AlreadySo));
        }
        let mut intent = self.intent.clone();
        intent.node = None;
        let change = Change {
            intent,
            records: vec![(Subject::Node, What::Undrained { who: by.who })],
            forgive: false,
        };
        Ok(self.save(Some(request), Vec::new(), change, out))
    }

    /// Nothing is started on a node that takes no work.
    pub(super) fn not_drained(&self) -> Result<(), Denial> {
        match &self.intent.node {
            None => Ok(()),
            Some(Hold { who, when }) => {
                let why = format!(
                    "the node takes no work: drained by {who} at {when}; `leasehold undrain` ends that"
                );
                Err(Denial::new(ExitCode::Conflict, why))
            }
        }
    }
}
