//! A store between the one under test and its user, that fails as a test says.
//!
//! Every operation has a number; a part of an upload is one, and so is each object of a deletion.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The process dies before this operation does anything.
    DieBefore(usize),
    /// The process dies after this operation did all it does.
    DieAfter(usize),
    /// This operation does what it does, and its answer is lost.
    LoseReply(usize),
    /// What this operation reads arrives with one bit changed.
    Corrupt(usize),
    /// Some operations fail, some lose their answer, some take their time: by this seed.
    Storm(u64),
}

/// See the module. Clones share everything.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    shared: Arc<Shared>,
    /// Whether conditions are honoured; else they are ignored without a word.
    conditional: bool,
}

#[derive(Debug)]
struct Shared {
    fault: Mutex<Fault>,
    operations: AtomicUsize,
    dead: AtomicBool,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the faulty store")
    }
}

/// What becomes of one operation.
#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    before: Option<Failure>,
    after: Option<Failure>,
    corrupt: bool,
    pause: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    Dead,
    Lost,
}

impl Failure {
    fn error(self) -> Error {
        match self {
            // Refused, so that nobody tries again: the process is gone.
            Self::Dead => Error::PermissionDenied {
                path: String::new(),
                source: "the process is dead".into(),
            },
            Self::Lost => Error::Generic { store: "faulty", source: "the answer was lost".into() },
        }
    }
}

impl Faulty {
    /// A store in front of `inner` that does nothing wrong yet; `conditional`: whether conditions are
    /// honoured.
    pub fn new(inner: Arc<dyn ObjectStore>, conditional: bool) -> Self {
        let shared = Shared {
            fault: Mutex::new(Fault::None),
            operations: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
        };
        Self { inner, shared: Arc::new(shared), conditional }
    }

    /// Counts from 0 again, with this fault to come.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().expect("no test panicked holding it") = fault;
        self.shared.operations.store(0, Ordering::SeqCst);
        self.shared.dead.store(false, Ordering::SeqCst);
    }

    /// Whether the process has died.
    pub fn died(&self) -> bool {
        self.shared.dead.load(Ordering::SeqCst)
    }

    /// Returns how many operations there were since the fault was set.
    pub fn operations(&self) -> usize {
        self.shared.operations.load(Ordering::SeqCst)
    }

    fn fate(&self) -> Fate {
        if self.died() {
            return Fate { before: Some(Failure::Dead), ..Fate::default() };
        }
        let number = self.shared.operations.fetch_add(1, Ordering::SeqCst);
        let dead = Some(Failure::Dead);
        match *self.shared.fault.lock().expect("no test panicked holding it") {
            Fault::DieBefore(at) if at == number => {
                self.shared.dead.store(true, Ordering::SeqCst);
                Fate { before: dead, ..Fate::default() }
            }
            Fault::DieAfter(at) if at == number => Fate { after: dead, ..Fate::default() },
            Fault::LoseReply(at) if at == number => {
                Fate { after: Some(Failure::Lost), ..Fate::default() }
            }
            Fault::Corrupt(at) if at == number => Fate { corrupt: true, ..Fate::default() },
            Fault::Storm(seed) => storm(seed, number),
            _ => Fate::default(),
        }
    }

    async fn run<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        self.run_with(self.fate(), operation).await
    }

    async fn run_with<T>(
        &self,
        fate: Fate,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if !fate.pause.is_zero() {
            tokio::time::sleep(fate.pause).await;
        }
        if let Some(failure) = fate.before {
            return Err(failure.error());
        }
        let result = operation.await;
        match fate.after {
            None => result,
            Some(failure) => {
                if matches!(failure, Failure::Dead) {
                    self.shared.dead.store(true, Ordering::SeqCst);
                }
                Err(failure.error())
            }
        }
    }
}

/// One in eight operations fails, one in eight loses its answer, one in four takes its time.
fn storm(seed: u64, number: usize) -> Fate {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (seed, number).hash(&mut hasher);
    let draw = hasher.finish();
    let pause =
        if draw >> 8 & 3 == 0 { Duration::from_millis(draw >> 16 & 15) } else { Duration::ZERO };
    match draw & 7 {
        0 => Fate { before: Some(Failure::Lost), pause, ..Fate::default() },
        1 => Fate { after: Some(Failure::Lost), pause, ..Fate::default() },
        _ => Fate { pause, ..Fate::default() },
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        let mode = if self.conditional { how.mode.clone() } else { PutMode::Overwrite };
        self.run(self.inner.put_opts(at, body, PutOptions { mode, ..how })).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.run(self.inner.put_multipart_opts(at, how)).await?;
        Ok(Box::new(FaultyUpload { store: self.clone(), inner }))
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        let fate = self.fate();
        let head = how.head;
        let mut result = self.run_with(fate, self.inner.get_opts(at, how)).await?;
        if fate.corrupt && !head {
            let (meta, range) = (result.meta.clone(), result.range.clone());
            let attributes = result.attributes.clone();
            let mut bytes = result.bytes().await?.to_vec();
            let middle = bytes.len() / 2;
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 4);
            let body = futures::stream::iter([Ok(Bytes::from(bytes))]).boxed();
            let payload = GetResultPayload::Stream(body);
            result = GetResult { payload, meta, range, attributes, extensions: Default::default() };
        }
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |at: Path| {
            let store = store.clone();
            async move { store.run(store.inner.delete(&at)).await.map(|()| at) }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let list = async move {
            let all = store.inner.list(prefix.as_ref()).try_collect::<Vec<_>>();
            store.run(all).await.map(|all| futures::stream::iter(all.into_iter().map(Ok)))
        };
        list.into_stream().try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.run(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.run(self.inner.copy_opts(from, to, how)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    store: Faulty,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (store, fate) = (self.store.clone(), self.store.fate());
        let sent = self.inner.put_part(part);
        Box::pin(async move { store.run_with(fate, sent).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (store, fate) = (self.store.clone(), self.store.fate());
        store.run_with(fate, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        let (store, fate) = (self.store.clone(), self.store.fate());
        store.run_with(fate, self.inner.abort()).await
    }
}
