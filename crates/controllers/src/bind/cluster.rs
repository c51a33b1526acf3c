//! The API server as the binder sees it: few reads, few writes.

use std::future::Future;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Error, ResourceExt};

use super::step::Write;
use super::world::ClaimKey;

/// What a write left behind.
pub enum Written {
    /// The volume as it is now.
    Volume(Box<PersistentVolume>),
    /// The claim as it is now.
    Claim(Box<PersistentVolumeClaim>),
    /// Nothing: the object goes.
    Gone,
}

/// Where decisions are read from live and written to.
pub trait Cluster: Send + Sync {
    /// The claim as it is now, past every cache.
    fn claim(
        &self,
        key: &ClaimKey,
    ) -> impl Future<Output = Result<Option<PersistentVolumeClaim>, Error>> + Send;
    /// The volume as it is now, past every cache.
    fn volume(&self, name: &str) -> impl Future<Output = Result<Option<PersistentVolume>, Error>> + Send;
    /// Makes one write, if its object still is the one that was decided upon.
    fn write(&self, write: Write) -> impl Future<Output = Result<Written, Error>> + Send;
}

impl Cluster for Client {
    async fn claim(&self, key: &ClaimKey) -> Result<Option<PersistentVolumeClaim>, Error> {
        Api::namespaced(self.clone(), &key.namespace).get_opt(&key.name).await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, Error> {
        Api::all(self.clone()).get_opt(name).await
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        let volumes = Api::<PersistentVolume>::all(self.clone());
        let claims = |claim: &PersistentVolumeClaim| {
            Api::<PersistentVolumeClaim>::namespaced(self.clone(), &claim.namespace().unwrap_or_default())
        };
        let post = PostParams::default();
        let volume = |volume| Written::Volume(Box::new(volume));
        let claim = |claim| Written::Claim(Box::new(claim));
        match write {
            Write::Volume(v) => volumes.replace(&v.name_any(), &post, &v).await.map(volume),
            Write::VolumeStatus(v) => volumes.replace_status(&v.name_any(), &post, &v).await.map(volume),
            Write::CreateVolume(v) => volumes.create(&post, &v).await.map(volume),
            Write::DeleteVolume(v) => {
                let preconditions = Preconditions { uid: v.uid(), resource_version: None };
                let delete = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match volumes.delete(&v.name_any(), &delete).await {
                    Ok(_) => Ok(Written::Gone),
                    Err(Error::Api(status)) if status.is_not_found() => Ok(Written::Gone),
                    Err(error) => Err(error),
                }
            }
            Write::Claim(c) => claims(&c).replace(&c.name_any(), &post, &c).await.map(claim),
            Write::ClaimStatus(c) => claims(&c).replace_status(&c.name_any(), &post, &c).await.map(claim),
        }
    }
}

/// Makes a step's writes in order, each upon the version that the one before left behind. `filed` is told each result.
///
/// # Errors
/// The first write that failed; those after it were not made.
pub async fn write_all(
    cluster: &impl Cluster,
    writes: Vec<Write>,
    mut filed: impl FnMut(&Write, Written),
) -> Result<(), Error> {
    let mut volume_version: Option<(String, Option<String>)> = None;
    let mut claim_version: Option<String> = None;
    for mut write in writes {
        match &mut write {
            Write::Volume(volume) | Write::VolumeStatus(volume) | Write::DeleteVolume(volume) => {
                if let Some((name, version)) = &volume_version
                    && *name == volume.name_any()
                {
                    volume.metadata.resource_version.clone_from(version);
                }
            }
            Write::Claim(claim) | Write::ClaimStatus(claim) => {
                if claim_version.is_some() {
                    claim.metadata.resource_version.clone_from(&claim_version);
                }
            }
            Write::CreateVolume(_) => {}
        }
        let result = cluster.write(write.clone()).await?;
        match &result {
            Written::Volume(volume) => volume_version = Some((volume.name_any(), volume.resource_version())),
            Written::Claim(claim) => claim_version = claim.resource_version(),
            Written::Gone => {}
        }
        filed(&write, result);
    }
    Ok(())
}
