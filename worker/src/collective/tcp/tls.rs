//! Mutual TLS between ranks: everybody shows a certificate that names job, generation and rank,
//! and everybody checks that it is the one expected.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringmaster_proto::v1::Generation;
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

/// What a rank needs to prove who it is and to check who the others are.
#[derive(Clone)]
pub struct Tls {
    job: String,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Why certificates or a key cannot be used.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A text is not the PEM that it should be.
    #[error("the {what} is not valid PEM")]
    Pem {
        /// Authority, certificate or key.
        what: &'static str,
        source: rustls::pki_types::pem::Error,
    },
    /// Certificates and key do not go together.
    #[error("the {what} cannot be used")]
    Unusable {
        /// Authority, or certificate and key.
        what: &'static str,
        source: rustls::Error,
    },
    /// No peer could be checked.
    #[error("the authority holds no certificate that could vouch for a peer")]
    NoAuthority,
}

impl Tls {
    /// Reads PEM files: the authority that vouches for peers, this rank's certificate chain and
    /// its key.
    ///
    /// `job` is the id that all ranks' certificates name, see [`rank_name`].
    ///
    /// # Errors
    /// [`Error`], naming the file or what it should hold.
    pub fn from_files(
        job: &str,
        authority: &Path,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, Error> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
        };
        Self::from_pem(job, &read(authority)?, &read(certificate)?, &read(key)?)
    }

    /// As [`Tls::from_files`], from the files' contents.
    ///
    /// # Errors
    /// As [`Tls::from_files`].
    pub fn from_pem(
        job: &str,
        authority: &[u8],
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Self, Error> {
        let pem = |what| move |source| Error::Pem { what, source };
        let mut roots = RootCertStore::empty();
        for root in certificates(authority).map_err(pem("authority"))? {
            let unusable = |source| Error::Unusable { what: "authority", source };
            roots.add(root).map_err(unusable)?;
        }
        if roots.is_empty() {
            return Err(Error::NoAuthority);
        }
        let chain = certificates(certificate).map_err(pem("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(pem("key"))?;
        Self::new(job, Arc::new(roots), chain, key)
            .map_err(|source| Error::Unusable { what: "certificate with its key", source })
    }

    fn new(
        job: &str,
        roots: Arc<RootCertStore>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, rustls::Error> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        Ok(Self { job: job.to_owned(), client: Arc::new(client), server: Arc::new(server) })
    }

    /// Returns the connecting side; the handshake fails unless the other end is that rank.
    pub(super) fn connect(&self, generation: Generation, rank: usize) -> io::Result<Connection> {
        let name = self.expected(generation, rank)?;
        let connection = ClientConnection::new(Arc::clone(&self.client), name);
        connection.map(Connection::Client).map_err(io::Error::other)
    }

    /// Returns the accepting side; [`Tls::check`] is due once the other end has named its rank.
    pub(super) fn accept(&self) -> io::Result<Connection> {
        let connection = ServerConnection::new(Arc::clone(&self.server));
        connection.map(Connection::Server).map_err(io::Error::other)
    }

    /// Whether the peer of `connection` has shown the certificate of that rank.
    pub(super) fn check(
        &self,
        connection: &Connection,
        generation: Generation,
        rank: usize,
    ) -> io::Result<()> {
        let shown = connection.peer_certificates().and_then(|chain| chain.first());
        let shown = shown.ok_or_else(|| io::Error::other("the peer has shown no certificate"))?;
        let certificate = ParsedCertificate::try_from(shown).map_err(io::Error::other)?;
        let name = self.expected(generation, rank)?;
        verify_server_name(&certificate, &name).map_err(io::Error::other)
    }

    fn expected(&self, generation: Generation, rank: usize) -> io::Result<ServerName<'static>> {
        let name = rank_name(&self.job, generation, rank);
        ServerName::try_from(name.clone())
            .map_err(|error| io::Error::other(format!("{name}: {error}")))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("job", &self.job).finish_non_exhaustive()
    }
}

/// Returns the DNS name that the certificate of a rank carries, such as
/// `rank-3.g1.7.emoji-abc.ringmaster`.
pub fn rank_name(job: &str, generation: Generation, rank: usize) -> String {
    format!("rank-{rank}.{generation}.{job}.ringmaster")
}

/// Whether a handshake has failed over a certificate, the peer's or this rank's own: it will again.
pub(super) fn is_about_certificates(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => true,
        Some(rustls::Error::AlertReceived(alert)) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
        ),
        _ => false,
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}
