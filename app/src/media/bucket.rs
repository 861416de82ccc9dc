//! Buckets of S3 and of Google Cloud Storage, and compatible services.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::tls;

/// A bucket, and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    provider: Provider,
    name: String,
    prefix: Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provider {
    S3,
    GoogleCloud,
}

impl FromStr for Bucket {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        const FIX: &str = "take s3://BUCKET/PREFIX or gs://BUCKET/PREFIX";
        let (scheme, rest) = text.split_once("://").context(FIX)?;
        let provider = match scheme {
            "s3" => Provider::S3,
            "gs" => Provider::GoogleCloud,
            other => anyhow::bail!("{other}:// is not known here: {FIX}"),
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        ensure!((3..=222).contains(&name.len()) && name.bytes().all(fit), "{name:?} is not a bucket name: {FIX}");
        let prefix =
            Path::parse(prefix.trim_end_matches('/')).with_context(|| format!("the prefix does not fit: {FIX}"))?;
        Ok(Self { provider, name: name.to_owned(), prefix })
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.provider {
            Provider::S3 => "s3",
            Provider::GoogleCloud => "gs",
        };
        write!(f, "{scheme}://{}/{}", self.name, self.prefix)
    }
}

impl Bucket {
    /// Opens the bucket with the variables in `environment`, which are those of the providers' own tools:
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL` …;
    /// `GOOGLE_APPLICATION_CREDENTIALS` or `STORAGE_EMULATOR_HOST`. The account needs the rights to read, write and
    /// list: without the latter, S3 reports a missing picture as forbidden.
    pub(super) fn open(
        &self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> anyhow::Result<Arc<dyn ObjectStore>> {
        tls::choose_provider();
        let context = || format!("the bucket {self} cannot be used: check the environment");
        let environment = environment.into_iter();
        Ok(match self.provider {
            Provider::S3 => {
                let store = self.s3(environment).build().with_context(context)?;
                Arc::new(PrefixStore::new(store, self.prefix.clone()))
            }
            Provider::GoogleCloud => {
                let store = self.google_cloud(environment).build().with_context(context)?;
                Arc::new(PrefixStore::new(store, self.prefix.clone()))
            }
        })
    }

    fn s3(&self, environment: impl Iterator<Item = (String, String)>) -> AmazonS3Builder {
        let mut builder = AmazonS3Builder::new();
        let mut plain = false;
        for (variable, value) in environment.filter(|(variable, _)| variable.starts_with("AWS_")) {
            if let Ok(key) = variable.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                plain |= matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint)
                    && value.starts_with("http://");
                builder = builder.with_config(key, value);
            }
        }
        builder.with_bucket_name(&self.name).with_client_options(client(plain)).with_retry(retry())
    }

    fn google_cloud(&self, environment: impl Iterator<Item = (String, String)>) -> GoogleCloudStorageBuilder {
        let mut builder = GoogleCloudStorageBuilder::new();
        let mut plain = false;
        for (variable, value) in environment {
            if variable == "STORAGE_EMULATOR_HOST" {
                let address = if value.contains("://") { value } else { format!("http://{value}") };
                // An emulator accepts any token; without one, the library would request a token from the cloud.
                builder = builder.with_base_url(&address).with_bearer_token("emulator");
                plain |= address.starts_with("http://");
            } else if variable.starts_with("GOOGLE_")
                && let Ok(key) = variable.to_ascii_lowercase().parse::<GoogleConfigKey>()
            {
                plain |= matches!(key, GoogleConfigKey::BaseUrl) && value.starts_with("http://");
                builder = builder.with_config(key, value);
            }
        }
        builder.with_bucket_name(&self.name).with_client_options(client(plain)).with_retry(retry())
    }
}

/// Plain HTTP is allowed only if the endpoint says `http://`.
fn client(plain: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(plain)
        .with_connect_timeout(CONNECT_TIMEOUT)
        // No limit on the whole: how long a download takes depends on its client.
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
}

fn retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 3, retry_timeout: RETRY_TIMEOUT }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_TIMEOUT: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_url_parses_and_prints_alike() {
        for (text, shown) in [
            ("s3://pictures", "s3://pictures/"),
            ("s3://pictures/a/b/", "s3://pictures/a/b"),
            ("gs://pictures.example/a", "gs://pictures.example/a"),
        ] {
            assert_eq!(text.parse::<Bucket>().unwrap().to_string(), shown);
        }
        for bad in ["pictures", "ftp://pictures", "s3://", "s3:///a", "s3://a b/c", "s3://pictures/../x"] {
            assert!(bad.parse::<Bucket>().is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_http_must_be_enabled() {
        let bucket: Bucket = "s3://pictures".parse().unwrap();
        let open = |endpoint: &str| {
            bucket.open([
                ("AWS_ENDPOINT_URL".to_owned(), endpoint.to_owned()),
                ("AWS_REGION".to_owned(), "eu-west-1".to_owned()),
            ])
        };
        assert!(open("http://127.0.0.1:9000").is_ok());
        assert!(open("https://127.0.0.1:9000").is_ok());
    }
}
