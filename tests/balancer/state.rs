//! Changes at run time survive a restart, and settings that have changed in the configuration file since take
//! precedence.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::balancer::backend_path;
use tests::{Balancer, Config, Origin, Pool, Request, eventually, within};

#[tokio::test]
async fn runtime_changes_survive_a_restart_and_a_kill() {
    let [a, b, c, d] = Origin::several(["a", "b", "c", "d"]).await;
    let mut balancer = Balancer::start(Config::of([&a, &b, &c])).await;
    balancer.switch_algorithm("least-connections").await;
    balancer.patch(&a, json!({ "weight": 7 })).await;
    balancer.patch(&b, json!({ "state": "down" })).await;
    balancer.change("DELETE", &backend_path(&c), None).await;
    let added = json!({ "address": d.address().to_string(), "weight": 3 });
    balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
    let wanted = wishes(&balancer).await;
    assert_eq!(
        wanted,
        json!([
            "least-connections",
            [a.address().to_string(), 7, "active"],
            [b.address().to_string(), 1, "down"],
            [d.address().to_string(), 3, "active"],
        ])
    );

    balancer.stop().await;
    balancer.start_again().await;
    assert_eq!(wishes(&balancer).await, wanted, "after SIGTERM");

    balancer.kill().await;
    balancer.start_again().await;
    assert_eq!(wishes(&balancer).await, wanted, "after SIGKILL");
    let origins = balancer.origins_of(8).await;
    assert!(origins.iter().all(|origin| origin == "a" || origin == "d"), "{origins:?}");
}

#[tokio::test]
async fn a_change_that_was_answered_survives_an_immediate_kill() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    for algorithm in ["weighted", "ip-hash", "least-connections"] {
        balancer.switch_algorithm(algorithm).await;
        balancer.kill().await;
        balancer.start_again().await;
        assert_eq!(balancer.algorithm().await, algorithm);
    }
}

#[tokio::test]
async fn the_file_overrides_runtime_changes_of_what_it_changed_since() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let pool = |algorithm, weight_of_a, weight_of_b| {
        Pool::empty("app").weighted(&a, weight_of_a).weighted(&b, weight_of_b).algorithm(algorithm)
    };
    let mut balancer = Balancer::start(Config::default().pool(pool("round-robin", 1, 1))).await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.patch(&a, json!({ "weight": 5 })).await;
    balancer.patch(&b, json!({ "weight": 6 })).await;
    let added = json!({ "address": c.address().to_string() });
    balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
    balancer.stop().await;

    // The operator writes another algorithm and another weight for a, but changes nothing about b.
    balancer.configure(&Config::default().pool(pool("weighted", 9, 1)));
    balancer.start_again().await;
    let expected = json!([
        "weighted",
        [a.address().to_string(), 9, "active"],
        [b.address().to_string(), 6, "active"],
        [c.address().to_string(), 1, "active"],
    ]);
    assert_eq!(wishes(&balancer).await, expected);
}

#[tokio::test]
async fn a_backend_that_the_file_no_longer_names_is_removed() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let mut balancer = Balancer::start(Config::of([&a, &b])).await;
    balancer.patch(&b, json!({ "weight": 9 })).await;
    balancer.stop().await;
    balancer.configure(&Config::of([&a]));
    balancer.start_again().await;
    assert_eq!(wishes(&balancer).await, json!(["weighted", [a.address().to_string(), 1, "active"]]));
}

// Another weight in the file put a drained backend back into traffic.
#[tokio::test]
async fn a_setting_changed_in_the_file_leaves_runtime_changes_of_other_settings() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let pool = |weight, state: &str| {
        let pool = Pool::empty("app").weighted(&a, weight);
        Config::default()
            .pool(pool.backend(&b.address().to_string(), &format!("state = \"{state}\"")).weighted(&c, weight))
    };
    for restarts in [false, true] {
        let mut balancer = Balancer::start(pool(1, "active")).await;
        balancer.patch(&a, json!({ "state": "draining" })).await;
        balancer.patch(&b, json!({ "weight": 7 })).await;
        balancer.change("DELETE", &backend_path(&c), None).await;
        balancer.configure(&pool(5, "down"));
        if restarts {
            balancer.stop().await;
            balancer.start_again().await;
        } else {
            let reload = balancer.change("POST", "/admin/reload", None).await;
            assert!(!reload["warnings"].to_string().contains("is dropped"), "{reload}");
        }
        let expected =
            json!(["weighted", [a.address().to_string(), 5, "draining"], [b.address().to_string(), 7, "down"]]);
        assert_eq!(wishes(&balancer).await, expected, "restarts: {restarts}");
        assert!(!balancer.log().contains("is dropped"), "{}", balancer.log());
    }
}

#[tokio::test]
async fn a_runtime_change_that_the_file_overrides_is_reported_with_both_values() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::default().pool(Pool::empty("app").weighted(&a, 1))).await;
    balancer.patch(&a, json!({ "weight": 3 })).await;
    balancer.configure(&Config::default().pool(Pool::empty("app").weighted(&a, 5)));
    let reload = balancer.change("POST", "/admin/reload", None).await;
    let message = format!(
        "a change made at run time is dropped, since the file has changed: pool app: backend {} weight 3 instead of 1 \
         (the file now says: active, weight 5)",
        a.address()
    );
    assert_eq!(reload["warnings"], json!([message]));
    assert_eq!(wishes(&balancer).await, json!(["weighted", [a.address().to_string(), 5, "active"]]));
}

#[tokio::test]
async fn a_reload_keeps_runtime_changes_that_the_file_does_not_touch() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a, &b]);
    let balancer = Balancer::start(config.clone()).await;
    balancer.switch_algorithm("weighted").await;
    balancer.patch(&a, json!({ "weight": 5 })).await;
    balancer.configure(&config.listener("keepalive_timeout = \"59s\""));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(
        wishes(&balancer).await,
        json!(["weighted", [a.address().to_string(), 5, "active"], [b.address().to_string(), 1, "active"]])
    );
}

#[tokio::test]
async fn a_corrupt_state_file_is_set_aside_and_the_start_succeeds() {
    let a = Origin::start("a").await;
    for content in ["{\"half\":", "", "\u{0}\u{0}\u{0}", "[]", "{\"pools\": 7}"] {
        let mut balancer = Balancer::start(Config::of([&a])).await;
        balancer.switch_algorithm("ip-hash").await;
        balancer.kill().await;
        std::fs::write(balancer.state_file(), content).expect("a writable directory");
        balancer.start_again().await;
        assert_eq!(balancer.algorithm().await, "weighted", "{content:?}");
        balancer.logs(&["WARN", "evenkeel.state.json"]).await;
        let aside = std::fs::read_dir(balancer.file(".")).expect("a directory");
        let kept = aside.flatten().filter(|entry| std::fs::read(entry.path()).is_ok_and(|c| c == content.as_bytes()));
        assert!(kept.count() >= 1, "the corrupt file is kept for whoever wants to look at it");
        balancer.switch_algorithm("least-connections").await;
        balancer.stop().await;
        balancer.start_again().await;
        assert_eq!(balancer.algorithm().await, "least-connections", "state is kept again");
    }
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_is_not_fatal() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).section("[state]\nfile = \"/proc/evenkeel/state.json\"");
    let balancer = Balancer::start(config).await;
    let reply = balancer.admin("POST", "/admin/algorithm", Some(json!({ "algorithm": "ip-hash" }))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["persistence"], "failed");
    assert_eq!(balancer.algorithm().await, "ip-hash");
    balancer.logs(&["WARN", "/proc/evenkeel/state.json"]).await;
}

#[tokio::test]
async fn a_hanging_disk_blocks_neither_probes_nor_the_api() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let mut balancer = Balancer::prepare(&Config::of([&a, &b]).app(|pool| pool.quick_probe()));
    let (hanging, _library) = hanging_disk(&mut balancer);
    balancer.launch();
    balancer.ready().await;
    assert_eq!(balancer.switch_algorithm("ip-hash").await.get("persistence"), None, "the disk takes it");

    std::fs::write(&hanging, "").expect("a writable directory");
    let answer = balancer.switch_algorithm("least-connections").await;
    assert_eq!(answer["persistence"], "pending", "{answer}");
    assert_eq!(balancer.algorithm().await, "least-connections", "it is in force all the same");
    // The removal of a drained backend ran on the thread for probes and the API, including the write to disk.
    let mut held = balancer.connect().await;
    held.send(Request::get("/hold").to_bytes()).await;
    eventually("the request arrived", async || a.heads() + b.heads() == 1).await;
    let busy = if a.heads() == 1 { &a } else { &b };
    balancer.change("DELETE", &backend_path(busy), None).await;
    busy.release();
    assert_eq!(held.reply().await.status, 200);
    eventually("the drained backend is gone", async || balancer.backend(busy).await == Value::Null).await;
    let left = if a.heads() == 1 { &b } else { &a };
    let probes = left.probes();
    eventually("probes go on", async || left.probes() >= probes + 3).await;
    assert!(balancer.metrics().await.has("evenkeel_snapshot_version"));

    std::fs::remove_file(&hanging).expect("the file is there");
    let answer = balancer.patch(left, json!({ "weight": 3 })).await;
    assert_eq!(answer.get("persistence"), None, "{answer}");
    balancer.kill().await;
    balancer.start_again().await;
    assert_eq!(wishes(&balancer).await, json!(["least-connections", [left.address().to_string(), 3, "active"]]));
}

// Both wrote it, each without the changes of the other.
#[tokio::test]
async fn a_second_process_with_the_same_state_file_is_refused() {
    let a = Origin::start("a").await;
    let folder = TempDir::new().expect("a temporary directory");
    let file = folder.path().join("state.json");
    let config = Config::of([&a]).section(&format!("[state]\nfile = \"{}\"", file.display()));
    let mut first = Balancer::start(config.clone()).await;
    first.switch_algorithm("ip-hash").await;
    let mut second = Balancer::prepare(&config);
    second.launch();
    assert_eq!(second.process().end().await.code(), Some(1), "{}", second.log());
    let problem = format!("error: the state file {} belongs to another process: stop that one", file.display());
    second.logs(&[&problem]).await;
    first.kill().await;
    second.start_again().await;
    assert_eq!(second.algorithm().await, "ip-hash", "nothing is lost");
}

#[tokio::test]
async fn a_hanging_disk_does_not_block_the_stop() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]));
    let (hanging, _library) = hanging_disk(&mut balancer);
    balancer.launch();
    balancer.ready().await;
    std::fs::write(&hanging, "").expect("a writable directory");
    balancer.switch_algorithm("ip-hash").await;
    balancer.stop().await;
    assert!(balancer.log().contains("the disk does not take the state file"), "{}", balancer.log());
}

#[tokio::test]
async fn a_hanging_configuration_file_blocks_neither_the_api_nor_the_stop() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).app(|pool| pool.algorithm("ip-hash"));
    let mut balancer = Balancer::start(Config::of([&a])).await;
    // Opening a pipe for reading waits until another process opens it for writing.
    let file = balancer.config_file();
    std::fs::remove_file(&file).expect("the file is there");
    assert!(Command::new("mkfifo").arg(&file).status().expect("a program of every system").success());
    balancer.signal(Signal::SIGHUP);
    let reply = balancer.admin("POST", "/admin/reload", None).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    balancer.patch(&a, json!({ "weight": 2 })).await;
    assert_eq!(balancer.algorithm().await, "weighted");

    // Each of the two waiting reloads reads what is written once.
    let text = config.text(balancer.address(), balancer.admin_address());
    let version = balancer.version().await;
    for reload in 1..=2 {
        let (file, text) = (file.clone(), text.clone());
        let writing = tokio::task::spawn_blocking(move || std::fs::write(file, text));
        within("the file is read", writing).await.expect("no panic").expect("somebody reads");
        eventually("it is taken up", async || balancer.version().await == version + reload).await;
        assert_eq!(balancer.algorithm().await, "ip-hash");
    }
    balancer.signal(Signal::SIGHUP);
    balancer.stop().await;
}

/// Makes `fsync` hang after the balancer's next start, as long as the returned file exists. The library that does it is
/// in the returned folder.
fn hanging_disk(balancer: &mut Balancer) -> (PathBuf, TempDir) {
    // Beside the balancer's files might be no place to run anything.
    let folder = TempDir::new().expect("a temporary directory");
    let (source, library) = (folder.path().join("disk.c"), folder.path().join("disk.so"));
    let text = "#include <stdlib.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
        int fsync(int fd) { while (access(getenv(\"HANGING_DISK\"), F_OK) == 0) usleep(10000);\n\
        return syscall(SYS_fsync, fd); }\n";
    std::fs::write(&source, text).expect("a writable directory");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
    let compiled = compiled.expect("the compiler that Rust links with");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let hanging = balancer.file("hanging");
    balancer.environment = vec![
        ("LD_PRELOAD".to_owned(), library.display().to_string()),
        ("HANGING_DISK".to_owned(), hanging.display().to_string()),
    ];
    (hanging, folder)
}

#[tokio::test]
async fn without_persistence_a_restart_drops_runtime_changes() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).section("[state]\npersist = false")).await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.stop().await;
    assert!(!balancer.state_file().exists());
    balancer.start_again().await;
    assert_eq!(balancer.algorithm().await, "weighted");
}

/// The pool's algorithm, and each backend's address, weight and state in the order shown.
async fn wishes(balancer: &Balancer) -> Value {
    let pool = balancer.pool().await;
    let backends = pool["backends"].as_array().into_iter().flatten();
    let backends = backends.map(|b| json!([b["address"], b["weight"], b["state"]]));
    Value::Array(std::iter::once(pool["algorithm"].clone()).chain(backends).collect())
}
