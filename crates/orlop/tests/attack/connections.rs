//! Connections that say nothing, half of something, or far too much, while an administrator works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Orlop, Place};
use crate::tally::Tally;

/// As many as a client on one machine could open without much trouble.
const CROWD: usize = 5000;
/// How long an administrator waits at the most.
const ANSWER: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn silent_connections_lock_nobody_out() {
    raise_open_files();
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "300Mi"]);
    let target = Target::of(&orlop);
    let mut tally = Tally::new("connections");
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for number in 0..CROWD {
        let opened = match number % 4 {
            // A handshake and then silence, no handshake, half a request, half a preface of HTTP/2.
            0 => target.greet(b"").await.map(|stream| Box::new(stream) as Box<dyn Send>),
            1 => target.connect().await.map(|stream| Box::new(stream) as Box<dyn Send>),
            2 => {
                target.greet(b"GET /api HTTP/1.1\r\nhost: x\r\n").await.map(|s| Box::new(s) as Box<dyn Send>)
            }
            _ => target.greet(b"PRI * HTTP/2.0\r\n").await.map(|stream| Box::new(stream) as Box<dyn Send>),
        };
        match opened {
            Some(stream) => {
                held.push(stream);
                tally.count("opened");
            }
            None => tally.count("turned away"),
        }
        if number % 500 == 499 {
            ask(&orlop.client().await).await;
            tally.count("answers to a new administrator meanwhile");
        }
    }
    ask(&orlop.client().await).await;
    drop(held);
    ask(&orlop.client().await).await;
    orlop.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn nonsense_on_a_connection_ends_that_connection_alone() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "300Mi"]);
    let target = Target::of(&orlop);
    let mut tally = Tally::new("nonsense");
    let long_header = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &[b'a'; 1 << 20], b"\r\n\r\n"].concat();
    let many_headers = [b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(50_000), b"\r\n"].concat();
    let settings =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0].repeat(20_000)]
            .concat();
    let pings = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice(),
        &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(20_000),
    ]
    .concat();
    let smuggled: &[u8] = b"POST /api HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /api/v1/secrets HTTP/1.1\r\n\r\n";
    let endless: &[u8] =
        b"POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n";
    for round in 0..20_u8 {
        for bytes in [&long_header[..], &many_headers, &settings, &pings, smuggled, endless, &[round; 4096]] {
            let Some(mut stream) = target.greet(b"").await else {
                tally.count("turned away");
                continue;
            };
            let exchange = async {
                let sent = stream.write_all(bytes).await;
                let mut answer = Vec::new();
                let read = (&mut stream).take(1 << 20).read_to_end(&mut answer).await;
                (sent.is_ok() && read.is_ok(), answer)
            };
            match tokio::time::timeout(Duration::from_secs(30), exchange).await {
                Err(_) => tally.count("kept open"),
                Ok((_, answer)) => {
                    let text = String::from_utf8_lossy(&answer);
                    assert!(!text.contains("200 OK"), "without a credential: {text}");
                    tally.count("closed");
                }
            }
            if bytes.len() < 300 {
                break;
            }
        }
    }
    ask(&orlop.client().await).await;
    orlop.stop();
}

async fn ask(client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let list = tokio::time::timeout(ANSWER, namespaces.list(&ListParams::default())).await;
    list.expect("the administrator is answered in time").expect("an answer");
}

/// Where the API listens, and how to trust it.
struct Target {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Target {
    fn of(orlop: &Orlop) -> Target {
        let text = std::fs::read_to_string(orlop.kubeconfig()).expect("a kubeconfig");
        let field = |name: &str| {
            let rest = text.split(name).nth(1).expect("the field").trim_start_matches([':', ' ', '"']);
            rest.split(['\n', '"', ',']).next().expect("a value").trim().to_owned()
        };
        let address = field("server").trim_start_matches("https://").parse().expect("an address");
        let authority = base64_decode(&field("certificate-authority-data"));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&authority).expect("a certificate")).expect("a root");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Target { address, tls: TlsConnector::from(Arc::new(config)) }
    }

    async fn connect(&self) -> Option<TcpStream> {
        tokio::time::timeout(Duration::from_secs(3), TcpStream::connect(self.address)).await.ok()?.ok()
    }

    /// A connection with TLS on which so much was said.
    async fn greet(&self, bytes: &[u8]) -> Option<TlsStream<TcpStream>> {
        let stream = self.connect().await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let handshake = tokio::time::timeout(Duration::from_secs(3), self.tls.connect(name, stream));
        let mut stream = handshake.await.ok()?.ok()?;
        stream.write_all(bytes).await.ok()?;
        stream.flush().await.ok()?;
        Some(stream)
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

/// This process holds the other end of every connection.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(16_384), maximum: limit.maximum.map(|maximum| maximum.max(16_384)) };
    setrlimit(Resource::Nofile, wanted).expect("root may raise the limit of open files");
}
