//! An attempt that goes on by itself and has one outcome, for everybody who waits for it: also for those who come when it is over, and
//! whatever becomes of those who gave up waiting.

use tokio::{sync::watch, task::JoinSet};

use super::fault::Fault;

/// The attempt; ends with us.
pub(super) struct Flight<T> {
    outcome: Outcome<T>,
    _task: JoinSet<()>,
}

/// What comes of it.
pub(super) type Outcome<T> = watch::Receiver<Option<Result<T, Fault>>>;

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Begins.
    pub(super) fn begin(attempt: impl Future<Output = Result<T, Fault>> + Send + 'static) -> Self {
        let (tell, outcome) = watch::channel(None);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let outcome = attempt.await;
            tell.send_replace(Some(outcome));
        });
        Self {
            outcome,
            _task: task,
        }
    }

    /// What to wait for: of the attempt that there is, unless it failed, or else of a new one.
    pub(super) fn join(place: &mut Option<Self>, attempt: impl FnOnce() -> Self) -> Outcome<T> {
        match place.as_ref().filter(|flight| flight.is_of_use()) {
            Some(flight) => flight.outcome.clone(),
            None => place.insert(attempt()).outcome.clone(),
        }
    }

    /// Under way, or successful.
    fn is_of_use(&self) -> bool {
        match &*self.outcome.borrow() {
            Some(outcome) => outcome.is_ok(),
            None => self.outcome.has_changed().is_ok(),
        }
    }

    /// Did it come to this?
    pub(super) fn came_to(&self, is_it: impl FnOnce(&T) -> bool) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(found)) if is_it(found))
    }
}

/// Waits for it.
pub(super) async fn outcome<T: Clone>(mut of: Outcome<T>) -> Result<T, Fault> {
    let outcome = of.wait_for(Option::is_some).await;
    outcome
        .ok()
        .and_then(|outcome| outcome.clone())
        .unwrap_or_else(|| Err(Fault::broken("connecting was given up")))
}
