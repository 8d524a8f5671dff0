//! Bodies on their way into the guest.

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use std::fmt;
use std::io::Read;
use std::time::Duration;
use tokio::time::timeout;
use wasmtime_wasi::p2::{DynInputStream, InputStream, Pollable, StreamError, StreamResult};

/// The body of a write.
pub struct Body(pub(crate) Kind);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body(..)")
    }
}

pub(crate) enum Kind {
    Bytes(Bytes),
    Reader(Box<dyn Read + Send>),
    Stream(UnsyncBoxBody<Bytes, String>),
}

impl Body {
    /// No body.
    pub fn empty() -> Body {
        Body(Kind::Bytes(Bytes::new()))
    }

    /// What a reader yields, such as an open file. It is read on the thread that writes the entry, a chunk
    /// at a time. Whoever drops the write's future ends it after the read that is under way: one that never returns
    /// keeps its thread. It may not use tokio's blocking calls there (`Handle::block_on`, `SyncIoBridge`), which panic: what
    /// comes from async code is a stream.
    pub fn reader(reader: impl Read + Send + 'static) -> Body {
        Body(Kind::Reader(Box::new(reader)))
    }

    /// An HTTP body, such as that of a request being served. It may pause as long as a guest may stay in a host call
    /// ([`Limits`](crate::Limits)).
    pub fn stream<B>(body: B) -> Body
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        Body(Kind::Stream(body.map_err(|e| e.to_string()).boxed_unsync()))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body(Kind::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body(Kind::Bytes(bytes.into()))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Body {
        Body(Kind::Bytes(Bytes::from_static(text.as_bytes())))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body(Kind::Bytes(text.into()))
    }
}

/// The longest body that is handed over whole, so that it is in the guest's memory. Longer ones are read by it.
const WHOLE: usize = 1024 * 1024;

impl Kind {
    /// The bytes to be handed over, or what is to be read.
    pub(crate) fn whole(self) -> Result<Bytes, Kind> {
        match self {
            Kind::Bytes(bytes) if bytes.len() <= WHOLE => Ok(bytes),
            kind => Err(kind),
        }
    }
}

/// The guest's view of a body that it reads, which may pause for so long.
pub(crate) fn input_stream(kind: Kind, patience: Duration) -> DynInputStream {
    match kind {
        Kind::Bytes(bytes) => Box::new(Endable(wasmtime_wasi::p2::pipe::MemoryInputPipe::new(bytes))),
        Kind::Reader(reader) => Box::new(Endable(ReaderStream { reader })),
        Kind::Stream(body) => Box::new(Endable(BodyStream { body, patience, next: None })),
    }
}

/// A stream after each read of which, the last one too, the write ends if nobody waits for it any more.
struct Endable<S>(S);

#[wasmtime_wasi::async_trait]
impl<S: InputStream> InputStream for Endable<S> {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.0.read(size)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        let read = self.0.blocking_read(size).await;
        tokio::task::yield_now().await;
        read
    }
}

#[wasmtime_wasi::async_trait]
impl<S: InputStream> Pollable for Endable<S> {
    async fn ready(&mut self) {
        self.0.ready().await;
    }
}

/// A reader as a stream that is always ready, since its thread may block.
struct ReaderStream {
    reader: Box<dyn Read + Send>,
}

/// The guest asks for no more at once.
const CHUNK: usize = 64 * 1024;

#[wasmtime_wasi::async_trait]
impl InputStream for ReaderStream {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut chunk = vec![0; size.min(CHUNK)];
        loop {
            return match self.reader.read(&mut chunk) {
                Ok(0) if !chunk.is_empty() => Err(StreamError::Closed),
                Ok(n) => {
                    chunk.truncate(n);
                    Ok(chunk.into())
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => Err(StreamError::LastOperationFailed(e.into())),
            };
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for ReaderStream {
    async fn ready(&mut self) {}
}

/// An HTTP body as a stream.
struct BodyStream {
    body: UnsyncBoxBody<Bytes, String>,
    /// Beyond it, the guest would be taken for what stands still ([`crate::sandbox`]).
    patience: Duration,
    /// What was received and not yet read.
    next: Option<Result<Bytes, StreamError>>,
}

#[wasmtime_wasi::async_trait]
impl InputStream for BodyStream {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match self.next.take() {
            None => Ok(Bytes::new()),
            Some(Ok(mut bytes)) => {
                let chunk = bytes.split_to(size.min(bytes.len()));
                self.next = (!bytes.is_empty()).then_some(Ok(bytes));
                Ok(chunk)
            }
            Some(Err(error)) => Err(error),
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for BodyStream {
    async fn ready(&mut self) {
        while self.next.is_none() {
            let failed =
                |why: String| Some(Err(StreamError::LastOperationFailed(wasmtime::format_err!("{why}"))));
            self.next = match timeout(self.patience, self.body.frame()).await {
                Err(_) => failed(format!("nothing more of it came for {:?}", self.patience)),
                Ok(None) => Some(Err(StreamError::Closed)),
                Ok(Some(Err(why))) => failed(why),
                // Trailers and empty frames say nothing.
                Ok(Some(Ok(frame))) => frame.into_data().ok().filter(|data| !data.is_empty()).map(Ok),
            };
        }
    }
}
