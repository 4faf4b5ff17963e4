//! The shell as a test holds it: orders in, news out, and a count of answers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use leasehold::{
    engine::cluster::rpc::{Call, CallId, Failure, News, Order, Reply, Request},
    etcd::{Etcd, Settings},
    sys::clock,
    time::{Clocks, Moment, Span},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    time::timeout,
};

use crate::rig::{Cluster, patient};

/// So long a call may take where a test does not say.
pub(crate) const WITHIN: Span = Span::secs(5);

pub(crate) struct Client {
    // First: the tasks end in their runtime.
    etcd: Option<Etcd>,
    runtime: Runtime,
    news: mpsc::UnboundedReceiver<News>,
    /// Heard and not asked for yet.
    kept: VecDeque<News>,
    /// Calls without an answer, and by when they must have one.
    open: BTreeMap<CallId, Moment>,
    last: u64,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) ordered: Clocks,
    pub(crate) sent: Clocks,
    pub(crate) result: Result<Reply, Failure>,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (tell, news) = mpsc::unbounded_channel();
        let hand_in = Arc::new(move |news| {
            let _ = tell.send(news);
        });
        Self {
            etcd: Some(Etcd::new(settings, hand_in).unwrap()),
            runtime,
            news,
            kept: VecDeque::new(),
            open: BTreeMap::new(),
            last: 0,
        }
    }

    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self::to(cluster.endpoints())
    }

    pub(crate) fn to(endpoints: Vec<String>) -> Self {
        Self::new(Settings {
            endpoints,
            ..Settings::default()
        })
    }

    pub(crate) fn obey(&mut self, order: Order) {
        let _inside = self.runtime.enter();
        self.etcd.as_mut().expect("it is there").obey(order);
    }

    /// Sends a call and does not wait.
    pub(crate) fn begin(&mut self, endpoint: usize, request: Request, within: Span) -> CallId {
        self.last += 1;
        let id = CallId(self.last);
        // An answer is due by then; a little later it is seen.
        let due = clock::now().after(within).after(patient(Span::millis(500)));
        self.open.insert(id, due);
        self.obey(Order::Call(Call {
            id,
            endpoint,
            request,
            within,
        }));
        id
    }

    pub(crate) fn watch(&mut self, endpoint: usize, prefix: &str, within: Span) -> CallId {
        self.last += 1;
        let id = CallId(self.last);
        self.obey(Order::Watch {
            id,
            endpoint,
            prefix: prefix.to_owned(),
            within,
        });
        id
    }

    /// The answer; every call has one, in time.
    pub(crate) fn answer(&mut self, call: CallId) -> Result<Reply, Failure> {
        self.answered(call).1
    }

    pub(crate) fn answered(&mut self, call: CallId) -> (Clocks, Result<Reply, Failure>) {
        let is_it = |news: &News| matches!(news, News::Answered { call: id, .. } if *id == call);
        match self.find(is_it, patient(Span::secs(60))) {
            Some(News::Answered { sent, result, .. }) => (sent, result),
            other => panic!("{call:?} has no answer: {other:?}"),
        }
    }

    pub(crate) fn call(&mut self, endpoint: usize, request: Request, within: Span) -> Answered {
        let ordered = clock::both();
        let call = self.begin(endpoint, request, within);
        let (sent, result) = self.answered(call);
        Answered {
            ordered,
            sent,
            result,
        }
    }

    pub(crate) fn ask(&mut self, endpoint: usize, request: Request) -> Result<Reply, Failure> {
        self.call(endpoint, request, WITHIN).result
    }

    /// The next of a watch.
    pub(crate) fn next_news(&mut self, watch: CallId, bound: Span) -> Option<News> {
        let is_of = |news: &News| match news {
            News::Watching { watch: id, .. }
            | News::Watched { watch: id, .. }
            | News::WatchEnded { watch: id, .. } => *id == watch,
            News::Answered { .. } => false,
        };
        self.find(is_of, bound)
    }

    /// The first news of a kind, from what was kept or within the bound.
    fn find(&mut self, wanted: impl Fn(&News) -> bool, bound: Span) -> Option<News> {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at);
        }
        let end = clock::now().after(bound);
        loop {
            let left = Duration::from(clock::now().until(end));
            let recv = async { timeout(left, self.news.recv()).await };
            let news = self.runtime.block_on(recv).ok()??;
            self.note(&news);
            if wanted(&news) {
                return Some(news);
            }
            self.kept.push_back(news);
        }
    }

    /// One answer for each call, and in time.
    fn note(&mut self, news: &News) {
        if let News::Answered { call, .. } = news {
            let due = self.open.remove(call);
            let due = due.unwrap_or_else(|| panic!("{call:?} is answered twice: {news:?}"));
            assert!(clock::now() <= due, "{call:?} is answered late: {news:?}");
        }
    }

    /// Lets time go by.
    pub(crate) fn pass(&mut self, span: Span) {
        // What nobody waits for is kept.
        let _ = self.find(|_| false, span);
    }

    /// Ends the shell; the answers of what was under way.
    pub(crate) fn end(&mut self) -> Vec<News> {
        drop(self.etcd.take());
        self.pass(Span::millis(50));
        self.kept.drain(..).collect()
    }

    /// Calls that have no answer yet.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.etcd.take());
    }
}
