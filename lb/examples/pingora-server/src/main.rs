//! A Pingora server that balances by Evenkeel: routes, pools and backends from a file in TOML, changed at run time by
//! the admin API. Pingora's proxy carries the requests, or with `--engine` Evenkeel's own engine. docs/pingora.md tells
//! more.
//!
//! ```sh
//! cargo run --package pingora-server -- [--engine | --filter] [--upgrade] [--daemon] evenkeel.toml [ADDRESS CERTIFICATE KEY]
//! ```
//!
//! With `--filter` there is a filter of our own before Evenkeel's proxy. At ADDRESS it speaks TLS, as Pingora does.

mod filter;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use evenkeel::config::backend::SocketAddress;
use evenkeel::config::toml::Checked;
use evenkeel::config::{Config, Problem, ServerConfig};
use evenkeel::control::{self, Control};
use evenkeel::log::Log;
use evenkeel::metrics::Metrics;
use evenkeel::pingora::{App, Management, Proxy};
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::prelude::{Opt, Server, background_service};
use pingora_core::server::RunArgs;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::ServiceWithDependents;
use pingora_core::services::listening::Service;
use pingora_proxy::{HttpProxy, ProxyHttp, ProxyServiceBuilder};

use crate::filter::Filtered;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str =
    "write: pingora-server [--engine | --filter] [--upgrade] [--daemon] evenkeel.toml [ADDRESS CERTIFICATE KEY]";

/// What carries the requests.
#[derive(Clone, Copy)]
enum Way {
    Proxy,
    FilteredProxy,
    Engine,
}

struct Arguments {
    way: Way,
    pingora: Opt,
    path: PathBuf,
    /// Address, certificate and key.
    tls: Option<[String; 3]>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { way, pingora, path, tls } = arguments()?;
    let (config, warnings) = read(&path)?;
    let metrics = Arc::new(Metrics::new());
    // To the end, so that the last lines are written.
    let _log = Log::start(&config.log, metrics.log_lost.clone()).context("the log cannot be started")?;
    for warning in warnings {
        tracing::warn!("{}", warning.in_file(&path));
    }
    let mut server = Server::new_with_opt_and_conf(pingora, of_pingora(&config.server, &path));
    let control = Arc::new(Control::new(&path, config.clone(), metrics));
    match way {
        Way::Engine => {
            let app = App::new(&control, &server.configuration)?;
            let management = app.management(&server)?;
            let service = Service::new("evenkeel".to_owned(), app);
            add(&mut server, management, listening(service, &config, tls)?);
        }
        Way::Proxy => {
            let proxy = Proxy::new(&control, &server.configuration)?;
            let management = proxy.management(&server)?;
            let service = service(&server.configuration, &config, proxy);
            add(&mut server, management, listening(service, &config, tls)?);
        }
        Way::FilteredProxy => {
            let proxy = Proxy::new(&control, &server.configuration)?;
            let management = proxy.management(&server)?;
            let service = service(&server.configuration, &config, Filtered { proxy });
            add(&mut server, management, listening(service, &config, tls)?);
        }
    }
    // Only now, since in an upgrade it takes the sockets away from the former process.
    server.bootstrap();
    server.run(RunArgs::default());
    Ok(())
}

fn arguments() -> anyhow::Result<Arguments> {
    let (mut way, mut pingora, mut rest) = (Way::Proxy, Opt::default(), Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--engine" => way = Way::Engine,
            "--filter" => way = Way::FilteredProxy,
            "--upgrade" | "-u" => pingora.upgrade = true,
            "--daemon" | "-d" => pingora.daemon = true,
            option if option.starts_with('-') => bail!("{option} is unknown; {USAGE}"),
            _ => rest.push(argument),
        }
    }
    let mut rest = rest.into_iter();
    let Some(path) = rest.next() else { bail!(USAGE) };
    let tls = match (rest.next(), rest.next(), rest.next(), rest.next()) {
        (None, ..) => None,
        (Some(address), Some(certificate), Some(key), None) => Some([address, certificate, key]),
        _ => bail!(USAGE),
    };
    // A daemon changes its working directory.
    Ok(Arguments { way, pingora, path: std::path::absolute(path)?, tls })
}

fn read(path: &Path) -> anyhow::Result<(Config, Vec<Problem>)> {
    match control::load(path) {
        Ok(Checked { config, warnings, .. }) => {
            Ok((config, warnings.into_iter().map(|warning| warning.problem).collect()))
        }
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(|problem| problem.in_file(path)).collect();
            bail!("{}", lines.join("\n"));
        }
    }
}

/// What of Pingora's settings Evenkeel's file has. Pingora's own files stand beside it, so that several servers do not
/// meet in /tmp.
fn of_pingora(server: &ServerConfig, path: &Path) -> ServerConf {
    let beside = |extension| path.with_extension(extension).to_string_lossy().into_owned();
    ServerConf {
        threads: server.threads,
        // The engine keeps a connection on one thread.
        work_stealing: false,
        // Pingora sleeps for the whole of it.
        grace_period_seconds: Some(server.shutdown_timeout.as_secs_f64().ceil() as u64),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: server.idle_connections.div_ceil(server.threads),
        // More than Evenkeel ever makes of one request.
        max_retries: 33,
        upgrade_sock: beside("upgrade.sock"),
        pid_file: beside("pid"),
        ..ServerConf::default()
    }
}

fn service<P>(server: &Arc<ServerConf>, config: &Config, proxy: P) -> Service<HttpProxy<P>>
where
    P: ProxyHttp + Send + Sync + 'static,
    P::CTX: Send + Sync + 'static,
{
    let mut options = HttpServerOptions::default();
    // A service has them once, each listener of the file for itself.
    options.h2c = config.listeners.iter().all(|listener| listener.settings.h2c);
    options.h2_idle_timeout = config.listeners.iter().map(|listener| listener.settings.keepalive_timeout).max();
    ProxyServiceBuilder::new(server, proxy).server_options(options).build()
}

/// Has the service listen at the addresses of the file, and at one with TLS.
fn listening<A>(mut service: Service<A>, config: &Config, tls: Option<[String; 3]>) -> anyhow::Result<Service<A>> {
    for listener in &config.listeners {
        let permissions = listener.socket_file.as_ref().map(|rights| Permissions::from_mode(rights.mode));
        listener.addresses.iter().for_each(|address| match address {
            SocketAddress::Ip(address) => service.add_tcp(&address.to_string()),
            SocketAddress::Unix(path) => service.add_uds(&path.to_string_lossy(), permissions.clone()),
        });
    }
    if let Some([address, certificate, key]) = tls {
        let mut settings = TlsSettings::intermediate(&certificate, &key)?;
        settings.enable_h2();
        service.add_tls_with_settings(&address, None, settings);
    }
    Ok(service)
}

fn add(server: &mut Server, management: Management, service: impl ServiceWithDependents + 'static) {
    server.add_service(background_service("evenkeel", management.with_signals()));
    server.add_service(service);
}
