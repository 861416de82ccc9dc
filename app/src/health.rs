//! `app health`: queries the health of an instance, for images without a shell.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Address;

/// The flags of the query.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// What to ask: /healthz whether it is alive, /readyz whether its stores can be reached as well
    #[arg(long, env = "APP_HEALTH_URL", default_value = "http://127.0.0.1:9001/healthz", value_name = "URL")]
    pub url: Uri,
    /// Time to answer
    #[arg(long, env = "APP_HEALTH_TIMEOUT", default_value = "3500ms", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// Succeeds if the status is 200.
pub async fn ask(args: HealthArgs) -> anyhow::Result<()> {
    let url = &args.url;
    ensure!(url.scheme_str() == Some("http"), "--url {url} cannot be asked: take http://HOST:PORT/healthz");
    let authority = url.authority().with_context(|| format!("--url {url} names no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let answer = timeout(args.timeout, answer_of(host, authority.port_u16().unwrap_or(80), path));
    let Ok(answer) = answer.await else {
        bail!("{url}: no answer within {}", humantime::format_duration(args.timeout));
    };
    let (status, body) = answer.with_context(|| url.to_string())?;
    ensure!(status == "200", "{url}: status {status}: {body}");
    println!("{body}");
    Ok(())
}

/// Status and body of `path` at an instance.
async fn answer_of(host: &str, port: u16, path: &str) -> anyhow::Result<(String, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    let answer = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = answer.await.context("cannot be reached")?;
    let answer = String::from_utf8_lossy(&answer);
    let mut words = answer.lines().next().unwrap_or_default().split(' ');
    let (version, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    ensure!(version.starts_with("HTTP/1."), "what answers does not speak HTTP");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    Ok((status.to_owned(), body.to_owned()))
}

/// Whether any of `peers` reaches all of its stores. A peer that does not answer within `limit` counts as not.
pub async fn any_is_well(peers: &[Address], limit: Duration) -> bool {
    let asked = peers.iter().map(|peer| {
        Box::pin(async {
            match answer_of(&peer.host, peer.port, "/readyz?alone").await {
                Ok((status, _)) if status == "200" => Ok(()),
                _ => Err(()),
            }
        })
    });
    let asked: Vec<_> = asked.collect();
    !asked.is_empty() && matches!(timeout(limit, futures_util::future::select_ok(asked)).await, Ok(Ok(_)))
}

const MAX_ANSWER_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The result for an answer.
    async fn asked(answer: &'static str) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/healthz", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        ask(HealthArgs { url, timeout: Duration::from_secs(10) }).await
    }

    #[tokio::test]
    async fn only_200_is_healthy() {
        asked("HTTP/1.1 200 OK\r\n\r\nok\n").await.unwrap();
        let error = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nout of reach: data\n").await.unwrap_err();
        assert!(error.to_string().contains("503: out of reach: data"), "{error}");
        assert!(asked("SSH-2.0\r\n").await.is_err());
        assert!(asked("").await.is_err());
    }

    #[tokio::test]
    async fn a_silent_server_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let error = ask(HealthArgs { url, timeout: Duration::from_millis(50) }).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 50ms"), "{error}");
    }
}
