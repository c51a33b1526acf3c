//! Requests without a credential, with half of one, and in somebody else's name.

use http::{Method, Request, StatusCode};
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::common::{Orlop, Place};
use crate::tally::Tally;

const PATHS: [&str; 19] = [
    "/",
    "/api",
    "/apis",
    "/version",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/api/v1/nodes",
    "/api/v1/namespaces/default/secrets",
    "/api/v1/namespaces/default/secrets/x",
    "/api/v1/namespaces/default/pods/x/log",
    "/api/v1/namespaces/default/pods/x/exec",
    "/api/v1/persistentvolumes?watch=true",
    "/api/v1/namespaces/kube-system/configmaps",
    "/apis/storage.k8s.io/v1/storageclasses",
    "/apis/orlop.dev/v1alpha1/drives",
    "/api/v1/../../etc/passwd",
    "/api/v1/%2e%2e/secrets",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
];
const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn nothing_is_answered_without_a_whole_credential() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "300Mi"]);
    let mut tally = Tally::new("credentials");
    let token = std::fs::read_to_string(token_file(&place)).expect("the token").trim().to_owned();
    let half = token[..token.len() / 2].to_owned();
    let longer = format!("{token}x");
    let tokens = [None, Some(String::new()), Some(half), Some(longer), Some("null".to_owned())];
    for token in tokens {
        let client = with(&orlop, |auth| auth.token = token.clone().map(Into::into)).await;
        for path in PATHS {
            for method in METHODS {
                let status = ask(&client, method.clone(), path, &[]).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} with token {token:?}");
                tally.count("unauthorized");
            }
        }
    }
    let admin = orlop.client().await;
    // Names without rights have none, and half of an impersonation is none.
    for headers in [
        &[("impersonate-user", "bob")][..],
        &[("impersonate-user", "orlop-admin")],
        &[("impersonate-user", "bob"), ("impersonate-group", "friends")],
        &[("impersonate-group", "system:masters")],
        &[("impersonate-uid", "0")],
        &[("impersonate-extra-scopes", "all")],
    ] {
        let status = ask(&admin, Method::GET, "/api/v1/namespaces/default/secrets", headers).await;
        assert!(status.is_client_error(), "{headers:?} was answered {status} as if they were not there");
        tally.count("impersonation refused");
    }
    assert_eq!(ask(&admin, Method::GET, "/api/v1/nodes", &[]).await, StatusCode::OK);
    orlop.stop();
}

fn token_file(place: &Place) -> std::path::PathBuf {
    let found = crate::common::world::children(&place.data())
        .into_iter()
        .map(|directory| directory.join("token"))
        .find(|file| file.exists());
    found.expect("the data directory holds the token")
}

/// A client that trusts the server, with another credential than the administrator's.
async fn with(orlop: &Orlop, change: impl FnOnce(&mut AuthInfo)) -> Client {
    let mut kubeconfig = Kubeconfig::read_from(orlop.kubeconfig()).expect("a kubeconfig");
    let mut auth = AuthInfo::default();
    change(&mut auth);
    kubeconfig.auth_infos[0].auth_info = Some(auth);
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a valid kubeconfig")).expect("a client")
}

async fn ask(client: &Client, method: Method, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).expect("a request");
    client.send(request).await.expect("an answer").status()
}
