//! Starting threads, and whether they accept.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use super::sockets::Socket;
use super::*;
use crate::access_log::AccessLog;
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// Listeners at an address each, for two threads that are not started.
fn listeners() -> Listeners {
    let text = "[[listener]]\naddresses = [\"127.0.0.1:0\", \"127.0.0.2:0\"]\n[state]\npersist = false\n\
                [[route]]\npool = \"app\"\n[[pool]]\nname = \"app\"\nbackends = []\n";
    let file = Path::new("/evenkeel.toml");
    let config = crate::config::toml::read(text, file).expect("a sound configuration");
    let metrics = Arc::new(Metrics::new());
    let context = EngineContext {
        control: Arc::new(Control::new(file, config.clone(), Arc::clone(&metrics))),
        access_log: Arc::new(AccessLog::new(metrics.access_log_lost.clone())),
        max_idle: Arc::default(),
        shutdown: Shutdown::new(),
        client_limit: ConnectionLimit::new(1),
        backend_limit: ConnectionLimit::new(1),
        handshake_limit: ConnectionLimit::for_handshakes(1),
    };
    let listeners = Listeners::new(2, context, 0);
    let prepared = listeners.prepare(&config.listeners, &mut Sockets::default(), false).expect("free ports");
    listeners.commit(prepared, &mut || {});
    listeners
}

// A thread that could not start was logged, and the process was ready all the same.
#[test]
fn one_thread_at_least_has_to_accept_at_each_address() {
    let listeners = listeners();
    assert!(listeners.is_accepting());
    let mut receivers = std::mem::take(&mut listeners.state().receivers);
    receivers.pop();
    assert!(listeners.is_accepting(), "on the other thread");
    let first = receivers[0].try_recv().expect("a socket for each address");
    assert!(listeners.is_accepting());
    drop(first);
    assert!(!listeners.is_accepting(), "at one address alone");
}

#[test]
fn threads_that_are_not_allowed_to_accept_end() {
    let listeners = listeners();
    let started = listeners.start().expect("two threads");
    assert!(listeners.is_accepting());
    started.end();
    assert!(!listeners.is_accepting());
}

#[test]
fn a_socket_that_a_thread_cannot_use_refuses_the_start() {
    let listeners = listeners();
    // The kernel waits for no regular file (EPERM).
    let file = TcpListener::from(OwnedFd::from(tempfile::tempfile().expect("a temporary file")));
    file.set_nonblocking(true).expect("a flag of any file");
    let (_given, listener) = watch::channel(Arc::clone(&listeners.state().open[0].listeners[1]));
    let accepting = Accepting { socket: Socket::Tcp(file), listener, is_open: Arc::new(()), shared: None };
    assert!(listeners.threads[1].send(accepting).is_ok());
    let refused = listeners.start().err().expect("one of two threads cannot start");
    let message = "not all of the 2 threads for traffic can be started (Operation not permitted (os error 1)): lower [server] threads";
    assert_eq!(refused, message);
    assert!(!listeners.is_accepting(), "the other thread ends, too");
}
