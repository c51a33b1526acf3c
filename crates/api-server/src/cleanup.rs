//! What happens to the objects of a definition that is being deleted.

use std::sync::Arc;

use object_store::{EventKind, Object, WriteError};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::change::Part;
use crate::context::{Context, Target};
use crate::definitions::current;
use crate::error::ApiError;
use crate::kinds::DEFINITION;
use crate::kinds::custom_resource_definition::CLEANUP;
use crate::object;
use crate::request::Query;
use crate::verbs::delete::{self, DeleteOptions};
use crate::verbs::write;

/// Cleans up after each definition that is asked for, all at the same time, until the server stops.
pub(crate) async fn run(context: Arc<Context>, mut asked: mpsc::UnboundedReceiver<String>) {
    let shutdown = context.shutdown.clone();
    while let Some(Some(name)) = shutdown.run_until_cancelled(asked.recv()).await {
        let context = context.clone();
        tokio::spawn(async move {
            let shutdown = context.shutdown.clone();
            let cleanup = Box::pin(clean_up(&context, &name));
            if let Some(Err(error)) = shutdown.run_until_cancelled(cleanup).await {
                tracing::warn!(definition = name, %error, "clean-up of a definition failed; it is tried again at the next start");
            }
            context.cleanups.done(&name);
        });
    }
}

/// Deletes the objects of a deleted definition, waits for their finalizers, then lets the definition go.
async fn clean_up(context: &Arc<Context>, name: &str) -> Result<(), ApiError> {
    if !current(context, name).is_some_and(|crd| object::is_deleting(&crd)) {
        return Ok(());
    }
    // The store keeps a definition's objects under the definition's own name, PLURAL.GROUP.
    let (page, mut changes) =
        context.store.list_and_watch(name, None, |_| true).map_err(|error| ApiError::from_list(error, 0))?;
    let mut left = page.objects.len();
    for found in page.objects {
        delete_object(context, found).await?;
    }
    while left > 0 {
        let event = changes.next().await.map_err(|end| ApiError::Unavailable(end.to_string()))?;
        match event.kind {
            EventKind::Deleted => left -= 1,
            // Made while the definition was still served.
            EventKind::Created => {
                left += 1;
                delete_object(context, event.object.clone()).await?;
            }
            EventKind::Updated => {}
        }
    }
    let without = |crd: &Value| {
        let mut crd = crd.clone();
        object::remove_finalizer(&mut crd, CLEANUP);
        Ok(crd)
    };
    let Some(served) = context.catalog.now().of(&DEFINITION) else { return Ok(()) };
    let target =
        Target { served, namespace: String::new(), name: name.to_owned(), subresource: None, page: None };
    match Box::pin(write::modify(context, &target, &Query::default(), Part::Main, without)).await {
        Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes one object of a definition that is being deleted.
async fn delete_object(context: &Arc<Context>, found: Object) -> Result<(), ApiError> {
    let served =
        context.catalog.now().all.iter().find(|served| served.resource == found.key.resource).cloned();
    let Some(served) = served else { return drop_unserved(context, found).await };
    let namespace = found.key.namespace.to_string();
    let one = Target { served, namespace, name: found.key.name.to_string(), subresource: None, page: None };
    match delete::delete_one(context, &one, &DeleteOptions::default()).await {
        Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes an object of a definition that can't be served: nobody could ever take its finalizers off.
async fn drop_unserved(context: &Context, found: Object) -> Result<(), ApiError> {
    tracing::warn!(key = %found.key, "an object of a definition that can't be served was removed with it");
    let last = found.value.clone();
    match context.store.delete(found.key, found.revision, Box::new(move |_| last)).await {
        Ok(_) | Err(WriteError::Missing) => Ok(()),
        Err(error) => Err(ApiError::Unavailable(format!("the object store can't take writes: {error}"))),
    }
}
