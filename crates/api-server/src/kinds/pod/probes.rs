//! Probes and life-cycle hooks of a container: what is asked, and when.

use serde_json::Value;

use super::super::{fields::text, violations::Violations};
use crate::schema::FieldError;

const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

pub(super) fn check(field: &str, container: &Value, violations: &mut Violations) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (field, probe) = (format!("{field}.{name}"), &container[name]);
        if probe.is_null() {
            continue;
        }
        check_handler(&field, probe, violations);
        for number in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            violations.not_negative(format!("{field}.{number}"), &probe[number]);
        }
        if name != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|count| count > 1) {
            violations.invalid(format!("{field}.successThreshold"), &probe["successThreshold"], "must be 1");
        }
    }
    for name in ["postStart", "preStop"] {
        let hook = &container["lifecycle"][name];
        if !hook.is_null() {
            check_handler(&format!("{field}.lifecycle.{name}"), hook, violations);
        }
    }
}

fn check_handler(field: &str, of: &Value, violations: &mut Violations) {
    let mut handlers = HANDLERS.iter().filter(|name| !of[**name].is_null());
    let Some(handler) = handlers.next() else {
        violations.add(FieldError::required(field, "must specify a handler type"));
        return;
    };
    for other in handlers {
        violations.forbid(format!("{field}.{other}"), "may not specify more than 1 handler type");
    }
    let (at, handler) = (format!("{field}.{handler}"), &of[*handler]);
    if !handler["port"].is_null() {
        check_port(&format!("{at}.port"), &handler["port"], violations);
    }
}

/// A port by number or by name.
fn check_port(field: &str, port: &Value, violations: &mut Violations) {
    match port.as_i64() {
        Some(number) if !(1..=65535).contains(&number) => {
            violations.invalid(field, port, "must be between 1 and 65535, inclusive");
        }
        Some(_) => {}
        None => check_port_name(field, port, violations),
    }
}

/// A port's name is one that IANA would take for a service.
pub(super) fn check_port_name(field: &str, name: &Value, violations: &mut Violations) {
    let given = text(name);
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    for (broken, detail) in [
        (given.len() > 15, "must be no more than 15 characters"),
        (!given.bytes().all(known), "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        (!given.bytes().any(|byte| byte.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (given.contains("--"), "must not contain consecutive hyphens"),
        (given.starts_with('-') || given.ends_with('-'), "must not begin or end with a hyphen"),
    ] {
        if broken {
            violations.invalid(field, name, detail);
        }
    }
}
