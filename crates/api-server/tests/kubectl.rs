//! The real kubectl against the server, over TLS.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use api_server::{ApiServer, Credentials, Options};
use futures::StreamExt;
use object_store::Store;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// A server on a free port, with its kubeconfig.
struct Cluster {
    directory: tempfile::TempDir,
    url: String,
    credentials: Credentials,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let credentials = Credentials::open(&directory.path().join("pki"), &hosts).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        credentials.write_kubeconfig(&directory.path().join("kubeconfig"), &url, None).unwrap();
        let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (credentials, shutdown) = (credentials.clone(), shutdown.clone());
            async move { api.serve(listener, credentials, shutdown).await }
        });
        Self { directory, url, credentials, shutdown, serving }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs kubectl; its output and whether it succeeded.
    async fn try_kubectl(&self, arguments: &[&str], editor: Option<&Path>) -> (bool, String) {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).arg("--cache-dir").arg(self.path("cache"));
        command.args(arguments).kill_on_drop(true);
        if let Some(editor) = editor {
            command.env("KUBE_EDITOR", editor);
        }
        let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    async fn kubectl(&self, arguments: &[&str]) -> String {
        let (good, text) = self.try_kubectl(arguments, None).await;
        assert!(good, "kubectl {arguments:?}: {text}");
        text
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

/// Whether kubectl is here; its absence is loud, and a failure under `CI=true`.
fn kubectl_missing() -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("kubectl").is_file())
    });
    if !found {
        eprintln!("NOT TESTED: kubectl is not installed, so nothing shows that it works with the server");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "kubectl is required under CI=true");
    }
    !found
}

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: fast
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: example.com/driver
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  containers:
  - name: main
    image: host
    command: [sleep, "60"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: data}
"#;

#[tokio::test]
async fn kubectl_works() {
    if kubectl_missing() {
        return;
    }
    let cluster = Cluster::start().await;
    let manifest = cluster.path("all.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    let file = manifest.to_str().unwrap();

    let applied = cluster.kubectl(&["apply", "-f", file]).await;
    assert_eq!(applied.matches("created").count(), 4, "{applied}");
    let again = cluster.kubectl(&["apply", "-f", file]).await;
    assert_eq!(again.matches("unchanged").count(), 4, "{again}");
    std::fs::write(&manifest, MANIFEST.replace("blue", "red")).unwrap();
    let changed = cluster.kubectl(&["apply", "-f", file]).await;
    assert!(changed.contains("configmap/settings configured"), "{changed}");
    assert_eq!(cluster.kubectl(&["get", "cm", "settings", "-o", "jsonpath={.data.color}"]).await, "red");

    let table = cluster.kubectl(&["get", "pods,pvc,sc"]).await;
    for word in ["pod/writer", "persistentvolumeclaim/data", "storageclass.storage.k8s.io/fast", "Pending"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).await;
    let yaml = cluster.kubectl(&["get", "pvc", "data", "-o", "yaml"]).await;
    assert!(
        yaml.contains("storageClassName: fast") && yaml.contains("kubernetes.io/pvc-protection"),
        "{yaml}"
    );
    cluster.kubectl(&["get", "pods", "-l", "a=b", "-o", "json"]).await;
    for kind in ["pod/writer", "pvc/data", "sc/fast", "cm/settings", "ns/default"] {
        cluster.kubectl(&["describe", kind]).await;
    }

    cluster.kubectl(&["label", "pvc", "data", "tier=db"]).await;
    cluster.kubectl(&["annotate", "pod", "writer", "note=hello"]).await;
    assert!(cluster.kubectl(&["get", "pvc", "-l", "tier=db"]).await.contains("data"));
    cluster.kubectl(&["patch", "cm", "settings", "-p", r#"{"data":{"size":"big"}}"#]).await;
    cluster.kubectl(&["patch", "cm", "settings", "--type", "merge", "-p", r#"{"data":{"size":null}}"#]).await;
    let operations = r#"[{"op":"add","path":"/data/shape","value":"round"}]"#;
    cluster.kubectl(&["patch", "cm", "settings", "--type", "json", "-p", operations]).await;
    let data = cluster.kubectl(&["get", "cm", "settings", "-o", "jsonpath={.data}"]).await;
    assert_eq!(data, r#"{"color":"red","shape":"round"}"#);

    let editor = cluster.path("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i s/round/square/ \"$1\"\n").unwrap();
    std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (good, edited) = cluster.try_kubectl(&["edit", "cm", "settings"], Some(&editor)).await;
    assert!(good && edited.contains("edited"), "{edited}");
    cluster.kubectl(&["wait", "--for=jsonpath={.data.shape}=square", "cm/settings", "--timeout=5s"]).await;

    let (good, text) = cluster.try_kubectl(&["create", "cm", "settings"], None).await;
    assert!(!good && text.contains("configmaps \"settings\" already exists"), "{text}");
    std::fs::write(&manifest, MANIFEST.replace("color: blue", "color: blue}\nimmutible: {a: b")).unwrap();
    let (good, text) = cluster.try_kubectl(&["apply", "-f", file], None).await;
    assert!(!good && text.contains("unknown field \"immutible\""), "{text}");

    let (_, deleted) = tokio::join!(
        cluster.kubectl(&["wait", "--for=delete", "pod/writer", "--timeout=10s"]),
        cluster.kubectl(&["delete", "pod", "writer"])
    );
    assert!(deleted.contains("\"writer\" deleted"), "{deleted}");
    cluster.kubectl(&["delete", "cm,sc", "--all"]).await;
    assert!(cluster.kubectl(&["auth", "can-i", "create", "pods"]).await.contains("yes"));
    assert!(cluster.kubectl(&["api-resources"]).await.contains("persistentvolumeclaims"));
    for create in [
        ["create", "namespace", "other", "-o=name"],
        ["create", "configmap", "made", "--from-literal=a=b"],
        ["create", "serviceaccount", "robot", "-o=name"],
    ] {
        cluster.kubectl(&create).await;
    }
    cluster.kubectl(&["version"]).await;
    cluster.kubectl(&["explain", "pvc.spec"]).await;
    cluster.stop().await;
}

const MIXED: &str = r#"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: in-list}
---
apiVersion: v1
kind: ConfigMapList
items:
- metadata: {name: in-typed-list}
---
apiVersion: example.org/v1
kind: Foo
metadata: {name: foreign}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: after}
"#;

#[tokio::test]
async fn lists_apply_and_foreign_kinds_stop_nothing() {
    if kubectl_missing() {
        return;
    }
    let cluster = Cluster::start().await;
    let manifest = cluster.path("mixed.yaml");
    std::fs::write(&manifest, MIXED).unwrap();
    let (good, text) = cluster.try_kubectl(&["apply", "-f", manifest.to_str().unwrap()], None).await;
    assert!(!good && text.contains("no matches for kind \"Foo\" in version \"example.org/v1\""), "{text}");
    assert_eq!(text.matches("created").count(), 3, "{text}");
    // It lists kinds that are not served, too.
    let dump = cluster.kubectl(&["cluster-info", "dump"]).await;
    assert!(dump.contains("DeploymentList") && dump.contains("PodList"), "{dump:.500}");
    let explained = cluster.kubectl(&["explain", "--output=plaintext-openapiv2", "pvc.spec"]).await;
    assert!(explained.contains("accessModes\t<[]string>"), "{explained}");
    cluster.stop().await;
}

#[tokio::test]
async fn nothing_is_answered_without_a_credential() {
    let cluster = Cluster::start().await;
    let ca = kube::config::Kubeconfig::read_from(cluster.path("kubeconfig")).unwrap();
    let base = kube::Config::from_custom_kubeconfig(ca, &Default::default()).await.unwrap();
    let with = |auth: kube::config::AuthInfo| {
        let mut config = base.clone();
        config.auth_info = auth;
        kube::Client::try_from(config).unwrap()
    };
    let bearer =
        |token: &str| kube::config::AuthInfo { token: Some(token.to_owned().into()), ..Default::default() };
    for stranger in [with(Default::default()), with(bearer("wrong"))] {
        for path in ["/version", "/healthz", "/api/v1/pods", "/openapi/v2", "/nothing"] {
            let request = http::Request::get(path).body(Vec::new()).unwrap();
            match stranger.request_text(request).await {
                Err(kube::Error::Api(status)) => {
                    assert_eq!((status.code, &*status.reason), (401, "Unauthorized"))
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }
    for friend in [with(base.auth_info.clone()), with(bearer(cluster.credentials.token()))] {
        friend.apiserver_version().await.unwrap();
    }
    assert!(cluster.url.starts_with("https://127.0.0.1:"));
    cluster.stop().await;
}

#[tokio::test]
async fn watches_end_when_the_server_stops() {
    let cluster = Cluster::start().await;
    let kubeconfig = kube::config::Kubeconfig::read_from(cluster.path("kubeconfig")).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::all(client);
    let mut events = Box::pin(pods.watch(&kube::api::WatchParams::default(), "0").await.unwrap());
    let ended = tokio::spawn(async move { while let Some(Ok(_)) = events.next().await {} });
    let stopped = async {
        cluster.stop().await;
        ended.await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(4), stopped).await.expect("the server stops without waiting");
}

#[tokio::test]
async fn plain_http_and_silence_do_not_hold_up_others() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = Cluster::start().await;
    let address = cluster.url.trim_start_matches("https://").to_owned();
    let _silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    let mut plain = tokio::net::TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"GET /version HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), plain.read_to_end(&mut answer)).await;
    assert!(read.is_ok() && !answer.starts_with(b"HTTP"), "nothing is said without TLS");
    cluster.stop().await;
}
