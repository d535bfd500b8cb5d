//! A TCP proxy that breaks connections at chosen moments. It knows no protocol: a fault is armed with some bytes, and
//! strikes once, at the next request that contains them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to the connection of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Strike {
    /// It is cut before anything of the request is passed on.
    DropRequest,
    /// It is cut after so many bytes, counted from the beginning of the packet that has the bytes of the fault.
    CutRequestAfter(usize),
    /// The request is passed on; when the answer comes, the connection is cut instead.
    DropAnswer,
    /// The same, after so many bytes of the answer.
    CutAnswerAfter(usize),
    /// The answer comes so much later.
    Delay(Duration),
}

/// A running proxy. It ends on drop.
pub(crate) struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    upstream: SocketAddr,
    armed: Mutex<Vec<(Vec<u8>, Strike)>>,
    struck: Mutex<usize>,
    /// Whether connections are refused, and how often all of them have been cut.
    door: watch::Sender<(bool, usize)>,
}

impl FaultProxy {
    /// A proxy on a free port, before a server on the loopback interface.
    pub(crate) async fn start(upstream_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let shared = Arc::new(Shared {
            upstream: (Ipv4Addr::LOCALHOST, upstream_port).into(),
            armed: Mutex::default(),
            struck: Mutex::default(),
            door: watch::Sender::new((false, 0)),
        });
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(serve(listener, shared.clone()));
        Self { port, shared, task }
    }

    /// Its port on the loopback interface.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Arms a fault for the next request that has these bytes.
    pub(crate) fn arm(&self, bytes: &str, strike: Strike) {
        self.shared.armed.lock().unwrap().push((bytes.as_bytes().to_vec(), strike));
    }

    /// How many faults have struck.
    pub(crate) fn struck(&self) -> usize {
        *self.shared.struck.lock().unwrap()
    }

    /// From now on, connections are closed as soon as they are made, and those that exist are cut; or no longer.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.shared.door.send_modify(|(refusing, cuts)| {
            *refusing = refuse;
            *cuts += usize::from(refuse);
        });
    }

    /// Cuts all connections; new ones are welcome.
    pub(crate) fn cut(&self) {
        self.shared.door.send_modify(|(_, cuts)| *cuts += 1);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        let mut door = shared.door.subscribe();
        if door.borrow_and_update().0 {
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            // Whatever ends either of these closes both of the connections.
            tokio::select! {
                _ = carry(client, &shared) => {}
                _ = door.changed() => {}
            }
        });
    }
}

async fn carry(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut server = TcpStream::connect(shared.upstream).await?;
    let (mut request, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let (mut request_left, mut answer_left) = (usize::MAX, usize::MAX);
    let mut delay = Duration::ZERO;
    loop {
        tokio::select! {
            length = client.read(&mut request) => {
                let length = length?;
                if length == 0 {
                    return Ok(());
                }
                match take(shared, &request[..length]) {
                    Some(Strike::DropRequest) => return Ok(()),
                    Some(Strike::CutRequestAfter(bytes)) => request_left = bytes,
                    Some(Strike::DropAnswer) => answer_left = 0,
                    Some(Strike::CutAnswerAfter(bytes)) => answer_left = bytes,
                    Some(Strike::Delay(by)) => delay = by,
                    None => {}
                }
                if !pass(&mut server, &request[..length], &mut request_left).await? {
                    return Ok(());
                }
            }
            length = server.read(&mut answer) => {
                let length = length?;
                tokio::time::sleep(std::mem::take(&mut delay)).await;
                if length == 0 || !pass(&mut client, &answer[..length], &mut answer_left).await? {
                    return Ok(());
                }
            }
        }
    }
}

fn take(shared: &Shared, request: &[u8]) -> Option<Strike> {
    let mut armed = shared.armed.lock().unwrap();
    let found = armed.iter().position(|(bytes, _)| request.windows(bytes.len()).any(|window| window == bytes))?;
    *shared.struck.lock().unwrap() += 1;
    Some(armed.remove(found).1)
}

/// Passes on as much as is left; `false` when nothing more may follow.
async fn pass(to: &mut TcpStream, bytes: &[u8], left: &mut usize) -> std::io::Result<bool> {
    let part = &bytes[..bytes.len().min(*left)];
    to.write_all(part).await?;
    to.flush().await?;
    if *left != usize::MAX {
        *left -= part.len();
    }
    Ok(*left > 0)
}
