//! What the daemon answers over HTTP: that it is alive. One port, for IPv6 and for IPv4.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections that may be open at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// The kernel's queue.
const BACKLOG: i32 = 128;
/// How long clients have to send a request, and how long a connection may be idle.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const LARGEST_HEAD: usize = 16 << 10;
/// The wait after a connection could not be accepted: there may be no file descriptor left.
const RECOVERY: Duration = Duration::from_secs(1);

/// Listens on `port` of all addresses, IPv6 and IPv4 alike: `*.railway.internal`, for one, may lead to either. Where there is no
/// IPv6, on IPv4 alone. Port 0 is any free one. Must be called inside a tokio runtime.
///
/// # Errors
/// If the port is taken, or not for us to use.
pub fn bind(port: u16) -> io::Result<TcpListener> {
    let listen = |domain, address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            // Whatever the machine's own default is.
            socket.set_only_v6(false)?;
        }
        // A restart need not wait for the connections of its predecessor to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let socket = match listen(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
            listen(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())?
        }
        socket => socket?,
    };
    TcpListener::from_std(socket.into())
}

/// Answers until `stop`. A client that takes longer than `limit` to send a request is cut off.
pub async fn serve(listener: TcpListener, limit: Duration, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let accept = async {
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        stop.run_until_cancelled(converse(stream, limit)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(RECOVERY).await;
                }
            }
        }
    };
    let _: Option<Infallible> = stop.run_until_cancelled(accept).await;
}

/// One connection.
async fn converse(stream: TcpStream, limit: Duration) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limit).max_buf_size(LARGEST_HEAD);
    let service = service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(&request)));
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("a connection was not HTTP, or broke off: {error}");
    }
}

fn answer(request: &Request<Incoming>) -> Response<String> {
    let response = Response::builder().header("content-type", "text/plain; charset=utf-8");
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => response.body("ok\n".to_owned()),
        (_, "/livez") => {
            let response = response.status(StatusCode::METHOD_NOT_ALLOWED).header("allow", "GET, HEAD");
            response.body("only GET\n".to_owned())
        }
        _ => response.status(StatusCode::NOT_FOUND).body("there is nothing but /livez\n".to_owned()),
    };
    response.expect("these are valid headers")
}
