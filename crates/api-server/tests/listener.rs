//! The listener from outside, over TLS: strangers, certificates, tokens, and answers to what was not read.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api_server::{ApiServer, Credentials, Options};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use object_store::Store;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Served {
    directory: tempfile::TempDir,
    address: std::net::SocketAddr,
    credentials: Credentials,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Who a client is.
enum As<'a> {
    Nobody,
    Token(&'a str),
    /// A certificate and its key, as PEM.
    Certificate(String, String),
}

impl Served {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let credentials =
            Credentials::open(&directory.path().join("pki"), &["127.0.0.1".to_owned()]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options { stranger_timeout: Duration::from_secs(3), ..Options::default() };
        let api = ApiServer::start(Store::in_memory(), options).await.unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (credentials, shutdown) = (credentials.clone(), shutdown.clone());
            async move { api.serve(listener, credentials, shutdown).await }
        });
        Self { directory, address, credentials, shutdown, serving }
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join("pki").join(name)).unwrap()
    }

    fn admin(&self) -> As<'_> {
        As::Certificate(self.file("admin.crt"), self.file("admin.key"))
    }

    async fn connect(&self, who: &As<'_>, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.credentials.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match who {
            As::Certificate(certificate, key) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// A request over a connection of its own; the code and the body.
    async fn ask<B>(&self, who: &As<'_>, protocol: &str, request: Request<B>) -> (StatusCode, String)
    where
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
    {
        let stream = TokioIo::new(self.connect(who, protocol).await.unwrap());
        let mut request = request;
        if let As::Token(token) = who {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let answer = if protocol == "h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            *request.uri_mut() = format!("https://127.0.0.1{}", request.uri()).parse().unwrap();
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            request.headers_mut().insert(header::HOST, "127.0.0.1".parse().unwrap());
            sender.send_request(request).await.unwrap()
        };
        let code = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, who: &As<'_>, path: &str) -> (StatusCode, String) {
        self.ask(who, "h2", Request::get(path).body(Full::<Bytes>::default()).unwrap()).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

/// A certificate of the server's own authority.
fn signed(served: &Served, name: &str, group: Option<&str>) -> As<'static> {
    let authority = rcgen::KeyPair::from_pem(&served.file("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&served.file("ca.crt"), authority).unwrap();
    let mut params = rcgen::CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    As::Certificate(certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn a_credential_is_whole_and_of_the_group_or_has_no_rights() {
    let served = Served::start().await;
    let token = served.credentials.token().to_owned();
    let half = &token[..token.len() / 2];
    let secrets = "/api/v1/secrets";
    for (who, expected) in [
        (served.admin(), StatusCode::OK),
        (As::Token(&token), StatusCode::OK),
        (As::Token(half), StatusCode::UNAUTHORIZED),
        (As::Token(""), StatusCode::UNAUTHORIZED),
        (As::Nobody, StatusCode::UNAUTHORIZED),
        (signed(&served, "eve", None), StatusCode::FORBIDDEN),
        (signed(&served, "eve", Some("system:nodes")), StatusCode::FORBIDDEN),
        (signed(&served, "second-admin", Some("system:masters")), StatusCode::OK),
    ] {
        let (code, body) = served.get(&who, secrets).await;
        assert_eq!(code, expected, "{body}");
    }
    let eve = signed(&served, "eve", None);
    let (_, body) = served.get(&eve, secrets).await;
    assert!(body.contains(r#"User \"eve\" cannot list resource \"secrets\""#), "{body}");
    assert_eq!(served.get(&eve, "/version").await.0, StatusCode::OK);
    let impersonating =
        Request::get(secrets).header("impersonate-user", "bob").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(served.ask(&served.admin(), "h2", impersonating).await.0, StatusCode::FORBIDDEN);
    served.stop().await;
}

#[tokio::test]
async fn what_is_refused_before_its_body_was_read_is_answered_all_the_same() {
    let served = Served::start().await;
    let token = served.credentials.token().to_owned();
    // Some clients take it for a failure when the stream ends before they have sent all.
    const CHUNKS: usize = 64;
    let sent = Arc::new(AtomicUsize::new(0));
    let large = || {
        let sent = sent.clone();
        let chunks = futures::stream::iter(0..CHUNKS).map(move |_| {
            sent.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(vec![b'x'; 64 << 10])))
        });
        http_body_util::StreamBody::new(chunks)
    };
    for protocol in ["h2", "http/1.1"] {
        for (who, path, method, expected) in [
            (As::Nobody, MAPS, "POST", StatusCode::UNAUTHORIZED),
            (As::Token(&token), "/api/v1/nothing", "POST", StatusCode::NOT_FOUND),
            (As::Token(&token), MAPS, "PUT", StatusCode::METHOD_NOT_ALLOWED),
            (As::Token(&token), "/version", "POST", StatusCode::METHOD_NOT_ALLOWED),
            (As::Token(&token), MAPS, "POST", StatusCode::PAYLOAD_TOO_LARGE),
            (signed(&served, "eve", None), MAPS, "POST", StatusCode::FORBIDDEN),
        ] {
            let request = Request::builder().method(method).uri(path).body(large()).unwrap();
            let (code, body) = served.ask(&who, protocol, request).await;
            assert_eq!(code, expected, "{protocol} {method} {path}: {body}");
            assert!(body.contains("\"kind\":\"Status\""), "{protocol} {method} {path}: {body}");
            assert_eq!(sent.swap(0, Ordering::Relaxed), CHUNKS, "{protocol} {method} {path}");
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn silent_strangers_are_sent_away_and_keep_nobody_out() {
    let served = Served::start().await;
    let strangers = 600;
    let mut silent = Vec::new();
    for _ in 0..strangers {
        silent.push(served.connect(&As::Nobody, "http/1.1").await.unwrap());
    }
    let ask = async {
        let admin = served.admin();
        assert_eq!(served.get(&admin, "/healthz").await.0, StatusCode::OK);
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.expect("the administrator gets in at once");
    // The first have lost their places already, the last one loses its own when its time is over.
    let mut buffer = [0_u8; 1];
    for at in [0, strangers - 1] {
        let ended = tokio::io::AsyncReadExt::read(&mut silent[at], &mut buffer);
        let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it is closed");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    served.stop().await;
}
