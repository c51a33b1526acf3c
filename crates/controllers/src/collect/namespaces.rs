//! The end of namespaces: everything in one goes, then the namespace itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use runtime::{Context, Next, Queue, update_status_if_changed};

use super::kinds::Kinds;

/// Namespaces emptied side by side.
const CONCURRENCY: usize = 4;
/// The finalizer, in a namespace's spec, that is ours to take off.
const FINALIZER: &str = "kubernetes";
/// When to look again at a namespace whose objects take their time: pods end, finalizers are worked off.
const REMAINING: Duration = Duration::from_millis(500);

/// Empties and ends deleted namespaces until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<String>::new("namespaces", &context.metrics);
    let informer = context.informers.namespaces();
    informer.subscribe({
        let queue = queue.clone();
        move |change| {
            let namespace = change.object();
            if namespace.metadata.deletion_timestamp.is_some() {
                queue.add(namespace.name_any());
            }
        }
    });
    if context.shutdown.run_until_cancelled(informer.synced()).await.is_none() {
        return;
    }
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |name| {
        let namespace = informer.get("", &name);
        let context = &context;
        Box::pin(async move {
            match namespace.filter(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
                Some(namespace) => end(context, &namespace).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}

/// What is left of a kind.
struct Rest {
    resource: String,
    objects: usize,
    finalizers: Vec<String>,
}

async fn end(context: &Context, namespace: &Namespace) -> Result<Next, kube::Error> {
    let ours = |namespace: &Namespace| {
        let finalizers =
            namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
        finalizers.iter().any(|name| name == FINALIZER)
    };
    if !ours(namespace) {
        return Ok(Next::Done);
    }
    let rest = empty(context, &namespace.name_any()).await?;
    let api = Api::<Namespace>::all(context.client.clone());
    let conditions = conditions(&rest);
    let written = if rest.is_empty() {
        let mut last = namespace.clone();
        last.spec.get_or_insert_default().finalizers.get_or_insert_default().retain(|name| name != FINALIZER);
        api.replace_subresource("finalize", &namespace.name_any(), &PostParams::default(), &last)
            .await
            .map(drop)
    } else {
        update_status_if_changed(&api, namespace, |namespace| merge(namespace, conditions)).await.map(drop)
    };
    match written {
        Ok(()) if rest.is_empty() => Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Next::After(REMAINING)),
        Ok(()) => Ok(Next::After(REMAINING)),
        Err(error) => Err(error),
    }
}

/// Deletes everything in a namespace; what is still there.
async fn empty(context: &Context, namespace: &str) -> Result<Vec<Rest>, kube::Error> {
    let kinds = Kinds::default();
    kinds.discover(&context.client).await?;
    let mut rest = Vec::new();
    for kind in kinds.all().into_iter().filter(|kind| kind.namespaced) {
        let api = kind.api(&context.client, namespace);
        if api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
            continue;
        }
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        let left = api.list_metadata(&ListParams::default()).await?.items;
        if !left.is_empty() {
            let mut finalizers: Vec<_> =
                left.iter().flat_map(|object| object.finalizers().to_vec()).collect();
            finalizers.sort();
            finalizers.dedup();
            let group = Some(&kind.resource.group).filter(|group| !group.is_empty());
            let resource = group.map_or_else(
                || kind.resource.plural.clone(),
                |group| format!("{}.{group}", kind.resource.plural),
            );
            rest.push(Rest { resource, objects: left.len(), finalizers });
        }
    }
    Ok(rest)
}

/// What the namespace says about what is left.
fn conditions(rest: &[Rest]) -> Vec<(&'static str, &'static str, String)> {
    let objects: Vec<_> = rest
        .iter()
        .map(|rest| format!("{} has {} resource instances", rest.resource, rest.objects))
        .collect();
    let mut finalizers: Vec<_> = rest.iter().flat_map(|rest| rest.finalizers.clone()).collect();
    finalizers.sort();
    finalizers.dedup();
    let mut conditions = vec![(
        "NamespaceContentRemaining",
        "SomeResourcesRemain",
        format!("Some resources are remaining: {}", objects.join(", ")),
    )];
    if !finalizers.is_empty() {
        conditions.push((
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", ")),
        ));
    }
    conditions
}

fn merge(namespace: &mut Namespace, wanted: Vec<(&'static str, &'static str, String)>) {
    let conditions = namespace.status.get_or_insert_default().conditions.get_or_insert_default();
    for (type_, reason, message) in wanted {
        let known = conditions.iter_mut().find(|known| known.type_ == type_ && known.status == "True");
        match known {
            Some(known) => {
                known.reason = Some(reason.to_owned());
                known.message = Some(message);
            }
            None => {
                conditions.retain(|known| known.type_ != type_);
                conditions.push(NamespaceCondition {
                    type_: type_.to_owned(),
                    status: "True".to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message),
                    last_transition_time: Some(Time(clock::now())),
                });
            }
        }
    }
}
