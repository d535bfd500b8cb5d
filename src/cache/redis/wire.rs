//! One connection to a Redis, used by one caller at a time.
//!
//! Commands, values, errors and the address are the `redis` crate's; why the connection is ours is in
//! docs/decisions/5-own-redis-connections.md.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{ConnectionAddr, ErrorKind, RedisError, ServerError, Value, parse_redis_value};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::select_ok;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How much is read at a time. More means fewer system calls, of which Redis and we both have to make one for each.
const BUFFER: usize = 1 << 16;
/// With less room than this left, it is not worth asking for more.
const LEAST_ROOM: usize = BUFFER / 4;
/// The longest wait for a server to begin with TLS.
const GREETING: Duration = Duration::from_secs(3);
const NO_TLS: &str = "no answer to the TLS greeting; if the server speaks no TLS, REDIS_URL must begin with redis://";
/// The longest string of Redis (`proto-max-bulk-len`), and more than any list that we ask for: what announces more is no Redis.
const LONGEST: usize = 512 << 20;
/// Lists within lists that an answer may have.
const DEEPEST: u8 = 8;

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// An answer to a command. Its strings are parts of what was received, not copies.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Nil,
    Okay,
    Number(i64),
    Text(Bytes),
    List(Vec<Answer>),
    Error(ServerError),
    /// A string of so many bytes that was not kept, because nobody wanted it.
    Skipped(usize),
}

/// Whether a string of this length is wanted.
pub(super) type Keep<'a> = dyn FnMut(usize) -> bool + Send + 'a;

/// What an answer begins with.
enum Item {
    /// All of it.
    Whole(Answer),
    /// A list of so many.
    List(usize),
}

/// Many commands, in the form that Redis reads (RESP2).
#[derive(Default)]
pub(super) struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    /// Begins a command of so many words, which are to follow.
    pub(super) fn begin(&mut self, words: usize) {
        self.count += 1;
        self.head(b'*', words);
    }

    /// Adds a word of the command that was begun.
    pub(super) fn word(&mut self, word: impl AsRef<[u8]>) {
        let word = word.as_ref();
        self.head(b'$', word.len());
        self.bytes.extend_from_slice(word);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Adds a whole command.
    pub(super) fn add(&mut self, words: &[&str]) {
        self.begin(words.len());
        words.iter().for_each(|word| self.word(word));
    }

    /// Adds a command over a list of keys.
    pub(super) fn list(&mut self, name: &str, keys: &[impl AsRef<[u8]>]) {
        self.begin(keys.len() + 1);
        self.word(name);
        keys.iter().for_each(|key| self.word(key));
    }

    /// What is sent.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many commands there are, and answers there will be.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn head(&mut self, kind: u8, number: usize) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }
}

/// A connection.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    patience: Duration,
    /// What has come and is not parsed yet.
    buffer: BytesMut,
}

impl Wire {
    /// Connects. `patience` is the longest wait for an answer.
    pub(super) async fn connect(
        address: &ConnectionAddr,
        within: Duration,
        patience: Duration,
    ) -> Result<Self, RedisError> {
        let stream = timeout(within, open(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Self { stream, patience, buffer: BytesMut::with_capacity(BUFFER) })
    }

    /// The connection, unless the other side has hung up.
    pub(super) fn if_alive(mut self) -> Option<Self> {
        // Nothing may come while nothing was asked for: bytes are as bad a sign as the end of them.
        self.stream.read_buf(&mut self.buffer).now_or_never().is_none().then_some(self)
    }

    /// Sends commands in one go and waits for all answers, each in its place; an error of the server is one. Of the strings,
    /// those are kept whose length `keep` agrees to. After any other error the connection is of no more use.
    pub(super) async fn exchange(
        &mut self,
        commands: &[u8],
        answers: usize,
        keep: &mut Keep<'_>,
    ) -> Result<Vec<Answer>, RedisError> {
        let patience = self.patience;
        let exchange = async {
            self.stream.write_all(commands).await?;
            self.stream.flush().await?;
            let mut all = Vec::with_capacity(answers);
            for _ in 0..answers {
                all.push(self.answer(keep).await?);
            }
            Ok(all)
        };
        timeout(patience, exchange).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    async fn answer(&mut self, keep: &mut Keep<'_>) -> Result<Answer, RedisError> {
        match self.item(keep).await? {
            Item::Whole(answer) => Ok(answer),
            Item::List(length) => self.list(length, 1, keep).await,
        }
    }

    async fn list(&mut self, length: usize, depth: u8, keep: &mut Keep<'_>) -> Result<Answer, RedisError> {
        if depth > DEEPEST {
            return Err(unreadable(b"lists within lists"));
        }
        let mut members = Vec::with_capacity(length.min(BUFFER));
        for _ in 0..length {
            members.push(match self.item(keep).await? {
                Item::Whole(answer) => answer,
                Item::List(length) => Box::pin(self.list(length, depth + 1, keep)).await?,
            });
        }
        Ok(Answer::List(members))
    }

    async fn item(&mut self, keep: &mut Keep<'_>) -> Result<Item, RedisError> {
        let end = self.line().await?;
        let line = &self.buffer[..end];
        let item = match line {
            [b'$', length @ ..] => match number(length)? {
                None => Item::Whole(Answer::Nil),
                Some(length) => {
                    self.buffer.advance(end + 2);
                    let string = if keep(length) { self.string(length).await } else { self.skip(length).await };
                    return string.map(Item::Whole);
                }
            },
            [b'*', length @ ..] => number(length)?.map_or(Item::Whole(Answer::Nil), Item::List),
            b"+OK" => Item::Whole(Answer::Okay),
            [b'+', text @ ..] => Item::Whole(Answer::Text(Bytes::copy_from_slice(text))),
            // A number or an error: short, and read by the crate.
            [b':' | b'-', ..] => match parse_redis_value(&self.buffer[..end + 2])? {
                Value::Int(number) => Item::Whole(Answer::Number(number)),
                Value::ServerError(error) => Item::Whole(Answer::Error(error)),
                _ => return Err(unreadable(line)),
            },
            _ => return Err(unreadable(line)),
        };
        self.buffer.advance(end + 2);
        Ok(item)
    }

    /// The string of `length` bytes that comes next.
    async fn string(&mut self, length: usize) -> Result<Answer, RedisError> {
        while self.buffer.len() < length + 2 {
            self.fill().await?;
        }
        if &self.buffer[length..length + 2] != b"\r\n" {
            return Err(unreadable(b"a string that is longer than announced"));
        }
        let string = self.buffer.split_to(length).freeze();
        self.buffer.advance(2);
        Ok(Answer::Text(string))
    }

    /// Lets the string of `length` bytes that comes next go by.
    async fn skip(&mut self, length: usize) -> Result<Answer, RedisError> {
        let mut left = length + 2;
        loop {
            let here = left.min(self.buffer.len());
            self.buffer.advance(here);
            left -= here;
            if left == 0 {
                return Ok(Answer::Skipped(length));
            }
            self.fill().await?;
        }
    }

    /// The length of the line that comes next, which is at least one; its end, CR and LF, is not counted.
    async fn line(&mut self) -> Result<usize, RedisError> {
        let mut seen = 0;
        loop {
            // No answer has a line feed within a line.
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[seen..]) {
                return match &self.buffer[..seen + end] {
                    [line @ .., b'\r'] if !line.is_empty() => Ok(line.len()),
                    line => Err(unreadable(line)),
                };
            }
            seen = self.buffer.len();
            if seen > BUFFER {
                return Err(unreadable(&self.buffer));
            }
            self.fill().await?;
        }
    }

    /// Waits for more bytes. Room that nobody looks at any more is used again; what is not parsed yet moves along.
    async fn fill(&mut self) -> Result<(), RedisError> {
        if self.buffer.capacity() - self.buffer.len() < LEAST_ROOM {
            self.buffer.reserve(self.buffer.len().max(BUFFER));
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// The connection, ready for the next caller and without the room that a long answer took. None if more has come than was
    /// asked for: nobody could tell which the next answer is.
    pub(super) fn rested(mut self) -> Option<Self> {
        if !self.buffer.is_empty() {
            return None;
        }
        if self.buffer.capacity() > 2 * BUFFER {
            self.buffer = BytesMut::new();
        }
        Some(self)
    }
}

async fn open(address: &ConnectionAddr) -> io::Result<Box<dyn Stream>> {
    Ok(match address {
        ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
        ConnectionAddr::TcpTls { host, port, .. } => {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let authorities = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = config.map_err(io::Error::other)?.with_root_certificates(authorities).with_no_client_auth();
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let stream = tcp(host, *port).await?;
            // A Redis without TLS waits for the end of a line that never comes.
            let greeting = timeout(GREETING, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
            let silent = || io::Error::new(io::ErrorKind::TimedOut, NO_TLS);
            Box::new(greeting.unwrap_or_else(|_| Err(silent()))?)
        }
        ConnectionAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
        _ => return Err(io::Error::from(io::ErrorKind::Unsupported)),
    })
}

/// Tries all addresses of a host at once: of its IPv4 and IPv6 one may lead nowhere.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let tries: Vec<_> = lookup_host((host, port)).await?.map(|address| Box::pin(TcpStream::connect(address))).collect();
    if tries.is_empty() {
        return Err(io::Error::other("the host has no address"));
    }
    let (stream, _) = select_ok(tries).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A length of an answer; `None` for -1, which is nil.
fn number(text: &[u8]) -> Result<Option<usize>, RedisError> {
    if text == b"-1" {
        return Ok(None);
    }
    let digit = |sum: usize, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| usize::from(byte - b'0'))?;
        Some(sum * 10 + digit).filter(|sum| *sum <= LONGEST)
    };
    match text.iter().try_fold(0, digit) {
        Some(number) if !text.is_empty() => Ok(Some(number)),
        _ => Err(unreadable(text)),
    }
}

fn unreadable(text: &[u8]) -> RedisError {
    let text = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
    (ErrorKind::Parse, "not Redis's protocol", text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an answer that comes in pieces of so many bytes.
    async fn read(answer: &[u8], pieces: usize, answers: usize) -> Result<Vec<Answer>, RedisError> {
        let (ours, mut theirs) = tokio::io::duplex(pieces);
        let answer = answer.to_vec();
        let server = tokio::spawn(async move {
            let mut request = [0; 14];
            theirs.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"*1\r\n$4\r\nPING\r\n");
            // The reader may have had enough before all is written.
            let _ = theirs.write_all(&answer).await;
        });
        let patience = Duration::from_secs(60);
        let mut wire = Wire { stream: Box::new(ours), patience, buffer: BytesMut::new() };
        let mut commands = Commands::default();
        commands.add(&["PING"]);
        let result = wire.exchange(commands.as_bytes(), answers, &mut |length| length != 77_777).await;
        drop(wire);
        server.await.unwrap();
        result
    }

    fn text(text: &str) -> Answer {
        Answer::Text(text.to_owned().into())
    }

    #[tokio::test]
    async fn answers_are_read_however_they_are_cut() {
        let long = "x".repeat(3 * BUFFER);
        let answer = format!(
            "+OK\r\n:-7\r\n$-1\r\n$0\r\n\r\n*-1\r\n*3\r\n$2\r\n\r\n\r\n*1\r\n:1\r\n+PONG\r\n-WRONGTYPE no\r\n${}\r\n{long}\r\n$77777\r\n{}\r\n+END\r\n",
            long.len(),
            "y".repeat(77_777)
        );
        for pieces in [1, 2, 7, 1 << 20] {
            let answers = read(answer.as_bytes(), pieces, 10).await.unwrap();
            let list = vec![text("\r\n"), Answer::List(vec![Answer::Number(1)]), text("PONG")];
            let expected = [Answer::Okay, Answer::Number(-7), Answer::Nil, text(""), Answer::Nil, Answer::List(list)];
            assert_eq!(answers[..6], expected);
            assert!(matches!(&answers[6], Answer::Error(error) if error.code() == "WRONGTYPE"), "{:?}", answers[6]);
            assert_eq!(answers[7..], [text(&long), Answer::Skipped(77_777), text("END")]);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_of_redis_is_said_so() {
        let deep = "*1\r\n".repeat(40);
        let endless = "+".repeat(3 * BUFFER);
        for answer in [
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "\r\n",
            "+OK\n",
            "$3\r\nlonger\r\n",
            "$99999999999999999999\r\n",
            "$-2\r\n",
            "$\r\n",
            "*1e3\r\n",
            &deep,
            &endless,
        ] {
            let error = read(answer.as_bytes(), 64, 1).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Parse, "{answer:.20}: {error}");
        }
        let error = read(b"$10\r\nshort", 64, 1).await.unwrap_err();
        assert!(error.is_connection_dropped(), "{error}");
    }
}
