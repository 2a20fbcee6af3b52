//! Uploads that nobody completed: a dead writer's parts are stored, and paid for, until somebody
//! ends its upload. The library can start and end uploads; listing them is done here.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{Error, Result};
use serde::Deserialize;
use url::Url;

/// Of a signature that is thrown away.
const BRIEFLY: Duration = Duration::from_secs(1);

/// A bucket, with what its list of unfinished uploads is asked with: object_store does not offer the
/// request.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) s3: AmazonS3,
    pub(super) client: HttpClient,
    pub(super) region: String,
    pub(super) signs: bool,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

/// One page of S3's `ListMultipartUploads`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    upload: Vec<Upload>,
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
}

impl Bucket {
    /// Ends every upload below `folder` whose object `chosen` accepts; returns how many.
    pub(super) async fn abort_unfinished(
        &self,
        folder: &Path,
        chosen: impl Fn(&Path) -> bool,
    ) -> Result<usize> {
        let mut marker = None;
        let mut ended = 0;
        loop {
            let page = self.list(folder, marker.as_ref()).await?;
            for upload in page.upload {
                let Ok(at) = Path::parse(&upload.key) else { continue };
                if !chosen(&at) {
                    continue;
                }
                match self.s3.abort_multipart(&at, &upload.upload_id).await {
                    Ok(()) => ended += 1,
                    // Completed or ended by somebody else in between.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            marker = match (page.is_truncated, page.next_key_marker) {
                (true, Some(key)) => Some((key, page.next_upload_id_marker.unwrap_or_default())),
                _ => return Ok(ended),
            };
        }
    }

    async fn list(&self, folder: &Path, marker: Option<&(String, String)>) -> Result<Page> {
        let prefix = format!("{folder}/");
        let mut query = vec![("uploads", ""), ("prefix", prefix.as_str())];
        if let Some((key, upload)) = marker {
            query.extend([("key-marker", key.as_str()), ("upload-id-marker", upload.as_str())]);
        }
        let mut url = self.url().await?;
        url.query_pairs_mut().extend_pairs(query);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(failed)?;
        if self.signs {
            let credential = self.s3.credentials().get_credential().await?;
            let signer = AwsAuthorizer::new(&credential, "s3", &self.region);
            signer.try_authorize(&mut request, None)?;
        }
        let response = self.client.execute(request).await.map_err(failed)?;
        let status = response.status();
        let body = response.into_body().bytes().await.map_err(failed)?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            return Err(failed(format!("status code: {}: {text}", status.as_u16())));
        }
        parse(&body)
    }

    /// Returns the bucket's own URL, which the library tells only as part of a signed one.
    async fn url(&self) -> Result<Url> {
        let mut url = self.s3.signed_url(Method::GET, &Path::default(), BRIEFLY).await?;
        url.set_query(None);
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(url)
    }
}

fn parse(body: &Bytes) -> Result<Page> {
    quick_xml::de::from_reader(body.as_ref()).map_err(failed)
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "store", source: source.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_uploads_is_read_with_its_markers() {
        let page = parse(&Bytes::from_static(
            br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
              <Bucket>b</Bucket><KeyMarker></KeyMarker><MaxUploads>1000</MaxUploads>
              <IsTruncated>true</IsTruncated>
              <NextKeyMarker>runs/a &amp; b</NextKeyMarker><NextUploadIdMarker>u2</NextUploadIdMarker>
              <Upload><Key>runs/a &amp; b</Key><UploadId>u1</UploadId><Owner><ID>x</ID></Owner></Upload>
              <Upload><Key>runs/c</Key><UploadId>u2</UploadId></Upload>
            </ListMultipartUploadsResult>"#,
        ))
        .unwrap();
        let keys: Vec<&str> = page.upload.iter().map(|upload| upload.key.as_str()).collect();
        assert_eq!(keys, ["runs/a & b", "runs/c"]);
        assert_eq!(page.next_key_marker.as_deref(), Some("runs/a & b"));
        assert!(page.is_truncated && page.next_upload_id_marker.as_deref() == Some("u2"));
        let empty = parse(&Bytes::from_static(b"<ListMultipartUploadsResult/>")).unwrap();
        assert!(empty.upload.is_empty() && !empty.is_truncated);
    }
}
