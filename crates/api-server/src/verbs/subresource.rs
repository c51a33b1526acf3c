//! Subresources that only one kind has, as its row describes them.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::delete::{self, DeleteOptions};
use super::write;
use crate::answer::{self, Answer};
use crate::body::Payload;
use crate::change::Part;
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::kinds::row::Refusal;
use crate::request::Query;

/// Answers a create of something that changes the object once, such as a binding.
pub(crate) async fn change(
    context: &Arc<Context>,
    target: &Target,
    query: &Query,
    payload: &Payload,
    check: fn(&Value) -> Result<(), Refusal>,
    make: fn(&Value, &Value) -> Result<Value, Refusal>,
) -> Result<Answer, ApiError> {
    let refused = |refusal| match refusal {
        Refusal::Malformed(why) => ApiError::BadRequest(why),
        Refusal::Conflict(why) => ApiError::conflict(&target.served.kind, &target.name, why),
    };
    let (sent, _) = payload.value()?;
    check(&sent).map_err(refused)?;
    let part = Part::Binding;
    write::modify(context, target, query, part, |old| make(old, &sent).map_err(refused)).await?;
    Ok(success(StatusCode::CREATED))
}

/// Answers an eviction: there are no disruption budgets here, so it is a delete.
pub(crate) async fn evict(
    context: &Arc<Context>,
    target: &Target,
    query: &Query,
    payload: &Payload,
) -> Result<Answer, ApiError> {
    let (eviction, _) = payload.value()?;
    let options = &eviction["deleteOptions"];
    let options = DeleteOptions {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
        dry_run: query.dry_run || options["dryRun"].as_array().is_some_and(|list| !list.is_empty()),
        ..Default::default()
    };
    delete::delete_one(context, target, &options).await?;
    Ok(success(StatusCode::CREATED))
}

fn success(code: StatusCode) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    answer::json(code, &status)
}
