//! Objects that a server has from its first start on.

use std::sync::Arc;

use object_store::{Precondition, WriteError};
use serde_json::Value;

use crate::context::Context;
use crate::error::ApiError;
use crate::kinds::row::Row;
use crate::{change, object};

/// Creates a cluster-scoped object unless one of its name is there.
pub(crate) async fn ensure(
    context: &Arc<Context>,
    kind: &'static Row,
    mut new: Value,
) -> Result<(), ApiError> {
    let served = context.catalog.now().of(kind);
    let served = served.ok_or_else(|| ApiError::Internal(format!("the kind {} is not served", kind.kind)))?;
    let name = object::name(&new).to_owned();
    let key = served.key("", &name);
    if context.store.get(&key).is_some() {
        return Ok(());
    }
    new["apiVersion"] = (&*served.api_version).into();
    new["kind"] = kind.kind.into();
    let uid = context.options.uids.choose(&served, "", &name);
    change::begin(&served, &mut new, "", uid, clock::now())?;
    (kind.hooks.on_create)(&mut new, &**context)
        .map_err(|why| ApiError::forbidden(&served.kind, &name, why))?;
    match context.store.put(key, Precondition::Absent, object::encode(&new)).await {
        Ok(_) | Err(WriteError::Exists { .. }) => Ok(()),
        Err(error) => Err(ApiError::from_write(&served.kind, &name, error)),
    }
}
