//! One watch, from opening to end. Each has a stream of its own. Nothing is resumed: whoever was told of the end asks anew.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::time::timeout;

use super::{
    HandIn,
    call::ANSWER_MAX,
    fault::Fault,
    line::Line,
    link::{Link, UnderWay},
    words,
};
use crate::{
    engine::cluster::rpc::{CallId, Failure, Header, News},
    time::Span,
};

/// What is said of a watch; its end exactly once, also when it is dropped, unless nothing more is to be said.
pub(super) struct Voice {
    watch: CallId,
    hand_in: HandIn,
    hushed: Arc<AtomicBool>,
}

impl Voice {
    pub(super) fn new(watch: CallId, hand_in: HandIn, hushed: Arc<AtomicBool>) -> Self {
        Self {
            watch,
            hand_in,
            hushed,
        }
    }

    fn say(&self, news: News) {
        if !self.hushed.load(Ordering::SeqCst) {
            (self.hand_in)(news);
        }
    }

    /// It is over.
    pub(super) fn end(self, why: Failure) {
        self.say_end(why);
    }

    fn say_end(&self, why: Failure) {
        if !self.hushed.swap(true, Ordering::SeqCst) {
            (self.hand_in)(News::WatchEnded {
                watch: self.watch,
                why,
            });
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.say_end(Failure::Unreachable("watching was given up".to_owned()));
    }
}

/// Opens it and tells what it sees.
pub(super) async fn watch(line: Arc<Line>, prefix: String, within: Span, voice: Voice) {
    let mut way = UnderWay::new();
    let opened = timeout(Duration::from(within), open(&line, &prefix, &mut way)).await;
    let (link, mut stream, from) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(failure)) => return voice.end(failure),
        Err(_) => {
            line.had_no_answer(&way);
            return voice.end(Failure::Unanswered(within));
        }
    };
    drop(way);
    let watch = voice.watch;
    voice.say(News::Watching { watch, from });
    let fault = loop {
        match stream.message().await {
            Ok(Some(told)) => {
                link.was_heard();
                if let Err(fault) = seen(&told) {
                    break fault;
                }
                for (revision, changes) in words::changes(&told) {
                    voice.say(News::Watched {
                        watch,
                        revision,
                        changes,
                    });
                }
            }
            Ok(None) => break ended(),
            Err(error) => break error.into(),
        }
    };
    line.blame(&link, &fault);
    voice.end(line.why(&link, fault));
}

fn ended() -> Fault {
    Fault::broken("the stream of the watch ended")
}

/// Is it over?
fn seen(told: &WatchResponse) -> Result<(), Fault> {
    if told.compact_revision() > 0 {
        return Err(Fault::said(Failure::Compacted));
    }
    if told.canceled() {
        return Err(Fault::of_reason(told.cancel_reason()));
    }
    Ok(())
}

/// Once, and once more on another connection where the first one was gone before anything was sent, or its token was.
async fn open(
    line: &Line,
    prefix: &str,
    way: &mut UnderWay,
) -> Result<(Arc<Link>, WatchStream, Header), Failure> {
    let mut again = true;
    loop {
        let link = line.link().await.map_err(|fault| fault.failure)?;
        match open_on(&link, prefix, way).await {
            Ok((stream, from)) => return Ok((link, stream, from)),
            Err(fault) => {
                if !(line.blame(&link, &fault) && again) {
                    return Err(line.why(&link, fault));
                }
                again = false;
            }
        }
    }
}

/// Open is it only when etcd says that it is: a stream that was accepted may still bring a refusal.
async fn open_on(
    link: &Arc<Link>,
    prefix: &str,
    way: &mut UnderWay,
) -> Result<(WatchStream, Header), Fault> {
    let client = way.sets_out_as_ourselves(link).await?.watch_client();
    let mut client = client.max_decoding_message_size(ANSWER_MAX);
    let options = WatchOptions::new().with_prefix();
    let mut stream = client.watch(prefix, Some(options)).await?;
    let Some(told) = stream.message().await? else {
        return Err(ended());
    };
    link.was_heard();
    seen(&told)?;
    match told.header() {
        Some(header) if told.created() => Ok((stream, words::header(header))),
        _ => Err(Fault::broken("it does not say that it watches")),
    }
}
