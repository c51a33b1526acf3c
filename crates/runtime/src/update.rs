use std::fmt::Debug;
use std::time::Duration;

use kube::api::PostParams;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Changes a copy of `seen` and writes it if that made a difference.
///
/// `None` means that nothing had to be written. The write carries the resourceVersion of `seen`, so a state that
/// changed meanwhile is answered with Conflict and left alone: decide again from the new state.
pub async fn update_if_changed<K>(
    api: &Api<K>,
    seen: &K,
    change: impl FnOnce(&mut K),
) -> Result<Option<K>, kube::Error>
where
    K: Resource + Clone + PartialEq + Serialize + DeserializeOwned + Debug,
{
    match changed(seen, change) {
        None => Ok(None),
        Some(new) => api.replace(&new.name_any(), &PostParams::default(), &new).await.map(Some),
    }
}

/// [`update_if_changed`] for the status of an object.
pub async fn update_status_if_changed<K>(
    api: &Api<K>,
    seen: &K,
    change: impl FnOnce(&mut K),
) -> Result<Option<K>, kube::Error>
where
    K: Resource + Clone + PartialEq + Serialize + DeserializeOwned + Debug,
{
    match changed(seen, change) {
        None => Ok(None),
        Some(new) => api.replace_status(&new.name_any(), &PostParams::default(), &new).await.map(Some),
    }
}

/// Reads an object live, changes it and writes it if that made a difference; again up to four times on Conflict.
///
/// For a change that is right whatever else changed (an own annotation, an own list entry). A decision that depends
/// on the rest of the object belongs to [`update_if_changed`].
pub async fn edit<K>(api: &Api<K>, name: &str, mut change: impl FnMut(&mut K)) -> Result<K, kube::Error>
where
    K: Resource + Clone + PartialEq + Serialize + DeserializeOwned + Debug,
{
    let mut pauses = [10, 50, 250].into_iter().map(Duration::from_millis);
    loop {
        let seen = api.get(name).await?;
        match update_if_changed(api, &seen, &mut change).await {
            Ok(written) => return Ok(written.unwrap_or(seen)),
            Err(kube::Error::Api(status)) if status.is_conflict() => match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(kube::Error::Api(status)),
            },
            Err(error) => return Err(error),
        }
    }
}

fn changed<K: Clone + PartialEq>(seen: &K, change: impl FnOnce(&mut K)) -> Option<K> {
    let mut new = seen.clone();
    change(&mut new);
    (new != *seen).then_some(new)
}
