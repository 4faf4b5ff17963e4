//! One page for all who scrape at once. It is made on a thread of its own, so that health is answered meanwhile.

use hyper::body::Bytes;
use tokio::sync::Mutex;

use crate::{
    http::{
        Engine, EngineError,
        meter::Meter,
        metrics::{self, Format, Scene},
    },
    sys::clock,
    time::{Moment, Stamp},
};

/// A page, and when its making began.
struct Shot {
    began: Moment,
    page: Bytes,
}

/// What was shown last, in each format.
#[derive(Default)]
struct Last {
    open: Option<Shot>,
    text: Option<Shot>,
}

/// Makes the pages of `/metrics`.
pub(super) struct Scrapes {
    started: Stamp,
    last: Mutex<Last>,
}

impl Scrapes {
    pub(super) fn new(started: Stamp) -> Self {
        Self {
            started,
            last: Mutex::default(),
        }
    }

    /// A page that was not begun before this call. One is made at a time; who waited for another's takes that if it is young enough.
    pub(super) async fn page(
        &self,
        format: Format,
        engine: &dyn Engine,
        meter: &Meter,
    ) -> Result<Bytes, EngineError> {
        let asked = clock::now();
        let mut last = self.last.lock().await;
        let shot = match format {
            Format::OpenMetrics => &mut last.open,
            Format::Text => &mut last.text,
        };
        if let Some(shot) = shot.as_ref().filter(|shot| shot.began >= asked) {
            return Ok(shot.page.clone());
        }
        let began = clock::now();
        let measures = engine.measures().await?;
        let usage = meter.now(&measures.status).await;
        let started = self.started;
        let made = tokio::task::spawn_blocking(move || {
            let usage = usage.workers.iter();
            let scene = Scene {
                measures: &measures,
                usage: &usage.map(|(id, one)| (id.clone(), one.usage)).collect(),
                now: clock::now(),
                started,
            };
            Bytes::from(metrics::render(&scene, format))
        });
        let page = made.await.expect("a page is made without a panic");
        *shot = Some(Shot {
            began,
            page: page.clone(),
        });
        Ok(page)
    }
}
