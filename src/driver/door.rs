//! The HTTP thread's way to the engine.

use tokio::sync::{mpsc, oneshot};

use crate::{
    driver::inbox::Inbox,
    engine::{
        command::{Command, Denial, Reply},
        status::Status,
    },
    http::{self, Engine, EngineError},
};

/// Asks over the inbox; an engine that is gone answers nothing.
pub(super) struct Door {
    pub(super) hand_in: mpsc::UnboundedSender<Inbox>,
}

impl Engine for Door {
    fn command(&self, command: Command) -> http::Answer<Result<Reply, Denial>> {
        self.ask(|client| Inbox::Command(command, client))
    }

    fn status(&self) -> http::Answer<Status> {
        self.ask(Inbox::Status)
    }

    fn measures(&self) -> http::Answer<Box<http::Measures>> {
        self.ask(Inbox::Measures)
    }

    fn config(&self) -> http::Answer<Box<crate::config::Config>> {
        self.ask(Inbox::Config)
    }
}

impl Door {
    fn ask<T: Send + 'static>(
        &self,
        item: impl FnOnce(oneshot::Sender<T>) -> Inbox,
    ) -> http::Answer<T> {
        let (client, answer) = oneshot::channel();
        let sent = self.hand_in.send(item(client));
        Box::pin(async move {
            sent.map_err(|_| EngineError::Gone)?;
            answer.await.map_err(|_| EngineError::Gone)
        })
    }
}
