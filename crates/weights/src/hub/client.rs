//! What a hub answers: `HEAD ENDPOINT/ORG/NAME/resolve/REVISION/FILE` and its headers.

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION};
use reqwest::{RequestBuilder, Response, StatusCode, Url, redirect};

use super::repository::{is_commit, is_plain};
use super::{Error, Repository, Settings};

/// Most steps of a redirection inside the hub.
const REDIRECTIONS: usize = 5;

/// A file of a repository, as the hub describes it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: String,
    pub(super) commit: String,
    /// Name of its content: the SHA-256 of a large file.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: Option<u64>,
}

/// Asks a hub.
#[derive(Debug)]
pub(super) struct Client<'a> {
    pub(super) settings: &'a Settings,
    /// Follows redirections; leaves the token behind where they lead to another host.
    bytes: reqwest::Client,
    /// Shows them.
    heads: reqwest::Client,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a Settings) -> Result<Self, Error> {
        // Whoever was first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let build = |policy| {
            reqwest::Client::builder()
                .connect_timeout(settings.timeout)
                .read_timeout(settings.timeout)
                .user_agent(concat!("ringmaster/", env!("CARGO_PKG_VERSION")))
                .redirect(policy)
                .build()
                .map_err(|source| Error::Network { url: settings.endpoint.clone(), source })
        };
        let bytes = build(redirect::Policy::limited(REDIRECTIONS))?;
        Ok(Self { settings, bytes, heads: build(redirect::Policy::none())? })
    }

    /// Asks which content a file has.
    pub(super) async fn head(&self, repository: &Repository, file: &str) -> Result<Found, Error> {
        let mut url = self.url(repository, repository.revision(), file)?;
        let mut commit = None;
        for _ in 0..REDIRECTIONS {
            let response = self.send(self.heads.head(url.clone()), &url).await?;
            let headers = response.headers();
            commit = header(headers, "x-repo-commit").or(commit);
            let linked = header(headers, "x-linked-etag").is_some();
            // Inside the hub one follows to where the file is described; storage elsewhere is not
            // asked, the hub has said what lies there.
            if response.status().is_redirection() && !linked {
                url = self.inside(&url, headers)?;
                continue;
            }
            self.check(&response, repository, file, &url)?;
            return found(headers, response.status(), commit, file, &url);
        }
        Err(Error::Answer { url: url.into(), what: "end", found: "it redirects on and on".into() })
    }

    /// Asks for a file's bytes from `start` on.
    pub(super) async fn get(
        &self,
        repository: &Repository,
        found: &Found,
        start: u64,
    ) -> Result<Response, Error> {
        let url = self.url(repository, &found.commit, &found.file)?;
        let mut request = self.bytes.get(url.clone());
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        let response = self.send(request, &url).await?;
        if response.status() != StatusCode::RANGE_NOT_SATISFIABLE {
            self.check(&response, repository, &found.file, &url)?;
        }
        Ok(response)
    }

    async fn send(&self, request: RequestBuilder, url: &Url) -> Result<Response, Error> {
        let mut request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.settings.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let sent = request.send().await;
        sent.map_err(|source| Error::Network { url: url.to_string(), source: source.without_url() })
    }

    pub(super) fn url(
        &self,
        repository: &Repository,
        revision: &str,
        file: &str,
    ) -> Result<Url, Error> {
        let (endpoint, name) = (&self.settings.endpoint, repository.name());
        let revision = revision.replace('/', "%2F");
        let text = format!("{endpoint}/{name}/resolve/{revision}/{file}");
        Url::parse(&text).map_err(|_| Error::Name {
            what: "HF_ENDPOINT",
            name: endpoint.clone(),
            constraint: "expected a URL such as https://HOST",
        })
    }

    /// Returns where a redirection leads, if it stays on the host: the token goes along.
    fn inside(&self, url: &Url, headers: &HeaderMap) -> Result<Url, Error> {
        let location = header(headers, LOCATION.as_str()).unwrap_or_default();
        let next = url.join(&location).ok().filter(|next| next.origin() == url.origin());
        next.ok_or_else(|| Error::Answer {
            url: url.to_string(),
            what: "X-Linked-Etag",
            found: format!("it redirects to {location:?}"),
        })
    }

    fn check(
        &self,
        response: &Response,
        repository: &Repository,
        file: &str,
        url: &Url,
    ) -> Result<(), Error> {
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let endpoint = self.settings.endpoint.clone();
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let repository = repository.to_string();
        Err(match (status.as_u16(), code.as_str()) {
            (404, "RevisionNotFound") => {
                Error::NoRepository { endpoint, what: "revision", repository }
            }
            (404, "RepoNotFound") => {
                Error::NoRepository { endpoint, what: "repository", repository }
            }
            (404, _) => Error::NoSuchFile { repository, file: file.to_owned() },
            (status @ (401 | 403), _) => {
                let remedy = self.remedy(status, &repository);
                Error::Denied { endpoint, repository, status, remedy }
            }
            (status, _) => Error::Status { url: url.to_string(), status },
        })
    }

    fn remedy(&self, status: u16, repository: &str) -> String {
        let endpoint = &self.settings.endpoint;
        match (status, &self.settings.token) {
            (_, None) => {
                "it is private, gated or does not exist; set HF_TOKEN to a token that may \
                          read it, or check its spelling"
                    .to_owned()
            }
            (401, Some(_)) => "the token in HF_TOKEN is not valid, or the repository does not \
                               exist"
                .to_owned(),
            (_, Some(_)) => format!(
                "the owner of the token in HF_TOKEN may not read it; ask for access at \
                 {endpoint}/{repository}"
            ),
        }
    }
}

fn found(
    headers: &HeaderMap,
    status: StatusCode,
    commit: Option<String>,
    file: &str,
    url: &Url,
) -> Result<Found, Error> {
    let unusable = |what, found: Option<String>| Error::Answer {
        url: url.to_string(),
        what,
        found: found.map_or_else(|| "there is none".to_owned(), |found| format!("{found:?}")),
    };
    // Both become names of files.
    let commit = commit
        .filter(|commit| is_commit(commit))
        .ok_or_else(|| unusable("X-Repo-Commit", header(headers, "x-repo-commit")))?;
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, ETAG.as_str()));
    let name = etag.as_deref().map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
    let name = name.filter(|name| is_plain(name)).map(str::to_owned);
    let etag = name.ok_or_else(|| unusable("ETag", etag))?;
    // The length of a redirection is that of its own text.
    let length = || header(headers, CONTENT_LENGTH.as_str()).filter(|_| status.is_success());
    let size = header(headers, "x-linked-size").or_else(length);
    let size = size.and_then(|size| size.parse().ok());
    Ok(Found { file: file.to_owned(), commit, etag, size })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
