//! `app serve` runs one instance, `app demo` a balancer and three of them.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use app::config::{Cli, Command, ServeArgs};
use app::log::Log;
use app::metrics::Metrics;
use app::server::{self, Stop};
use app::{App, Stores, demo, health};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = match Log::start(&cli.log, cli.log_format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("app: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&format!("app: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    #[cfg(feature = "network")]
    app::tls::choose_provider();
    match cli.command {
        Command::Serve(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let outcome = runtime.block_on(serve(*args));
            // Work that threads are still doing at the deadline, such as decoding a picture, is abandoned.
            runtime.shutdown_background();
            outcome
        }
        // On one thread: the kernel ties a child's life to the thread that started it.
        Command::Demo(args) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(demo::run(args))
        }
        Command::Health(args) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(health::ask(args))
        }
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let instance = args.instance()?;
    let stores = args.stores.settings(args.visitor_lifetime)?;
    let mut stop = stop_signals()?;
    let metrics = Arc::new(Metrics::new()?);
    let stores = tokio::select! {
        stores = Stores::open(&stores, &metrics) => stores?,
        // Also while it waits for a database.
        _ = stop.changed() => return Ok(()),
    };
    let app = App::new(instance, settings, stores, metrics)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on --listen {}: choose another port, or 0 for any", args.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(instance = app.instance.name, %address, "listening on {address}");
    // The process that started this waits for the line. If nobody reads it, that is no reason to stop.
    let _ = writeln!(std::io::stdout(), "app {} listening on {address}", app.instance.name);
    server::run(app, listener, stop).await;
    tracing::info!("stopped");
    Ok(())
}

/// The requests to stop, from now on.
fn stop_signals() -> anyhow::Result<watch::Receiver<Stop>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, stop) = watch::channel(Stop::No);
    tokio::spawn(async move {
        loop {
            let asked = tokio::select! {
                Some(()) = terminate.recv() => Stop::Announced,
                // From the terminal, so there is probably no balancer to inform.
                Some(()) = interrupt.recv() => Stop::Now,
            };
            // A second request of any kind means an immediate stop.
            sender.send_modify(|stop| *stop = if *stop == Stop::No { asked } else { Stop::Now });
        }
    });
    Ok(stop)
}
