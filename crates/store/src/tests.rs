//! What people are told when a store cannot be used, and what they are never shown.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use ringmaster_tests::network::Nobody;
use ringmaster_tests::proxy::{FaultyProxy, Trouble, What};
use ringmaster_tests::s3::{self, Bucket};
use tokio_util::sync::CancellationToken;

use super::{Error, KEPT_STORES, Kind, Settings, Store, Unusable, open_with, opened, register};

/// Short, for requests that are expected to fail.
const PATIENCE: (&str, &str) = (super::PATIENCE, "0.5");

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Settings that lead to an address on loopback, with no server behind them needed.
fn aimed_at(address: &str, more: &[(&str, &str)]) -> Settings {
    let endpoint = format!("http://{address}");
    let usual = [
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
        ("AWS_ENDPOINT_URL", &endpoint),
        PATIENCE,
    ];
    let all = usual.iter().chain(more).map(|&(name, value)| (name.to_owned(), value.to_owned()));
    // The later of two with one name counts.
    Settings::new(all.collect::<std::collections::BTreeMap<_, _>>().into_iter())
}

/// Settings that lead to a bucket, and more.
fn settings(bucket: &Bucket, more: &[(&str, &str)]) -> Settings {
    Settings::new(bucket.environment_with(more).into_iter())
}

const SECRET: &str = "k4J9wQ2mZ7xT1vB6";
const TOKEN: &str = "R8uY3pL5nC0dF2hS";

/// Returns how a look at one object, and one write, fail.
fn failures(store: &Store) -> [Error; 2] {
    let objects = store.patient();
    runtime().block_on(async {
        let at = store.path.clone().join("object");
        let read = objects.list_with_delimiter(Some(&store.path)).await.map(|_| ()).unwrap_err();
        let write = objects.put(&at, "x".into()).await.map(|_| ()).unwrap_err();
        [read.into(), write.into()]
    })
}

fn assert_says(errors: &[Error], kind: Kind, parts: &[&str]) {
    for error in errors {
        let text = error.to_string();
        assert_eq!(error.kind, kind, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }
}

#[test]
fn a_url_without_store_says_which_there_are() {
    let none = Settings::new(std::iter::empty());
    for (url, reason) in [
        ("ftp://host/runs", "there is no store for ftp://; write s3://, gs://, az://"),
        ("runs", "neither an absolute path nor a URL"),
        ("file://other/runs", "a file URL names no other host"),
    ] {
        let Unusable { url: named, reason: said, .. } = open_with(url, &none).unwrap_err();
        assert!(named == url && said.contains(reason), "{named}: {said}");
    }
}

#[test]
fn credentials_in_a_url_are_refused_and_not_repeated() {
    let none = Settings::new(std::iter::empty());
    for url in [
        format!("s3://somebody:{SECRET}@bucket/runs"),
        format!("https://host/a.tar?X-Amz-Signature={SECRET}"),
        format!("s3 ://somebody:{SECRET}@bucket/runs"),
    ] {
        let error = open_with(&url, &none).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
    }
}

#[test]
fn half_and_missing_credentials_name_the_variables() {
    let open = |variables: &[(&str, &str)]| {
        let all = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        open_with("s3://bucket/runs", &Settings::new(all)).map(|_| ())
    };
    let here = ("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let missing = open(&[here]).unwrap_err().reason;
    assert!(missing.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{missing}");
    let half = open(&[here, ("AWS_SECRET_ACCESS_KEY", SECRET)]).unwrap_err().reason;
    assert!(half.contains("AWS_ACCESS_KEY_ID is not; set both"), "{half}");
    open(&[here, ("AWS_SKIP_SIGNATURE", "true")]).unwrap();
    let no_instance = open(&[("AWS_EC2_METADATA_DISABLED", "true")]).unwrap_err().reason;
    assert!(no_instance.contains("there are no credentials"), "{no_instance}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let open = |more: &[(&str, &str)]| {
        open_with("s3://bucket/runs", &aimed_at("127.0.0.1:1", more)).unwrap_err().reason
    };
    let bundle = open(&[("AWS_CA_BUNDLE", "/nowhere/ca.pem")]);
    assert!(bundle.contains("AWS_CA_BUNDLE=/nowhere/ca.pem: No such file"), "{bundle}");
    let endpoint = open(&[("AWS_ENDPOINT_URL_S3", "localhost:9000")]);
    assert!(
        endpoint.starts_with("AWS_ENDPOINT_URL_S3=localhost:9000 does not begin"),
        "{endpoint}"
    );
    let proxy = open(&[("HTTP_PROXY", "socks5://127.0.0.1:1080")]);
    assert!(proxy.starts_with("HTTP_PROXY=socks5://127.0.0.1:1080: "), "{proxy}");
    let patience = open(&[(super::PATIENCE, "soon")]);
    assert!(patience.contains("PATIENCE_SECONDS=soon is no number of seconds"), "{patience}");
    let encryption = open(&[
        ("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"),
        ("AWS_SSE_CUSTOMER_KEY_BASE64", "not base64 at all"),
    ]);
    assert!(!encryption.contains("not base64"), "{encryption}");
}

#[test]
fn an_endpoint_where_nobody_listens_and_a_name_nobody_knows_are_told_apart() {
    let nobody = Nobody::there();
    let address = nobody.address.to_string();
    let store = open_with("s3://bucket/runs", &aimed_at(&address, &[])).unwrap();
    let parts = [&*format!("bucket \"bucket\" at http://{address}"), "check AWS_ENDPOINT_URL"];
    assert_says(&failures(&store), Kind::Unreachable, &parts);

    let named = ("AWS_ENDPOINT_URL", "http://no-such-host.invalid");
    let store = open_with("s3://bucket/runs", &aimed_at(&address, &[named])).unwrap();
    assert_says(&failures(&store), Kind::Unresolved, &["no-such-host.invalid", "be resolved"]);
}

#[test]
fn a_store_that_never_answered_is_not_waited_for_as_long_as_one_that_has() {
    let plain = Settings::new(std::iter::empty());
    assert!(plain.first_patience < plain.patience);
    assert!(plain.patience >= Duration::from_secs(90), "a minute away costs no checkpoint");
    let set =
        |value: &str| Settings::new([(super::PATIENCE.to_owned(), value.to_owned())].into_iter());
    assert_eq!(set("300").patience, Duration::from_secs(300));
    assert_eq!(set("2").first_patience, Duration::from_secs(2));
    assert_eq!(set("soon").patience, plain.patience);
}

/// A file server may have been restarted; whoever reads local files has no runtime.
#[test]
fn files_of_this_machine_are_waited_for_without_a_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let store = super::open(folder.path().to_str().unwrap()).unwrap();
    let (asked, never) = (AtomicU32::new(0), CancellationToken::new());
    let stale = || object_store::Error::Generic { store: "file", source: "stale handle".into() };
    let fails_once =
        || async { if asked.fetch_add(1, Ordering::SeqCst) == 0 { Err(stale()) } else { Ok(()) } };
    let waited = store.insist(Duration::from_secs(600), &never, fails_once);
    futures::executor::block_on(waited).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    asked.store(0, Ordering::SeqCst);
    let waited = store.insist(Duration::ZERO, &never, fails_once);
    futures::executor::block_on(waited).unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// The answer to a question for an object's properties has no body: a missing bucket looked like a
/// missing shard, and a wrong secret like a missing permission.
#[test]
fn a_look_at_an_object_is_refused_in_the_stores_own_words() {
    let nobody = Nobody::there();
    let proxy = FaultyProxy::start(nobody.address, 1);
    let settings = aimed_at(&proxy.address.to_string(), &[(super::PATIENCE, "3600")]);
    let store = open_with("s3://bucket/data/a.tar", &settings).unwrap();
    for (status, code, kind) in [
        (404, "NoSuchBucket", Kind::NoBucket),
        (403, "SignatureDoesNotMatch", Kind::WrongCredentials),
        (403, "InvalidAccessKeyId", Kind::WrongCredentials),
        (403, "AccessDenied", Kind::NoPermission),
        (404, "NoSuchKey", Kind::Missing),
    ] {
        proxy.set(vec![Trouble::new(What::Refuse(status, code))]);
        for objects in [store.objects(), store.patient()] {
            let error = runtime().block_on(objects.head(&store.path)).unwrap_err();
            assert_eq!(Error::from(error).kind, kind, "{code}");
        }
    }
}

#[test]
fn wrong_credentials_are_said_at_once_and_are_not_shown() {
    let Some(server) = s3::strict_server() else { return };
    let bucket = server.bucket();
    let wrong = [("AWS_SECRET_ACCESS_KEY", SECRET), (super::PATIENCE, "3600")];
    let url = bucket.url("runs");
    let store = open_with(&url, &settings(&bucket, &wrong)).unwrap();
    let began = Instant::now();
    let errors = failures(&store);
    assert!(began.elapsed() < Duration::from_secs(600), "waited for what waiting cannot cure");
    let parts = [bucket.name.as_str(), "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"];
    assert_says(&errors, Kind::WrongCredentials, &parts);
    let unknown = [("AWS_ACCESS_KEY_ID", "nobody"), (super::PATIENCE, "3600")];
    let store = open_with(&url, &settings(&bucket, &unknown)).unwrap();
    assert_says(&failures(&store), Kind::WrongCredentials, &["InvalidAccessKeyId"]);
}

#[test]
fn a_bucket_that_does_not_exist_is_named_and_is_not_an_empty_folder() {
    let Some(server) = s3::server() else { return };
    let bucket = Bucket { name: "no-such-bucket".to_owned(), ..server.bucket() };
    let store = open_with(&bucket.url("runs"), &settings(&bucket, &[])).unwrap();
    assert_says(
        &failures(&store),
        Kind::NoBucket,
        &["\"no-such-bucket\" at http://", "create it, or correct the URL"],
    );
}

#[test]
fn no_error_and_no_debug_output_holds_a_secret() {
    let mut seen = String::new();
    let mut note = |store: &Store| {
        seen += &format!("{store:?} {:?} {}", store.patient(), store.patient());
        for error in failures(store) {
            seen += &format!("{error} {error:?} {error:#?}");
        }
    };
    // Nobody there.
    let nobody = Nobody::there();
    let address = nobody.address.to_string();
    let settings_there = aimed_at(&address, &[]);
    note(&open_with("s3://bucket/runs", &settings_there).unwrap());
    // Somebody who repeats everything that was sent.
    let echo = Echo::start();
    let echoed = aimed_at(&echo.address, &[]);
    note(&open_with("s3://bucket/runs", &echoed).unwrap());
    // The real server, with a wrong key.
    if let Some(server) = s3::strict_server_for_part() {
        let bucket = server.bucket();
        let wrong = settings(&bucket, &[("AWS_SECRET_ACCESS_KEY", SECRET), PATIENCE]);
        note(&open_with(&bucket.url("runs"), &wrong).unwrap());
    }
    seen += &format!("{settings_there:?} {echoed:?}");
    assert!(seen.contains("bucket"), "something was said");
    for secret in [SECRET, TOKEN] {
        assert!(!seen.contains(secret), "{secret} is shown in {seen}");
    }
}

/// A server that refuses every request and repeats it in its answer.
struct Echo {
    address: String,
}

impl Echo {
    fn start() -> Self {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                while lines.read_line(&mut request).is_ok_and(|read| read > 2) {}
                let body = format!(
                    "<Error><Code>SignatureDoesNotMatch</Code><Message>not for {TOKEN}</Message>\
                     <CanonicalRequest>{request}</CanonicalRequest><Key>{SECRET}</Key></Error>"
                );
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 403 Forbidden\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            }
        });
        Self { address }
    }
}

#[test]
fn a_registered_store_is_the_same_for_all_who_open_it() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    register("of-this-test", Store::of(Arc::clone(&objects)));
    let one = super::open("memory://of-this-test/a").unwrap();
    let other = super::open("memory://of-this-test/a").unwrap();
    runtime().block_on(async {
        one.objects().put(&one.path.clone().join("x"), "y".into()).await.unwrap();
        assert_eq!(objects.head(&Path::from("a/x")).await.unwrap().size, 1);
        assert!(other.objects().head(&other.path.clone().join("x")).await.is_ok());
        let elsewhere = super::open("memory://of-another-test/a").unwrap();
        assert!(elsewhere.objects().head(&Path::from("a/x")).await.is_err());
    });
}

#[test]
fn server_side_encryption_is_asked_for_as_the_environment_says() {
    // moto ignores it.
    let Some(server) = s3::strict_server() else { return };
    let bucket = server.bucket();
    // A key of the customer's own: the object cannot be read without it.
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let encrypted =
        [("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"), ("AWS_SSE_CUSTOMER_KEY_BASE64", key), PATIENCE];
    let store = open_with(&bucket.url("runs"), &settings(&bucket, &encrypted)).unwrap();
    let shown = format!("{store:?} {:?}", settings(&bucket, &encrypted));
    assert!(!shown.contains(key), "{shown}");
    let at = Path::from("runs/object");
    runtime().block_on(async {
        // Ceph wants TLS for it: that it refuses shows that it was asked.
        let error = store.patient().put(&at, "hidden".into()).await.unwrap_err().to_string();
        assert!(error.contains("InvalidRequest") && !error.contains(key), "{error}");
    });
}

/// A server behind TLS whose bucket is empty; returns its port and the certificate that vouches for
/// it, made as an authority's or a server's.
fn tls_server(is_ca: rcgen::IsCa, name: &str) -> (u16, String) {
    use std::io::{BufRead, BufReader, Write};
    let mut wanted = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    wanted.is_ca = is_ca;
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = wanted.self_signed(&pair).unwrap();
    let certificate = made.pem();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = BufReader::new(rustls::StreamOwned::new(session, stream.unwrap()));
            let mut request = String::new();
            // A client that does not trust the certificate goes away here.
            while tls.read_line(&mut request).is_ok_and(|read| read > 2) {}
            let body = "<ListBucketResult><Name>bucket</Name></ListBucketResult>";
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n");
            let _ = write!(tls.get_mut(), "{head}Connection: close\r\n\r\n{body}");
            tls.get_mut().conn.send_close_notify();
            let _ = tls.get_mut().flush();
        }
    });
    (port, certificate)
}

#[test]
fn a_server_behind_tls_is_trusted_by_the_bundle_that_the_environment_names_and_else_not() {
    let (port, certificate) = tls_server(rcgen::IsCa::ExplicitNoCa, "localhost");
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, certificate).unwrap();
    let endpoint = format!("https://localhost:{port}");
    let here = ("AWS_ENDPOINT_URL", endpoint.as_str());

    let store = open_with("s3://bucket/runs", &aimed_at("127.0.0.1:1", &[here])).unwrap();
    let listed = runtime().block_on(store.patient().list_with_delimiter(None));
    let said = ["not trusted", "AWS_CA_BUNDLE"];
    assert_says(&[Error::from(listed.unwrap_err())], Kind::Untrusted, &said);

    let trusted = ("AWS_CA_BUNDLE", bundle.to_str().unwrap());
    let store = open_with("s3://bucket/runs", &aimed_at("127.0.0.1:1", &[here, trusted])).unwrap();
    let listed = runtime().block_on(store.patient().list_with_delimiter(None));
    assert!(listed.unwrap().objects.is_empty());
}

/// `openssl req -x509` makes an authority's certificate unless it is told otherwise. Named in
/// AWS_CA_BUNDLE it was refused, and the advice was to set AWS_CA_BUNDLE.
#[test]
fn a_certificate_that_is_refused_although_it_is_in_the_bundle_is_said_to_be_wrong_and_why() {
    let authority = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    for (is_ca, name, said) in [
        (authority, "localhost", "basicConstraints=critical,CA:FALSE"),
        (rcgen::IsCa::ExplicitNoCa, "elsewhere", "by a host name that its certificate is for"),
    ] {
        let (port, certificate) = tls_server(is_ca, name);
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("ca.pem");
        std::fs::write(&bundle, certificate).unwrap();
        let endpoint = format!("https://localhost:{port}");
        let more =
            [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_CA_BUNDLE", bundle.to_str().unwrap())];
        let store = open_with("s3://bucket/runs", &aimed_at("127.0.0.1:1", &more)).unwrap();
        let listed = runtime().block_on(store.patient().list_with_delimiter(None));
        let error = Error::from(listed.unwrap_err());
        assert!(!error.to_string().contains("AWS_CA_BUNDLE"), "{error}");
        assert_says(&[error], Kind::Untrusted, &["not trusted", said]);
    }
}

/// Images of the web may lie on thousands of hosts.
#[test]
fn of_many_hosts_only_some_stores_are_kept_and_those_in_use() {
    let settings = Settings::new(std::iter::empty());
    let open = |host: usize| open_with(&format!("http://h{host}.invalid/a"), &settings).unwrap();
    let used = open(0);
    for host in 1..3 * KEPT_STORES {
        drop(open(host));
        let kept = opened().lock().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept <= KEPT_STORES + 100, "{kept} after {host}");
    }
    assert!(Arc::ptr_eq(&used.shared, &open(0).shared));
}
