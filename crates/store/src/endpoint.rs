//! Settings that name a server: checked before the store's library builds requests from them, which
//! takes them for granted and panics.

use http::Uri;
use url::Url;

/// Variables whose value has to be a URL.
const URLS: [&str; 17] = [
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_METADATA_ENDPOINT",
    "AWS_PROXY_URL",
    "AZURE_AUTHORITY_HOST",
    "AZURE_ENDPOINT",
    "AZURE_FABRIC_TOKEN_SERVICE_URL",
    "AZURE_IDENTITY_ENDPOINT",
    "AZURE_MSI_ENDPOINT",
    "AZURE_PROXY_URL",
    "AZURE_STORAGE_AUTHORITY_HOST",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
    "GOOGLE_PROXY_URL",
];

/// Whether the value of this variable has to be a URL.
pub(super) fn is_url(variable: &str) -> bool {
    URLS.contains(&variable)
}

/// Checks that a variable names a server as requests need it.
///
/// # Errors
/// What is wrong with the value and what to write; without a password it may hold.
pub(super) fn check(variable: &str, value: &str) -> Result<(), String> {
    let shown = without_user(value);
    let wrong = |what: String| Err(format!("{variable}={shown} {what}"));
    match value.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        Some("http" | "https") => {}
        Some(scheme) => {
            return wrong(format!(
                "begins with {scheme}://, and stores are reached by http:// or https://"
            ));
        }
        None => {
            let rest = shown.trim_start_matches('/');
            return wrong(format!(
                "does not begin with http:// or https://; write https://{rest}, or http://{rest} for a \
                 server without TLS"
            ));
        }
    }
    let url = match Url::parse(value) {
        Ok(url) => url,
        Err(error) => return wrong(format!("is no URL ({error}); write http://HOST:PORT")),
    };
    let has_user = !url.username().is_empty() || url.password().is_some();
    // A proxy may ask for them, and there is no other place to write them.
    if has_user && !variable.ends_with("_PROXY_URL") {
        return wrong("holds a user or a password; credentials have variables of their own".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("has something behind a ? or a #; write http://HOST:PORT".to_owned());
    }
    // It is joined with the object's path as it stands.
    if value.parse::<Uri>().is_err() {
        return wrong("holds characters that no URL has; write http://HOST:PORT".to_owned());
    }
    Ok(())
}

/// Returns a URL without what stands before the @ of its host.
pub(super) fn without_user(value: &str) -> String {
    let (scheme, rest) = match value.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), value),
    };
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}…@{rest}"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_its_scheme() {
        for value in [
            "http://localhost:9000",
            "https://s3.eu-central-1.amazonaws.com",
            "https://[::1]:9000/",
            "HTTPS://gateway/prefix/",
        ] {
            assert_eq!(check("AWS_ENDPOINT_URL", value), Ok(()));
        }
        for (value, said) in [
            ("localhost:9000", "write https://localhost:9000, or http://localhost:9000 for"),
            ("//localhost:9000", "write https://localhost:9000, or"),
            ("127.0.0.1", "does not begin with http:// or https://"),
            ("s3://bucket", "begins with s3://"),
            ("http://", "is no URL (empty host)"),
            ("http://localhost:90000", "is no URL (invalid port number)"),
            ("http://local host:9000", "is no URL"),
            ("http://localhost:9000/a b", "holds characters that no URL has"),
            ("http://localhost:9000?region=eu", "has something behind a ? or a #"),
        ] {
            let error = check("AWS_ENDPOINT_URL", value).err().unwrap_or_default();
            assert!(error.starts_with(&format!("AWS_ENDPOINT_URL={value} ")), "{error}");
            assert!(error.contains(said), "{value}: {error}");
        }
    }

    #[test]
    fn a_password_in_a_servers_url_is_refused_and_not_shown() {
        for value in ["http://me:hunter2@store:9000", "me:hunter2@store:9000", "ftp://me:hunter2@h"]
        {
            let error = check("AWS_ENDPOINT_URL", value).err().unwrap_or_default();
            assert!(!error.is_empty() && !error.contains("hunter2"), "{error}");
        }
    }
}
