//! Informers against servers that refuse, fall silent or send what can't be read.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod scripted;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use runtime::{Context, Metrics};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use scripted::{initial_end, list, map, refusal, scripted, watch};

fn context(client: Client) -> Context {
    Context::new(client, Metrics::new(), CancellationToken::new())
}

/// Waits until it holds; in paused time, so that nothing is waited for in vain.
async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(600), "not in time: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_informer_begins_again_whatever_the_server_answered() {
    // A refused stream, and then one refusal after the other, of the list and of the watch.
    let (client, _) = scripted([
        refusal(400, "BadRequest"),
        refusal(400, "BadRequest"),
        refusal(403, "Forbidden"),
        list(2, &[map("a", "1", 1)]),
        refusal(400, "BadRequest"),
        refusal(403, "Forbidden"),
        refusal(422, "Invalid"),
        refusal(500, "InternalError"),
        watch(&[("ADDED", map("b", "2", 3))]),
    ]);
    let informer = context(client).informers.of::<ConfigMap>();
    timeout(Duration::from_secs(60), informer.synced()).await.unwrap();
    soon("the watch", || informer.all().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_without_rights_is_not_ready_and_says_why() {
    let (client, requests) = scripted((0..60).map(|_| refusal(403, "Forbidden")));
    let context = context(client);
    assert_eq!(context.check_news(), Ok(()), "nothing is watched yet");
    let _informer = context.informers.of::<ConfigMap>();
    assert_eq!(context.check_news(), Err("ConfigMap not listed yet".to_owned()));
    soon("some tries", || requests.lock().len() > 10).await;
    let why = context.check_news().unwrap_err();
    assert!(why.starts_with("no news of ConfigMap for ") && why.ends_with("s: Forbidden"), "{why}");
    let page = context.metrics.encode();
    assert!(page.contains("informer_news_age_seconds{kind=\"ConfigMap\"} "), "{page}");
    assert!(page.contains("informer_failures_total{kind=\"ConfigMap\"} 1"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn rights_that_are_lost_later_make_it_unready_after_a_while() {
    let refused = (0..100).map(|_| refusal(403, "Forbidden"));
    let (client, requests) = scripted(
        [watch(&[("ADDED", map("a", "1", 1)), ("BOOKMARK", initial_end(2))])].into_iter().chain(refused),
    );
    let context = context(client);
    context.informers.of::<ConfigMap>().synced().await;
    assert_eq!(context.check_news(), Ok(()));
    soon("a few tries", || requests.lock().len() == 3).await;
    assert_eq!(context.check_news(), Ok(()), "that may be a moment");
    sleep(Duration::from_secs(60)).await;
    assert!(context.check_news().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_object_of_another_form_is_named_and_keeps_nobody_from_the_others() {
    let odd = |version: u32| {
        let mut odd = map("odd", "7", version);
        odd["data"] = json!(5);
        odd
    };
    for listed in [true, false] {
        let first = match listed {
            true => [refusal(422, "Invalid"), list(3, &[map("a", "1", 1), odd(2), map("b", "2", 3)])],
            false => [
                watch(&[("ADDED", map("a", "1", 1)), ("BOOKMARK", initial_end(2))]),
                watch(&[("ADDED", odd(2))]),
            ],
        };
        let again = watch(&[
            ("ADDED", map("a", "1", 1)),
            ("ADDED", odd(2)),
            ("ADDED", map("b", "2", 3)),
            ("BOOKMARK", initial_end(4)),
            ("MODIFIED", map("b", "2", 5)),
        ]);
        let (client, _) = scripted(first.into_iter().chain([again]));
        let context = context(client);
        let informer = context.informers.of::<ConfigMap>();
        let there = || informer.get("default", "b").is_some_and(|b| b.resource_version().unwrap() == "5");
        soon("the others", there).await;
        let names: Vec<_> = informer.all().iter().map(|object| object.name_any()).collect();
        assert_eq!(names, ["a", "b"]);
        let page = context.metrics.encode();
        assert!(page.contains("informer_unreadable{kind=\"ConfigMap\"} 1"), "{page}");
        assert_eq!(context.check_news(), Ok(()));
    }
}

/// A server that accepts, and never answers; how many requests it took.
fn silent() -> (Client, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    (Client::new(service, "default"), taken)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_asked_again_and_makes_the_process_unready() {
    let (client, taken) = silent();
    let context = context(client);
    let _informer = context.informers.of::<ConfigMap>();
    let start = Instant::now();
    let asked = Api::<ConfigMap>::default_namespaced(context.client.clone()).get("a").await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(60));
    assert!(runtime::explain(&asked).contains("no answer from the API server within 60 s"), "{asked}");
    soon("the informer's third try", || taken.load(Ordering::SeqCst) >= 4).await;
    let why = context.check_news().unwrap_err();
    assert!(why.contains("no answer from the API server within 60 s"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stops_in_the_middle_and_a_watch_that_falls_silent_end() {
    let watches = Arc::new(Mutex::new(Vec::new()));
    let begun = watches.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let begun = begun.clone();
        async move {
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let (_, text) = watch(&[("ADDED", map("a", "1", 1)), ("BOOKMARK", initial_end(2))]);
            let first = match watches {
                true => {
                    begun.lock().push(Instant::now());
                    Bytes::from(text)
                }
                false => Bytes::from_static(b"{\"apiVersion\":"),
            };
            let pieces = futures::stream::once(async { Ok::<_, Infallible>(Frame::data(first)) });
            let body = StreamBody::new(futures::StreamExt::chain(pieces, futures::stream::pending()));
            Ok::<_, Infallible>(Response::new(body.boxed_unsync()))
        }
    });
    let context = context(Client::new(service, "default"));
    let start = Instant::now();
    let cut = Api::<ConfigMap>::default_namespaced(context.client.clone()).get("a").await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(60), "{cut}");
    let informer = context.informers.of::<ConfigMap>();
    informer.synced().await;
    soon("two more watches", || watches.lock().len() >= 3).await;
    let silences: Vec<_> = watches.lock().windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(silences.iter().all(|silence| *silence == Duration::from_secs(150)), "{silences:?}");
    // The connection was as good as dead, but nothing was lost: no failure.
    assert_eq!(context.check_news(), Ok(()));
    assert!(context.metrics.encode().contains("informer_failures_total{kind=\"ConfigMap\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_not_begun_in_a_hot_loop() {
    let listed = watch(&[("ADDED", map("a", "1", 1)), ("BOOKMARK", initial_end(2))]);
    let (client, requests) = scripted([listed].into_iter().chain((0..5000).map(|_| watch(&[]))));
    let context = context(client);
    context.informers.of::<ConfigMap>().synced().await;
    sleep(Duration::from_secs(60)).await;
    let asked = requests.lock().len();
    assert!((50..=70).contains(&asked), "{asked} in a minute");
}
