//! What the server serves: from a word that a user types, or a manifest's kind, to a REST path.

use anyhow::{Context, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList};

/// One served resource of one group and version.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    /// `v1` or `group/version`.
    api_version: String,
    resource: APIResource,
}

impl Resource {
    /// The collection's path, in `namespace` where the kind is namespaced.
    pub(super) fn path(&self, namespace: &str) -> String {
        let root = if self.api_version.contains('/') { "/apis" } else { "/api" };
        let scope = if self.resource.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
        format!("{root}/{}{scope}/{}", self.api_version, self.resource.name)
    }

    /// How kubectl names an object of this resource: `persistentvolumeclaim/data`, `drive.orlop.dev/x`.
    pub(super) fn display(&self, name: &str) -> String {
        let kind = self.resource.kind.to_lowercase();
        match self.api_version.split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{name}"),
            None => format!("{kind}/{name}"),
        }
    }

    fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    fn is_same_kind(&self, other: &Resource) -> bool {
        self.group() == other.group() && self.resource.name == other.resource.name
    }

    fn is_in(&self, category: &str) -> bool {
        let listed = self.resource.verbs.iter().any(|verb| verb == "list");
        listed && self.resource.categories.iter().flatten().any(|known| known == category)
    }

    fn answers_to(&self, word: &str) -> bool {
        let (group, resource) = (self.group(), &self.resource);
        resource.name == word
            || resource.singular_name == word
            || resource.kind.to_lowercase() == word
            || resource.short_names.iter().flatten().any(|short| short == word)
            || (!group.is_empty() && word == format!("{}.{group}", resource.name))
    }
}

/// All resources that the server serves.
pub(super) struct Catalog(Vec<Resource>);

impl Catalog {
    /// Asks the server; two requests and one per API group.
    pub(super) async fn load(client: &kube::Client) -> anyhow::Result<Catalog> {
        let mut lists =
            vec![client.list_core_api_resources("v1").await.context("the API server does not answer")?];
        for group in client.list_api_groups().await?.groups {
            for version in group.versions {
                lists.push(client.list_api_group_resources(&version.group_version).await?);
            }
        }
        Ok(Catalog(lists.into_iter().flat_map(resources).collect()))
    }

    /// The resource that a user's word means: plural, singular, kind or short name, any case.
    pub(super) fn word(&self, word: &str) -> anyhow::Result<&Resource> {
        let lower = word.to_lowercase();
        match self.0.iter().find(|resource| resource.answers_to(&lower)) {
            Some(resource) => Ok(resource),
            None => bail!("the server has no resource type {word:?}; `kubectl api-resources` lists them"),
        }
    }

    /// The resources that a user's words mean, separated by commas; a word may be a category, such as `all`.
    pub(super) fn words(&self, words: &str) -> anyhow::Result<Vec<&Resource>> {
        let mut found: Vec<&Resource> = Vec::new();
        for word in words.split(',') {
            let category: Vec<&Resource> = self.0.iter().filter(|resource| resource.is_in(word)).collect();
            let meant = if category.is_empty() { vec![self.word(word)?] } else { category };
            for resource in meant {
                // Every kind in one version only.
                if !found.iter().any(|known| known.is_same_kind(resource)) {
                    found.push(resource);
                }
            }
        }
        Ok(found)
    }

    /// The resource of a manifest.
    pub(super) fn manifest(&self, api_version: &str, kind: &str) -> anyhow::Result<&Resource> {
        let found = self.0.iter().find(|r| r.api_version == api_version && r.resource.kind == kind);
        found.with_context(|| {
            format!(
                "the server does not serve kind {kind:?} in version {api_version:?}; check both words, or apply its \
                 CustomResourceDefinition first"
            )
        })
    }
}

fn resources(list: APIResourceList) -> impl Iterator<Item = Resource> {
    let api_version = list.group_version;
    let main = list.resources.into_iter().filter(|resource| !resource.name.contains('/'));
    main.map(move |resource| Resource { api_version: api_version.clone(), resource })
}
