//! What is logged and counted of a call: method, duration and code, and in the log the volume.

use crate::serve::Driver;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::future::Future;
use std::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{Instrument, Span, field};

/// A call's answer, as tonic's services give it.
pub(crate) type Answer<T> = Result<Response<T>, Status>;

type Labels = [(&'static str, String); 2];

/// How many calls there were and how long each took, by method and code; one handle may be shared by several drivers.
#[derive(Clone, Debug)]
pub struct Calls {
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for Calls {
    fn default() -> Self {
        // From half a millisecond to two minutes, which is the longest that a step may take.
        Self {
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 4.0, 10))),
        }
    }
}

impl Calls {
    /// The metric's name, as CSI's sidecars have it for their side of the calls.
    pub const NAME: &str = "csi_plugin_operations_seconds";
    /// What it is, for people.
    pub const HELP: &str = "CSI calls answered, by method and code, and how long they took";

    /// The metric, to be registered.
    pub fn metric(&self) -> impl prometheus_client::registry::Metric + use<> {
        self.seconds.clone()
    }

    fn count(&self, method: &'static str, code: Code, seconds: f64) {
        let method = format!("/csi.v1.{}/{method}", service(method));
        let labels = [("method_name", method), ("grpc_status_code", name(code))];
        self.seconds.get_or_create_owned(&labels).observe(seconds);
    }
}

/// The service that a method belongs to.
fn service(method: &str) -> &'static str {
    match method {
        "GetPluginInfo" | "GetPluginCapabilities" | "Probe" => "Identity",
        _ if method.starts_with("Node") => "Node",
        _ if method.contains("Group") => "GroupController",
        _ => "Controller",
    }
}

/// The UID of the claim that a volume was made for, from its name (`pvc-UID`) or id (`DRIVE/pvc-UID`): by it a claim is
/// followed through the logs of all that work on it.
fn claim_of(volume: &str) -> Option<&str> {
    volume.rsplit('/').next()?.strip_prefix("pvc-")
}

/// Whether a method changes nothing.
fn only_asks(method: &str) -> bool {
    method == "Probe" || ["Get", "List", "Validate"].iter().any(|word| method.contains(word))
}

/// A code as CSI's sidecars write it.
fn name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    }
}

impl Driver {
    /// Answers a call by `work`, logs how it went and counts it. Neither secrets nor any other content of the request
    /// get here.
    pub(crate) async fn answer<T>(
        &self,
        method: &'static str,
        volume: &str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Answer<T> {
        let claim = claim_of(volume);
        let span = tracing::info_span!(
            "csi",
            method,
            volume,
            claim,
            code = field::Empty,
            milliseconds = field::Empty
        );
        let mut call = Call {
            calls: &self.calls,
            method,
            span: span.clone(),
            started: Instant::now(),
            end: End::HungUp,
        };
        let answer = work.instrument(span).await;
        call.end = match &answer {
            Ok(_) => End::Answered,
            Err(status) => End::Refused(status.code(), status.message().to_owned()),
        };
        answer.map(Response::new)
    }
}

/// A call under way. Logged when it ends, which may be before there is an answer.
struct Call<'a> {
    calls: &'a Calls,
    method: &'static str,
    span: Span,
    started: Instant,
    end: End,
}

enum End {
    Answered,
    Refused(Code, String),
    HungUp,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.span.record("milliseconds", milliseconds);
        let code = match &self.end {
            End::Answered => Code::Ok,
            End::Refused(code, _) => *code,
            End::HungUp => Code::Cancelled,
        };
        self.span.record("code", field::debug(code));
        self.calls.count(self.method, code, elapsed.as_secs_f64());
        let _entered = self.span.enter();
        match &self.end {
            End::Answered if only_asks(self.method) => tracing::debug!("answered"),
            End::Answered => tracing::info!("answered"),
            End::Refused(_, why) => tracing::warn!("refused: {why}"),
            End::HungUp => tracing::warn!("the caller hung up; what was begun is finished"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_known_by_its_volumes_name_and_id() {
        const UID: &str = "1f5ad9d4-7a6b-4a3f-9a52-6a6d4cf0a0f1";
        assert_eq!(claim_of(&format!("pvc-{UID}")), Some(UID));
        assert_eq!(claim_of(&format!("0b1c/pvc-{UID}")), Some(UID));
        for other in ["", "0b1c", "0b1c/made-by-hand"] {
            assert_eq!(claim_of(other), None, "{other}");
        }
        assert!(
            !only_asks("NodePublishVolume") && only_asks("NodeGetVolumeStats") && only_asks("GetCapacity")
        );
    }

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let calls = Calls::default();
        for (method, code) in [
            ("CreateVolume", Code::Ok),
            ("CreateVolume", Code::Ok),
            ("CreateVolumeGroupSnapshot", Code::Cancelled),
            ("NodeGetInfo", Code::ResourceExhausted),
        ] {
            calls.count(method, code, 0.1);
        }
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register(Calls::NAME, Calls::HELP, calls.metric());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        for (method, code, count) in [
            ("Controller/CreateVolume", "OK", 2),
            ("GroupController/CreateVolumeGroupSnapshot", "Canceled", 1),
            ("Node/NodeGetInfo", "ResourceExhausted", 1),
        ] {
            let line = format!(
                "csi_plugin_operations_seconds_count{{method_name=\"/csi.v1.{method}\",grpc_status_code=\"{code}\"}} {count}"
            );
            assert!(text.contains(&line), "{text} lacks {line}");
        }
    }
}
