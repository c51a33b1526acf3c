//! Both ends over real sockets: what the sidecars, the node agent and the driver rely on.

use csi::registration::registration_client::RegistrationClient;
use csi::registration::registration_server::{Registration, RegistrationServer};
use csi::registration::{InfoRequest, PluginInfo};
use csi::{ConnectError, ListenError, connect, connect_within, listen};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};

struct Plugin;

#[tonic::async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo { name: "orlop.dev".into(), ..PluginInfo::default() }))
    }
}

fn serve(path: &Path) -> JoinHandle<()> {
    let incoming = listen(path).expect("the socket is free");
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Plugin));
        server.serve_with_incoming(incoming).await.expect("serving");
    })
}

async fn stop(server: JoinHandle<()>) {
    server.abort();
    assert!(server.await.expect_err("aborted").is_cancelled());
}

#[tokio::test]
async fn a_call_reaches_the_server_and_a_channel_outlives_it() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("csi.sock");

    let connecting = tokio::spawn(connect(path.clone()));
    let first = serve(&path);
    let mut client =
        RegistrationClient::new(connecting.await.expect("joined").expect("waited for the server"));
    assert_eq!(client.get_info(InfoRequest {}).await.expect("answer").into_inner().name, "orlop.dev");
    let refused = client.notify_registration_status(csi::registration::RegistrationStatus::default()).await;
    assert_eq!(refused.expect_err("not implemented by this server").code(), Code::Unimplemented);

    stop(first).await;
    assert!(!path.exists(), "the socket file goes with its listener");
    // The old connection's task ends by itself; a new server gets the same client's calls.
    let second = serve(&path);
    let answer = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Ok(answer) = client.get_info(InfoRequest {}).await {
                return answer.into_inner();
            }
        }
    });
    assert_eq!(answer.await.expect("connected again").name, "orlop.dev");
    stop(second).await;
}

/// The kind of the first frame that answers a call whose client gives this as the authority, byte by byte.
async fn answered(path: &Path, authority: &str) -> u8 {
    let mut stream = UnixStream::connect(path).await.expect("connected");
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    let target = "/pluginregistration.Registration/GetInfo";
    // POST over http; path, authority, content-type and te.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (&[0x44][..], target),
        (&[0x41], authority),
        (&[0x5f], "application/grpc"),
        (&[0x40, 2, b't', b'e'], "trailers"),
    ] {
        headers.extend([name, &[length(value)], value.as_bytes()].concat());
    }
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let stream = u8::from(kind != 4);
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let call = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, &[]),
        frame(1, 4, &headers),
        frame(0, 1, &[0; 5]),
    ];
    for byte in call.concat() {
        stream.write_all(&[byte]).await.expect("written");
    }
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.expect("a frame");
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        stream.read_exact(&mut vec![0; length]).await.expect("its content");
        if header[8] == 1 {
            return header[3];
        }
    }
}

#[tokio::test]
async fn a_client_may_call_the_server_what_it_likes() {
    const HEADERS: u8 = 1;
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("csi.sock");
    let server = serve(&path);
    for authority in
        ["localhost", "%2Ftmp%2Fcsi.sock", "/tmp/csi.sock", "unix:///x", "a b", "u@h:1:2", "\u{fc}"]
    {
        let kind = tokio::time::timeout(Duration::from_secs(10), answered(&path, authority)).await;
        assert_eq!(kind, Ok(HEADERS), "{authority}");
    }
    stop(server).await;
}

#[tokio::test]
async fn a_socket_is_private_and_taken_over_only_from_the_dead() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("csi.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "a dead process's socket is left behind");

    let listener = listen(&path).expect("stale socket replaced");
    assert_eq!(path.metadata().expect("present").permissions().mode() & 0o777, 0o600);
    assert!(matches!(listen(&path), Err(ListenError::InUse(at)) if at == path));

    std::fs::remove_file(&path).expect("removed by hand");
    let successor = listen(&path).expect("free");
    drop(listener);
    assert!(path.exists(), "a successor's socket is not removed");
    drop(successor);
    assert!(!path.exists());

    std::fs::write(&path, "precious").expect("written");
    assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("untouched"), "precious");

    let long = directory.path().join("x".repeat(120));
    assert!(matches!(listen(&long), Err(ListenError::PathTooLong(_))));
    assert!(matches!(listen(directory.path().join("missing/csi.sock")), Err(ListenError::System { .. })));
}

#[tokio::test]
async fn waiting_for_a_driver_ends() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("nobody.sock");
    let error: ConnectError =
        connect_within(&path, Duration::from_millis(20)).await.expect_err("nobody is there");
    assert!(error.to_string().contains("nobody.sock"), "{error}");
}
