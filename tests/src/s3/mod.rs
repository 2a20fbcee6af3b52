//! A real S3 server for tests, on loopback, in a folder of its own.
//!
//! Ceph's gateway where it is installed (`cargo xtask setup --system`), else moto (`cargo xtask test`
//! puts it into the cache folder), else none: then tests are skipped, or fail where `RINGMASTER_REQUIRE`
//! names `s3`; what moto does not check is skipped with it, or fails where `ceph` is named. One server
//! per test process; each test gets a bucket of its own. The server ends with the test process, however
//! that ends.

mod ceph;
mod daemons;
mod moto;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use self::daemons::Daemons;
use crate::skips::{skip, skip_part};

/// Who may do everything.
const ACCESS_KEY: &str = "RINGMASTERTESTS";
/// No part of it is a word, so that a search for it finds it alone.
const SECRET_KEY: &str = "q7Zr1Xw9Kd3Vn5Tb8Lm2Pc4Hs6Jf0Gy";
/// Region of every bucket.
const REGION: &str = "us-east-1";
/// Only a broken machine makes anybody wait so long for an answer.
const LIMIT: Duration = Duration::from_secs(120);

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    /// Where it listens.
    pub address: SocketAddr,
    kind: Kind,
    /// Ends the server when it is dropped, or this process ends.
    _daemons: Daemons,
}

/// What serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ceph's gateway.
    Ceph,
    /// moto, which accepts any secret.
    Moto,
}

/// A bucket of a server, and who may use it.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Where requests go: the server, or something in front of it.
    pub address: SocketAddr,
}

/// Returns the server of this process, started at the first call; none where none is installed: then
/// the running test is noted as skipped, and has to return.
///
/// # Panics
/// When there is none and `RINGMASTER_REQUIRE` names `s3`, or when one does not start.
pub fn server() -> Option<&'static S3Server> {
    any_server(skip)
}

/// The same for a part of a test: the rest of it goes on.
///
/// # Panics
/// As [`server`].
pub fn server_for_part() -> Option<&'static S3Server> {
    any_server(skip_part)
}

/// Returns the server where it is one that checks all that S3 does; else the running test is noted as
/// skipped, and has to return.
///
/// # Panics
/// As [`server`]; also where `RINGMASTER_REQUIRE` names `ceph` and moto serves.
pub fn strict_server() -> Option<&'static S3Server> {
    strict(skip)
}

/// The same for a part of a test: the rest of it goes on.
///
/// # Panics
/// As [`strict_server`].
pub fn strict_server_for_part() -> Option<&'static S3Server> {
    strict(skip_part)
}

fn any_server(skip: fn(&str, &str)) -> Option<&'static S3Server> {
    static SERVER: OnceLock<Option<S3Server>> = OnceLock::new();
    let server = SERVER.get_or_init(S3Server::start).as_ref();
    if server.is_none() {
        skip("s3", "no S3 server is installed (cargo xtask setup --system)");
    }
    server
}

fn strict(skip: fn(&str, &str)) -> Option<&'static S3Server> {
    let server = any_server(skip)?;
    if server.kind == Kind::Moto {
        skip("ceph", "S3 server: moto, which checks less than Ceph (cargo xtask setup --system)");
    }
    (server.kind == Kind::Ceph).then_some(server)
}

impl S3Server {
    fn start() -> Option<Self> {
        if ceph::is_installed() {
            let (daemons, address) = ceph::start(ACCESS_KEY, SECRET_KEY);
            return Some(Self { address, kind: Kind::Ceph, _daemons: daemons });
        }
        let program = moto::program()?;
        let (daemons, address) = moto::start(&program);
        Some(Self { address, kind: Kind::Moto, _daemons: daemons })
    }

    /// Creates a bucket that nobody else uses.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn bucket(&self) -> Bucket {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let bucket = Bucket { name, address: self.address };
        let status = bucket.signed_request("PUT").expect("the server answers");
        assert_eq!(status, 200, "the server creates a bucket");
        bucket
    }
}

impl Bucket {
    /// Returns the URL of a folder in it.
    pub fn url(&self, folder: &str) -> String {
        format!("s3://{}/{folder}", self.name)
    }

    /// Returns the same bucket behind another address.
    pub fn through(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// Returns the environment that leads to it, under the names that AWS's tools use.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let endpoint = format!("http://{}", self.address);
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL", &endpoint),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The same with more variables, which count over those that lead to it.
    pub fn environment_with(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut all = self.environment();
        all.extend(more.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
        all
    }

    /// Returns the secret that must never be shown.
    pub fn secret(&self) -> &'static str {
        SECRET_KEY
    }

    /// Returns the paths of all objects below a folder.
    ///
    /// # Panics
    /// When they cannot be listed.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let (store, folder) = (self.store(), Path::from(folder));
        let listed = store.list(Some(&folder)).map_ok(|object| object.location.to_string());
        let mut all: Vec<String> = in_runtime(listed.try_collect()).expect("the bucket is listed");
        all.sort();
        all
    }

    /// Returns an object's bytes.
    ///
    /// # Panics
    /// When there is none.
    pub fn read(&self, path: &str) -> Vec<u8> {
        let (store, path) = (self.store(), Path::from(path));
        let read = async { store.get(&path).await?.bytes().await };
        in_runtime(read).expect("the object is read").to_vec()
    }

    /// Makes a signed request for the bucket itself and returns the answer's status.
    fn signed_request(&self, method: &str) -> std::io::Result<u16> {
        let mut signed = HttpRequest::new(HttpRequestBody::empty());
        *signed.method_mut() = method.parse().map_err(std::io::Error::other)?;
        let url = format!("http://{}/{}", self.address, self.name);
        *signed.uri_mut() = url.parse().map_err(std::io::Error::other)?;
        let credential = AwsCredential {
            key_id: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            token: None,
        };
        AwsAuthorizer::new(&credential, "s3", REGION).try_authorize(&mut signed, None)?;
        let headers: Vec<(&str, &str)> = signed
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect();
        request(self.address, method, &format!("/{}", self.name), &headers)
    }

    /// Returns the bucket as the library sees it, with nothing of this project in between.
    ///
    /// # Panics
    /// When the library refuses settings that are right.
    pub fn store(&self) -> AmazonS3 {
        let _ = rustls::crypto::ring::default_provider().install_default();
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_region(REGION)
            .with_bucket_name(&self.name)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .build()
            .expect("the settings are right")
    }
}

/// Makes a request without a body and returns the answer's status.
fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: 0\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("no HTTP: {text:?}")))
}

fn in_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(future)
}
