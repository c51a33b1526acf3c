//! One list and watch for ever, whatever goes wrong with it.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, InitialListStrategy};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::Feed;

/// The pause before a watch is begun from nothing again that ended though it must not.
const PAUSE: Duration = Duration::from_secs(1);

/// What an error of a watch asks for.
enum Verdict {
    /// The server can't stream its initial list: list in pages.
    Page,
    /// There is no such kind, or not yet: there are no objects of it.
    NotServed,
    /// An object is not of the kind's form.
    Form,
    /// What was watched from is too old: an ordinary thing.
    Outdated,
    /// To be told, by what was being done.
    Failure(&'static str),
}

fn verdict(error: &watcher::Error, streams: bool) -> Verdict {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        // A server without streaming lists answers 422 Invalid (or 400 from a proxy's view).
        WatchStartFailed(kube::Error::Api(status)) if streams && matches!(status.code, 400 | 422) => {
            Verdict::Page
        }
        WatchStartFailed(kube::Error::Api(status)) | InitialListFailed(kube::Error::Api(status))
            if status.code == 404 =>
        {
            Verdict::NotServed
        }
        WatchError(status) if status.code == 410 => Verdict::Outdated,
        WatchStartFailed(kube::Error::SerdeError(_))
        | InitialListFailed(kube::Error::SerdeError(_))
        | WatchFailed(kube::Error::SerdeError(_)) => Verdict::Form,
        // The client takes a line that it can't decode for a status without anything in it.
        WatchFailed(kube::Error::Api(status)) if status.code == 0 && status.message.is_empty() => {
            Verdict::Form
        }
        InitialListFailed(_) => Verdict::Failure("list"),
        WatchStartFailed(_) | WatchFailed(_) | WatchError(_) | NoResourceVersion => Verdict::Failure("watch"),
    }
}

/// What failed, without the words of those who only pass it on.
fn reason(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause) => crate::explain(cause),
        WatchError(status) => crate::explain(status),
        NoResourceVersion => crate::explain(error),
    }
}

/// Tells every change of a kind, and how well news of it arrives. With `strict`, it ends at the first object that is
/// not of the kind's form; else such objects are left out.
pub(crate) async fn follow<K>(
    feed: &Feed,
    api: Api<K>,
    mut config: watcher::Config,
    strict: bool,
    mut tell: impl FnMut(watcher::Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone,
{
    loop {
        let streams = config.initial_list_strategy == InitialListStrategy::StreamingList;
        let mut events = pin!(watch(api.clone(), config.clone()).default_backoff());
        let ended = loop {
            let Some(event) = events.next().await else { break None };
            let error = match event {
                Ok(event) => {
                    let complete = matches!(event, watcher::Event::InitDone);
                    tell(event);
                    if complete {
                        feed.complete();
                    }
                    continue;
                }
                Err(error) => error,
            };
            match verdict(&error, streams) {
                Verdict::Page => break Some(()),
                Verdict::NotServed => {
                    if feed.not_served() {
                        tell(watcher::Event::InitDone);
                    }
                }
                Verdict::Form if strict => return,
                Verdict::Outdated => {
                    tracing::debug!(kind = feed.kind(), "what was watched from is too old: listing again");
                }
                Verdict::Form => feed.failed("decode", reason(&error)),
                Verdict::Failure(doing) => feed.failed(doing, reason(&error)),
            }
        };
        match ended {
            Some(()) => {
                tracing::debug!(kind = feed.kind(), "the server can't stream lists: listing in pages");
                config.initial_list_strategy = InitialListStrategy::ListWatch;
            }
            None => {
                feed.failed("watch", "the watch ended for good".to_owned());
                sleep(PAUSE).await;
            }
        }
    }
}
