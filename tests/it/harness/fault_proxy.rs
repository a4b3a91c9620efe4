//! A proxy in front of a real HTTP server that breaks what it is told to break.
//!
//! Whoever starts it decides about each request. Requests go on as they came, their `Host` included,
//! so signatures stay valid.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

type Body = BoxBody<Bytes, std::io::Error>;

/// One request, before anything is done with it.
pub struct Seen {
    /// Counted from 1, over the proxy's life.
    pub number: usize,
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: hyper::HeaderMap,
}

/// What becomes of a request.
pub enum Fault {
    /// It goes on, and so does its answer.
    Pass,
    /// It is answered here.
    Answer { status: u16, body: &'static str },
    /// It goes on; of the answer's body this many bytes come back, then the connection ends.
    CutAnswer { after: usize },
    /// It goes on; this byte of the answer's body has one bit changed.
    FlipBit { at: usize },
    /// It goes on; in the answer's body one text stands for another of the same length.
    Reword { from: &'static str, to: &'static str },
    /// It goes on with one bit of its body changed, at this byte.
    FlipUpload { at: usize },
    /// It goes on; the connection ends instead of an answer.
    LoseAnswer,
    /// Nothing more of it is read, and nothing is answered.
    Stall,
    /// It goes on; of the answer's body this many bytes come back, then nothing more.
    StallAnswer { after: usize },
    /// It goes on once the gate is open.
    Until(Gate),
    /// It goes on; what is answered is this function's.
    Rewrite(Box<dyn FnOnce(Bytes) -> Bytes + Send>),
    /// It goes on; its answer lacks this header.
    WithoutHeader(&'static str),
    /// It goes on without these headers, which breaks its signature.
    Strip(&'static [&'static str]),
}

/// What a held request waits for. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.0.close();
    }

    pub async fn passed(&self) {
        // There are no permits: the end of the semaphore is what is waited for.
        let _ = self.0.acquire().await;
    }
}

/// A running proxy; stopped with the value.
pub struct FaultProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FaultProxy {
    /// Starts a proxy in front of `upstream` (`http://127.0.0.1:PORT`).
    pub fn start(upstream: &str, decide: impl Fn(&Seen) -> Fault + Send + Sync + 'static) -> Self {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::new(Shared {
            upstream,
            decide: Box::new(decide),
            count: AtomicUsize::new(0),
            seen: seen.clone(),
        });
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
                let address = listener.local_addr().expect("a bound socket has an address");
                bound.send(address).expect("the starter waits for it");
                tokio::select! {
                    () = serve(listener, shared) => (),
                    _ = stopped => (),
                }
            });
        });
        let address = address.recv().expect("the proxy's thread binds a port");
        Self { address, seen, stop: Some(stop), thread: Some(thread) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `METHOD /path?query` of every request so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Shared {
    upstream: String,
    decide: Box<dyn Fn(&Seen) -> Fault + Send + Sync>,
    count: AtomicUsize,
    seen: Arc<Mutex<Vec<String>>>,
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let http = Builder::new(TokioExecutor::new());
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        let service = hyper::service::service_fn(move |request| answer(shared.clone(), request));
        let connection = http.serve_connection(TokioIo::new(socket), service).into_owned();
        tokio::spawn(async move {
            // A client that hangs up is its own affair, and hanging up is what some faults are.
            let _ = connection.await;
        });
    }
}

/// An error ends the connection.
async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let number = shared.count.fetch_add(1, Ordering::Relaxed) + 1;
    let path = request.uri().path_and_query().map_or("", |path| path.as_str()).to_owned();
    let method = request.method().to_string();
    let line = format!("{method} {path}");
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    let seen = Seen { number, method, path, headers: request.headers().clone() };
    match (shared.decide)(&seen) {
        Fault::Pass => Ok(forward(&shared.upstream, request, None).await?.map(full)),
        Fault::FlipUpload { at } => {
            Ok(forward(&shared.upstream, request, Some(at)).await?.map(full))
        }
        Fault::Answer { status, body } => {
            // Read first: a client that is still sending would take the end for a broken line.
            let _ = request.into_body().collect().await;
            let mut response = Response::new(full(Bytes::from_static(body.as_bytes())));
            *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
            Ok(response)
        }
        Fault::CutAnswer { after } => Ok(forward(&shared.upstream, request, None)
            .await?
            .map(|body| cut(body.slice(..after.min(body.len()))))),
        Fault::FlipBit { at } => {
            Ok(forward(&shared.upstream, request, None).await?.map(|body| full(flipped(&body, at))))
        }
        Fault::Reword { from, to } => Ok(forward(&shared.upstream, request, None)
            .await?
            .map(|body| full(Bytes::from(String::from_utf8_lossy(&body).replace(from, to))))),
        Fault::LoseAnswer => {
            forward(&shared.upstream, request, None).await?;
            Err(std::io::Error::other("lost on purpose"))
        }
        Fault::Stall => std::future::pending().await,
        Fault::StallAnswer { after } => Ok(forward(&shared.upstream, request, None)
            .await?
            .map(|body| stalled(body.slice(..after.min(body.len()))))),
        Fault::Until(gate) => {
            gate.passed().await;
            Ok(forward(&shared.upstream, request, None).await?.map(full))
        }
        Fault::Rewrite(change) => {
            let answer = forward(&shared.upstream, request, None).await?;
            let before = answer.body().len();
            let mut answer = answer.map(change);
            let length = answer.body().len();
            // What answers HEAD has a length and no body.
            if length != before {
                answer.headers_mut().insert(hyper::header::CONTENT_LENGTH, length.into());
            }
            Ok(answer.map(full))
        }
        Fault::WithoutHeader(name) => {
            let mut answer = forward(&shared.upstream, request, None).await?;
            answer.headers_mut().remove(name);
            Ok(answer.map(full))
        }
        Fault::Strip(names) => {
            let mut request = request;
            for name in names {
                request.headers_mut().remove(*name);
            }
            Ok(forward(&shared.upstream, request, None).await?.map(full))
        }
    }
}

async fn forward(
    upstream: &str,
    request: Request<Incoming>,
    flip: Option<usize>,
) -> Result<Response<Bytes>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body = flip.map_or(body.clone(), |at| flipped(&body, at));
    let socket = TcpStream::connect(upstream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(std::io::Error::other)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::from_parts(parts, Full::new(body));
    // The body is sent in one piece, whatever it came in.
    request.headers_mut().remove("expect");
    let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    drop(sender);
    connection.abort();
    Ok(Response::from_parts(parts, body))
}

fn flipped(body: &Bytes, at: usize) -> Bytes {
    let mut bytes = body.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1;
    }
    Bytes::from(bytes)
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

/// These bytes, then silence.
fn stalled(bytes: Bytes) -> Body {
    let given = futures_util::stream::iter([Ok(Frame::data(bytes))]);
    BodyExt::boxed(StreamBody::new(futures_util::StreamExt::chain(
        given,
        futures_util::stream::pending(),
    )))
}

/// These bytes, then an end that is none.
fn cut(bytes: Bytes) -> Body {
    let given = futures_util::stream::iter([Ok(Frame::data(bytes))]);
    // What was given is sent when the next part lets itself be waited for.
    let end = futures_util::stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut on purpose"))
    });
    BodyExt::boxed(StreamBody::new(futures_util::StreamExt::chain(given, end)))
}
