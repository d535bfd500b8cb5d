//! The port: who can reach it, and who cannot hold it up.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lamplighter::web;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::daemon::{self, Daemon};

const NOTHING_TO_DO: &str = "[jobs]\n";

/// All that comes back for `sent`, until the other side closes.
async fn ask(address: SocketAddr, sent: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: lamplighter\r\nconnection: close\r\n\r\n")).await
}

/// This machine's addresses: both, where it has IPv6.
fn addresses(port: u16) -> Vec<SocketAddr> {
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    }
    addresses.into_iter().map(|address| (address, port).into()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_says_on_both_sorts_of_addresses_that_it_is_alive() {
    let folder = tempfile::tempdir().unwrap();
    let env = BTreeMap::from([("PORT", "0".to_owned()), ("LAMPLIGHTER_LOG_FORMAT", "json".to_owned())]);
    let mut daemon = Daemon::start(folder.path(), NOTHING_TO_DO, &env);
    let line = daemon.wait_for("GET /livez").await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let port = u16::try_from(line["port"].as_u64().unwrap()).unwrap();
    for address in addresses(port) {
        let alive = get(address, "/livez?from=the+host").await;
        assert!(alive.starts_with("HTTP/1.1 200 OK\r\n") && alive.ends_with("\r\n\r\nok\n"), "{address}: {alive}");
        let nothing = get(address, "/jobs").await;
        assert!(nothing.starts_with("HTTP/1.1 404 Not Found\r\n"), "{nothing}");
    }
    // A second one is told why it cannot have the port.
    let taken = BTreeMap::from([("PORT", port.to_string())]);
    let said = daemon::run(folder.path(), &taken, &["serve"]).await;
    assert_eq!(said.status.code(), Some(1), "starting again may help");
    let message = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(message.contains(&format!("port {port}, which PORT names")) && message.contains("in use"), "{message}");

    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test]
async fn only_what_is_there_is_answered() {
    let listener = web::bind(0).unwrap();
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()).into();
    let stop = CancellationToken::new();
    let server = tokio::spawn(web::serve(listener, web::REQUEST_LIMIT, stop.clone()));
    let head = ask(address, "HEAD /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let post = ask(address, "POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("\r\nallow: GET, HEAD\r\n"), "{post}");
    assert!(!ask(address, "good evening\r\n\r\n").await.contains("200"));
    let long = format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(60_000));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(long.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It may be cut off before all has been read.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"), "a head of 60 kB is too large");

    stop.cancel();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_keep_others_out() {
    let listener = web::bind(0).unwrap();
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()).into();
    tokio::spawn(web::serve(listener, Duration::from_millis(100), CancellationToken::new()));
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
        }
        silent.push(stream);
    }
    let alive = get(address, "/livez").await;
    assert!(alive.starts_with("HTTP/1.1 200 OK\r\n"), "{alive}");
}
