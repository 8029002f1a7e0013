//! A real S3 server on loopback, which checks signatures, and a line to it that can be cut.

use std::collections::BTreeMap;
use std::future::{Future, ready};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use s3s::S3Result;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const KEY_ID: &str = "AKIDEXAMPLE0TANDEM00";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// What a server does with what is sent to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// 403 for each upload.
    Denied,
    /// 503 for each upload: too many at once.
    SlowDown,
    /// Nothing is answered, whatever is asked.
    Hangs,
}

/// A fault, and after how many uploads it begins.
type Faults = Arc<Mutex<(usize, Fault)>>;

/// An S3 server whose buckets are directories.
pub struct Server {
    root: TempDir,
    pub address: SocketAddr,
    faults: Faults,
}

impl Server {
    /// Start a server with one bucket, `copies`. It ends with the test's runtime.
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// As [`Server::start`], and the bucket has Object Lock: what comes without a checksum is refused.
    pub async fn start_locked() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(is_locked: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("copies")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let faults = Faults::default();
        builder.set_access(Buckets { root: root.path().to_path_buf(), is_locked, faults: Arc::clone(&faults) });
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A client that goes away in the middle is what the tests are about.
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { root, address, faults }
    }

    /// From the upload behind so many on, do this.
    pub fn fail(&self, after: usize, fault: Fault) {
        *self.faults.lock().unwrap() = (after, fault);
    }

    /// All keys, but for what the server keeps for itself.
    pub fn keys(&self) -> Vec<String> {
        let root = self.root.path().join("copies");
        let mut dirs = vec![root.clone()];
        let mut keys = Vec::new();
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    keys.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        keys.sort();
        keys
    }

    pub fn environment(&self) -> BTreeMap<String, String> {
        environment(self.address)
    }

    /// Where the server keeps what is under `key`.
    pub fn file(&self, key: &str) -> PathBuf {
        self.root.path().join("copies").join(key)
    }

    /// The parts of uploads that were neither completed nor aborted.
    pub fn unfinished(&self) -> Vec<String> {
        names(self.root.path()).into_iter().filter(|name| name.contains(".upload")).collect()
    }
}

/// All names in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What leads to the server at `address`.
pub fn environment(address: SocketAddr) -> BTreeMap<String, String> {
    let endpoint = format!("http://{address}");
    [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ENDPOINT_URL", &endpoint)]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The server of the tests would make a bucket that is missing, and knows no locks; a real one says so.
struct Buckets {
    root: PathBuf,
    is_locked: bool,
    faults: Faults,
}

impl Buckets {
    /// What is wrong with this upload, or at all.
    fn fault(&self, uploads: bool) -> Fault {
        let mut faults = self.faults.lock().unwrap();
        match *faults {
            (_, Fault::None) => Fault::None,
            (0, Fault::Hangs) => Fault::Hangs,
            (0, fault) if uploads => fault,
            (after, fault) => {
                if uploads {
                    *faults = (after.saturating_sub(1), fault);
                }
                Fault::None
            }
        }
    }
}

impl S3Access for Buckets {
    fn check<'this, 'context, 'inner, 'answer>(
        &'this self,
        context: &'context mut S3AccessContext<'inner>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'answer>>
    where
        'this: 'answer,
        'context: 'answer,
        'inner: 'answer,
        Self: 'answer,
    {
        let missing = context.s3_path().get_bucket_name().is_some_and(|name| !self.root.join(name).is_dir());
        let uploads = matches!(context.s3_op().name(), "PutObject" | "UploadPart");
        let is_sum = |name: &str| name == "content-md5" || name.starts_with("x-amz-checksum-");
        let lacks_sum = self.is_locked && uploads && !context.headers().keys().any(|name| is_sum(name.as_str()));
        let fault = self.fault(uploads);
        if fault == Fault::Hangs {
            return Box::pin(std::future::pending());
        }
        let answer = match (context.credentials(), missing) {
            (Some(_), false) if fault == Fault::Denied => Err(s3s::s3_error!(AccessDenied)),
            (Some(_), false) if fault == Fault::SlowDown => Err(s3s::s3_error!(SlowDown)),
            (None, _) => Err(s3s::s3_error!(AccessDenied)),
            (_, true) => Err(s3s::s3_error!(NoSuchBucket)),
            (_, false) if lacks_sum => {
                let words = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with \
                             Object Lock parameters";
                Err(s3s::s3_error!(InvalidRequest, "{words}"))
            }
            (_, false) => Ok(()),
        };
        Box::pin(ready(answer))
    }
}

/// A line to a server that is cut after a number of bytes, and mended after a number of refused connections.
pub struct Line {
    pub address: SocketAddr,
    left: Arc<Mutex<Left>>,
}

/// What is left of a line: bytes until it is cut, or refusals until it is mended.
#[derive(Clone, Copy)]
enum Left {
    Bytes { until_cut: usize, refusals: usize },
    Refusals(usize),
    Whole,
}

impl Line {
    /// A line that carries `bytes` to `server`, then refuses `refusals` connections, and then carries everything.
    pub async fn cut_after(bytes: usize, refusals: usize, server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new(Mutex::new(Left::Bytes { until_cut: bytes, refusals }));
        let line = Arc::clone(&left);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if refused(&line) {
                    continue;
                }
                tokio::spawn(carry(client, server, Arc::clone(&line)));
            }
        });
        Self { address, left }
    }

    /// Whether the line was cut and mended.
    pub fn was_mended(&self) -> bool {
        matches!(*self.left.lock().unwrap(), Left::Whole)
    }
}

fn refused(left: &Mutex<Left>) -> bool {
    let mut left = left.lock().unwrap();
    match *left {
        Left::Refusals(0) => *left = Left::Whole,
        Left::Refusals(more) => {
            *left = Left::Refusals(more - 1);
            return true;
        }
        Left::Bytes { .. } | Left::Whole => {}
    }
    false
}

/// Whether the line carries `count` bytes more.
fn carries(left: &Mutex<Left>, count: usize) -> bool {
    let mut left = left.lock().unwrap();
    match *left {
        Left::Bytes { until_cut, refusals } if until_cut < count => {
            *left = Left::Refusals(refusals);
            false
        }
        Left::Bytes { until_cut, refusals } => {
            *left = Left::Bytes { until_cut: until_cut - count, refusals };
            true
        }
        Left::Refusals(_) => false,
        Left::Whole => true,
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, left: Arc<Mutex<Left>>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut there, mut back) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        let carried = tokio::select! {
            read = client.read(&mut there) => match read {
                Ok(count) if count > 0 && carries(&left, count) => server.write_all(&there[..count]).await,
                _ => return,
            },
            read = server.read(&mut back) => match read {
                Ok(count) if count > 0 => client.write_all(&back[..count]).await,
                _ => return,
            },
        };
        if carried.is_err() {
            return;
        }
    }
}
