//! Stores as the environment configures them, under the names that each store's own tools use.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::HttpConnector;
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{
    BackoffConfig, Certificate, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
};
use url::Url;

use super::context::{Context, Scheme};
use super::endpoint;
use super::http::Connector;
use super::proxy::{Proxies, Proxy};
use super::unfinished::Bucket;

/// Seconds without a byte, after which a request is given up and made again.
pub const STALL: &str = "RINGMASTER_STORE_STALL_SECONDS";
/// Seconds for which a request that fails is made again before its failure counts.
pub const PATIENCE: &str = "RINGMASTER_STORE_PATIENCE_SECONDS";

/// A part of 16 MiB takes so long at 4 Mbit/s.
const DEFAULT_STALL: Duration = Duration::from_secs(30);
/// Two minutes: a store that fails over, or is away for a minute, costs no checkpoint.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(120);
/// A store that has never answered is more likely misspelt than away.
const FIRST_PATIENCE: Duration = Duration::from_secs(15);
/// Longest time for a connection; loopback and another continent need less.
const CONNECT: Duration = Duration::from_secs(5);
/// What the library retries by itself, quickly and silently; the rest is the patience above (`retries`). Not
/// nothing: a request for the credentials of a machine's role is made again by the library alone, and what
/// fails there counts as lasting.
const QUICK_RETRIES: usize = 3;
const QUICK_RETRIES_END: Duration = Duration::from_secs(5);

/// Words in names of variables whose values are never shown …
const SECRET_WORDS: [&str; 4] = ["SECRET", "TOKEN", "KEY", "SAS"];
/// … unless the name ends like this: names of keys, and of files that hold them.
const HARMLESS_ENDS: [&str; 3] = ["_ID", "_FILE", "_ENABLED"];
/// What is shorter would be struck out of innocent words.
const SHORTEST_SECRET: usize = 4;

/// What the environment says about stores.
#[derive(Clone)]
pub struct Settings {
    variables: Vec<(String, String)>,
    proxies: Proxies,
    /// Of the user, whose other tools keep their settings there.
    home: Option<String>,
    pub(super) stall: Duration,
    pub(super) patience: Duration,
    pub(super) first_patience: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.variables.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Settings").field("variables", &names).finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads this process's environment.
    pub fn from_env() -> Self {
        Self::new(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Takes them from `variables` instead, names and values.
    pub fn new(variables: impl Iterator<Item = (String, String)>) -> Self {
        let ours = |name: &str| {
            ["AWS_", "GOOGLE_", "AZURE_", "RINGMASTER_STORE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        let (proxies, others): (Vec<_>, Vec<_>) =
            variables.partition(|(name, _)| Proxies::is_one(name));
        let home = others.iter().find(|(name, _)| name == "HOME").map(|(_, home)| home.clone());
        let mut variables = others;
        variables.retain(|(name, value)| ours(name) && !value.trim().is_empty());
        let mut settings = Self {
            variables,
            proxies: Proxies::new(proxies),
            home,
            stall: DEFAULT_STALL,
            patience: DEFAULT_PATIENCE,
            first_patience: FIRST_PATIENCE,
        };
        if let Some(stall) = settings.seconds(STALL) {
            settings.stall = stall;
        }
        if let Some(patience) = settings.seconds(PATIENCE) {
            settings.patience = patience;
            settings.first_patience = patience.min(FIRST_PATIENCE);
        }
        settings
    }

    /// Returns the values that must not be shown.
    pub(super) fn secrets(&self) -> Vec<String> {
        let secret = |name: &str| {
            SECRET_WORDS.iter().any(|word| name.contains(word))
                && !HARMLESS_ENDS.iter().any(|end| name.ends_with(end))
        };
        let secrets = self.variables.iter().filter(|(name, _)| secret(name));
        let values = secrets.map(|(_, value)| value.trim().to_owned());
        values.filter(|value| value.len() >= SHORTEST_SECRET).collect()
    }

    /// Tells settings apart without showing them.
    pub(super) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (&self.variables, &self.proxies).hash(&mut hasher);
        hasher.finish()
    }

    /// Checks what is the same for all stores behind a network, and what belongs to this one.
    ///
    /// # Errors
    /// What is wrong with the settings, and what to set.
    pub(super) fn check(&self, scheme: Scheme) -> Result<(), String> {
        for name in [STALL, PATIENCE] {
            if let Some(value) = self.get(name).filter(|_| self.seconds(name).is_none()) {
                return Err(format!("{name}={value} is no number of seconds above 0"));
            }
        }
        self.proxies.check()?;
        let own = self.variables.iter().filter(|(name, _)| {
            scheme.prefix().is_some_and(|prefix| name.starts_with(prefix)) && endpoint::is_url(name)
        });
        for (name, value) in own {
            endpoint::check(name, value.trim())?;
        }
        Ok(())
    }

    /// Returns the proxy through which `url` is asked, if any.
    pub(super) fn proxy(&self, scheme: Scheme, url: &str) -> Option<Proxy> {
        let own = scheme.prefix().map(|prefix| format!("{prefix}PROXY_URL"));
        let own = own.and_then(|variable| {
            Some(Proxy { url: endpoint::without_user(self.get(&variable)?), variable })
        });
        own.or_else(|| self.proxies.on_the_way_to(url))
    }

    /// Returns the variable that says where a store is, and what it says; none for the usual place.
    pub(super) fn endpoint(&self, scheme: Scheme) -> Option<(&'static str, &str)> {
        let names: &[&'static str] = match scheme {
            Scheme::S3 => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
            Scheme::Google => &["GOOGLE_BASE_URL"],
            Scheme::Azure => &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"],
            Scheme::File | Scheme::Memory | Scheme::Http => &[],
        };
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    /// Returns what other tools would take credentials for S3 from and this does not, with the command
    /// that hands them over; none where there is nothing of the kind.
    pub(super) fn unread_credentials(&self) -> Option<String> {
        let profile = self.get("AWS_PROFILE");
        let files = [("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")];
        let file = files.into_iter().find_map(|(variable, name)| {
            let usual = || self.home.as_ref().map(|home| format!("{home}/.aws/{name}"));
            let path = self.get(variable).map(str::to_owned).or_else(usual)?;
            std::path::Path::new(&path).is_file().then_some(path)
        });
        let found = match (profile, file) {
            (Some(profile), Some(file)) => format!("AWS_PROFILE={profile} and {file} are"),
            (Some(profile), None) => format!("AWS_PROFILE={profile} is"),
            (None, Some(file)) => format!("{file} is"),
            (None, None) => return None,
        };
        let named = profile.map_or_else(String::new, |profile| format!(" --profile {profile}"));
        Some(format!(
            "{found} not read; hand what it says over with: eval \"$(aws configure \
             export-credentials{named} --format env)\""
        ))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim())
    }

    fn seconds(&self, name: &str) -> Option<Duration> {
        let seconds = self.get(name)?.parse::<f64>().ok()?;
        Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero())
    }

    /// Whether a variable says yes.
    fn says_yes(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| ["1", "true", "yes", "on"].contains(&&*value.to_lowercase()))
    }

    /// Opens a bucket of S3 or of what speaks like it.
    ///
    /// # Errors
    /// What is wrong with the settings, and what to set.
    pub(super) fn s3(&self, bucket: &str) -> Result<Bucket, String> {
        self.check_s3_credentials()?;
        let plain = self.is_plain(Scheme::S3);
        let mut builder = AmazonS3Builder::new()
            .with_client_options(self.client_options()?)
            .with_retry(self.retry())
            .with_http_connector(Connector);
        for (key, value) in self.keys::<AmazonS3ConfigKey>("AWS_") {
            builder = builder.with_config(key, value);
        }
        if let Some((_, endpoint)) = self.endpoint(Scheme::S3) {
            // The library takes whichever of the names comes last in the environment.
            builder = builder.with_endpoint(endpoint);
        }
        if plain {
            builder = builder.with_allow_http(true);
        }
        // After the environment: the URL decides which bucket.
        let s3 = builder.with_bucket_name(bucket).build();
        let s3 = s3.map_err(|error| self.unusable(&error))?;
        let client = Connector.connect(&self.client_options()?.with_allow_http(plain));
        Ok(Bucket {
            s3,
            client: client.map_err(|error| self.unusable(&error))?,
            region: self
                .get("AWS_REGION")
                .or_else(|| self.get("AWS_DEFAULT_REGION"))
                .unwrap_or("us-east-1")
                .to_owned(),
            signs: !self.says_yes("AWS_SKIP_SIGNATURE"),
        })
    }

    /// Whether a store is asked without TLS: whoever writes http:// has allowed it.
    fn is_plain(&self, scheme: Scheme) -> bool {
        self.endpoint(scheme)
            .is_some_and(|(_, url)| url.to_ascii_lowercase().starts_with("http://"))
    }

    fn check_s3_credentials(&self) -> Result<(), String> {
        let (id, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
        match (self.get(id), self.get(secret)) {
            (Some(_), None) => return Err(format!("{id} is set and {secret} is not; set both")),
            (None, Some(_)) => return Err(format!("{secret} is set and {id} is not; set both")),
            (Some(_), Some(_)) => return Ok(()),
            (None, None) => {}
        }
        let from_a_role = [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        let endpoint = self.endpoint(Scheme::S3);
        let elsewhere = endpoint.is_some_and(|(_, url)| !url.contains("amazonaws.com"));
        let no_instance = elsewhere || self.says_yes("AWS_EC2_METADATA_DISABLED");
        let none = from_a_role.iter().all(|name| self.get(name).is_none());
        if none && no_instance && !self.says_yes("AWS_SKIP_SIGNATURE") {
            if let Some(unread) = self.unread_credentials() {
                return Err(format!("{id} and {secret} are not set, and {unread}"));
            }
            return Err(format!(
                "there are no credentials; set {id} and {secret} (or AWS_SKIP_SIGNATURE=true for a \
                 public bucket)"
            ));
        }
        Ok(())
    }

    /// Opens a bucket of Google Cloud Storage.
    ///
    /// # Errors
    /// As [`Settings::s3`].
    pub(super) fn google(&self, bucket: &str) -> Result<GoogleCloudStorage, String> {
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_client_options(self.client_options()?)
            .with_retry(self.retry())
            .with_http_connector(Connector);
        for (key, value) in self.keys::<GoogleConfigKey>("GOOGLE_") {
            builder = builder.with_config(key, value);
        }
        if self.is_plain(Scheme::Google) {
            let key = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
            builder = builder.with_config(key, "true");
        }
        builder.with_bucket_name(bucket).build().map_err(|error| self.unusable(&error))
    }

    /// Opens a container of Azure; the URL may name the account.
    ///
    /// # Errors
    /// As [`Settings::s3`].
    pub(super) fn azure(&self, url: &Url) -> Result<MicrosoftAzure, String> {
        let mut builder = MicrosoftAzureBuilder::new()
            .with_client_options(self.client_options()?)
            .with_retry(self.retry())
            .with_http_connector(Connector);
        for (key, value) in self.keys::<AzureConfigKey>("AZURE_") {
            builder = builder.with_config(key, value);
        }
        if self.is_plain(Scheme::Azure) {
            builder = builder.with_allow_http(true);
        }
        builder.with_url(url.as_str()).build().map_err(|error| self.unusable(&error))
    }

    /// Opens a web server, for reading.
    ///
    /// # Errors
    /// As [`Settings::s3`].
    pub(super) fn http(&self, origin: &str) -> Result<Arc<dyn ObjectStore>, String> {
        let store = HttpBuilder::new()
            .with_url(origin)
            .with_client_options(self.client_options()?.with_allow_http(true))
            .with_retry(self.retry())
            .with_http_connector(Connector)
            .build()
            .map_err(|error| self.unusable(&error))?;
        Ok(Arc::new(store))
    }

    /// Returns what the environment sets of one library's keys.
    fn keys<'a, K: FromStr + 'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (K, String)> + 'a {
        let known = move |(name, value): &(String, String)| {
            let key =
                name.starts_with(prefix).then(|| name.to_ascii_lowercase().parse().ok())??;
            Some((key, value.trim().to_owned()))
        };
        self.variables.iter().filter_map(known)
    }

    fn client_options(&self) -> Result<ClientOptions, String> {
        let mut options = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            // Of a whole transfer, which may be long: silence is what is limited.
            .with_timeout_disabled()
            .with_read_timeout(self.stall);
        if let Some(path) = self.get("AWS_CA_BUNDLE") {
            let wrong = |reason: String| format!("AWS_CA_BUNDLE={path}: {reason}");
            let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let found = Certificate::from_pem_bundle(&text).map_err(|e| wrong(e.to_string()))?;
            if found.is_empty() {
                return Err(wrong("it holds no certificate; name a file in PEM format".to_owned()));
            }
            for certificate in found {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
    }

    fn retry(&self) -> RetryConfig {
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        };
        RetryConfig { backoff, max_retries: QUICK_RETRIES, retry_timeout: QUICK_RETRIES_END }
    }

    /// The library's words on settings it cannot use, without the settings' values.
    fn unusable(&self, error: &object_store::Error) -> String {
        let context = Context::new(Scheme::Memory, String::new(), self.secrets());
        let mut innermost: &dyn std::error::Error = error;
        while let Some(cause) = innermost.source() {
            innermost = cause;
        }
        context.redacted(&innermost.to_string())
    }
}
