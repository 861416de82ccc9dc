//! TLS towards clients: which certificate they get, and with which protocols. The clients are `openssl s_client`;
//! results are compared with nginx where it decides what is correct.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::http2::{self, Http2};
use tests::nginx::Nginx;
use tests::openssl::{Authority, Kind, handshake, openssl, openssl_with};
use tests::{Balancer, Config, Origin, evenkeel, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::HandshakeKind;

/// Those of nginx's current default, which is newer than Debian's.
const VERSIONS: &str = "ssl_protocols TLSv1.2 TLSv1.3;";

/// A folder with certificates, each named like its file.
struct Certificates {
    folder: TempDir,
    authority: Authority,
}

impl Certificates {
    async fn new() -> Self {
        Self { folder: TempDir::new().expect("a temporary directory"), authority: Authority::new().await }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Creates `file.pem` and `file.key`, for `names` and with the file's name as common name.
    async fn issue(&self, file: &str, kind: Kind, names: &[&str]) -> &Self {
        let (certificate, key) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        self.authority.issue_as(&certificate, &key, kind, &format!("/CN={file}"), names, 20).await;
        self
    }

    /// Starts a balancer with all of them and these additional settings.
    async fn balancer(&self, origin: &Origin, settings: &str) -> Balancer {
        Balancer::start(self.config(origin, settings)).await
    }

    fn config(&self, origin: &Origin, settings: &str) -> Config {
        let more = if settings.is_empty() { "" } else { ", " };
        let folder = self.folder.path().display();
        Config::of([origin]).listener(&format!("tls = {{ certificates = \"{folder}\"{more}{settings} }}"))
    }

    /// Servers of nginx, each with its names and certificates.
    fn nginx(&self, servers: &[(&str, &[&str])]) -> String {
        let server = |(names, files): &(&str, &[&str])| {
            let pair = |file: &&str| {
                let (certificate, key) = (self.text(&format!("{file}.pem")), self.text(&format!("{file}.key")));
                format!("ssl_certificate {certificate}; ssl_certificate_key {key};")
            };
            let pairs: String = files.iter().map(pair).collect();
            format!("server {{ listen {{listen}} ssl; server_name {names}; {pairs} {VERSIONS} return 200; }}\n")
        };
        servers.iter().map(server).collect()
    }
}

#[tokio::test]
async fn certificates_are_chosen_by_sni_as_by_nginx() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("default", Kind::Ecdsa, &["default.example"]).await;
    certificates.issue("exact", Kind::Ecdsa, &["www.shop.example"]).await;
    certificates.issue("star", Kind::Ecdsa, &["*.shop.example", "shop.example"]).await;
    let balancer = certificates.balancer(&a, "").await;
    let nginx = Nginx::start(&certificates.nginx(&[
        ("default.example", &["default"]),
        ("www.shop.example", &["exact"]),
        ("*.shop.example shop.example", &["star"]),
    ]))
    .await;
    for (name, expected) in [
        ("www.shop.example", "exact"),
        ("WWW.Shop.EXAMPLE", "exact"),
        ("a.shop.example", "star"),
        ("shop.example", "star"),
        ("default.example", "default"),
        ("unknown.example", "default"),
        ("", "default"),
    ] {
        for address in [balancer.address(), nginx.address()] {
            let client = handshake(address, name, &[]).await;
            assert_eq!(client.server(), Some(expected), "{name:?}: {}", client.text);
        }
    }
    // A star stands for one label, as in browsers, and a final dot is ignored.
    for (name, expected) in [("a.b.shop.example", "default"), ("www.shop.example.", "exact")] {
        let client = handshake(balancer.address(), name, &[]).await;
        assert_eq!(client.server(), Some(expected), "{name:?}: {}", client.text);
    }
}

#[tokio::test]
async fn ecdsa_and_rsa_certificates_are_chosen_as_by_nginx() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("ecdsa", Kind::Ecdsa, &["shop.example"]).await;
    certificates.issue("rsa", Kind::Rsa, &["shop.example"]).await;
    let balancer = certificates.balancer(&a, "").await;
    let nginx = Nginx::start(&certificates.nginx(&[("shop.example", &["ecdsa", "rsa"])])).await;
    let rsa_only = ["-sigalgs", "RSA-PSS+SHA256"];
    let rsa_suites = ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"];
    for address in [balancer.address(), nginx.address()] {
        for (arguments, expected) in
            [(&[][..], "ecdsa"), (&["-tls1_2"], "ecdsa"), (&rsa_only, "rsa"), (&rsa_suites, "rsa")]
        {
            let client = handshake(address, "shop.example", arguments).await;
            assert_eq!(client.server(), Some(expected), "{arguments:?}: {}", client.text);
        }
    }
}

#[tokio::test]
async fn unknown_names_are_refused_where_configured_as_by_nginx() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Ecdsa, &["shop.example"]).await;
    let balancer = certificates.balancer(&a, "unknown_names = \"refuse\"").await;
    let refusing = "server { listen {listen} ssl default_server; server_name _; ssl_reject_handshake on; ssl_protocols TLSv1.2 TLSv1.3; }\n";
    let nginx = Nginx::start(&(certificates.nginx(&[("shop.example", &["shop"])]) + refusing)).await;
    for address in [balancer.address(), nginx.address()] {
        let known = handshake(address, "shop.example", &[]).await;
        assert_eq!(known.server(), Some("shop"), "{}", known.text);
        for arguments in [&["-tls1_2"][..], &["-tls1_3"]] {
            let unknown = handshake(address, "other.example", arguments).await;
            assert!(!unknown.is_success && unknown.text.contains("alert number 112"), "{}", unknown.text);
        }
    }
    // Clients that send no name, such as probes by address, get the default certificate.
    assert_eq!(handshake(balancer.address(), "", &[]).await.server(), Some("shop"));
}

#[tokio::test]
async fn a_site_may_pin_a_certificate() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("one", Kind::Ecdsa, &["*.example"]).await;
    certificates.issue("two", Kind::Ecdsa, &["*.example"]).await;
    let site = |host: &str, lines: &str| format!("[[site]]\nhosts = [\"{host}\"]\npool = \"app\"\n{lines}\n");
    let pin = |file: &str| format!("certificate = \"{}\"", certificates.text(file));
    let sites = site("a.example", &pin("two.pem")) + &site("b.example", &pin("one.pem"));
    let balancer = Balancer::start(certificates.config(&a, "").sites(&sites)).await;
    for (name, expected) in [("a.example", "two"), ("b.example", "one"), ("A.example.", "two")] {
        let client = handshake(balancer.address(), name, &[]).await;
        assert_eq!(client.server(), Some(expected), "{name}: {}", client.text);
    }
    let wrong = Balancer::prepare(&certificates.config(&a, "").sites(&site("a.example", &pin("three.pem"))));
    let outcome = evenkeel([Path::new("check"), &wrong.config_file()]).await;
    let message = format!(
        "site.certificate is {}, but its listeners have {}",
        certificates.text("three.pem"),
        certificates.text("one.pem")
    );
    assert!(!outcome.status.success() && outcome.stderr.contains(&message), "{outcome:?}");
}

#[tokio::test]
async fn profiles_and_protocols_are_as_configured() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Rsa, &["shop.example"]).await;
    let usual = certificates.balancer(&a, "").await;
    let modern = certificates.balancer(&a, "profile = \"modern\", alpn = [\"http/1.1\"]").await;
    let both = ["-alpn", "h2,http/1.1"];
    for (address, arguments, expected) in [
        (usual.address(), "-tls1_2", Some("h2")),
        (usual.address(), "-tls1_3", Some("h2")),
        (modern.address(), "-tls1_2", None),
        (modern.address(), "-tls1_3", Some("http/1.1")),
    ] {
        let client = handshake(address, "shop.example", &[&[arguments][..], &both].concat()).await;
        assert_eq!(client.after("ALPN protocol: "), expected, "{arguments}: {}", client.text);
        assert_eq!(client.text.contains("alert protocol version"), expected.is_none(), "{}", client.text);
    }
    // Suites without forward secrecy or authenticated encryption are not supported.
    for suite in ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256"] {
        let client = handshake(usual.address(), "shop.example", &["-tls1_2", "-cipher", suite]).await;
        assert!(!client.is_success && client.text.contains("alert handshake failure"), "{suite}: {}", client.text);
    }
}

#[tokio::test]
async fn a_key_may_be_encrypted() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Rsa, &["shop.example"]).await;
    let (plain, key) = (certificates.text("plain"), certificates.text("shop.key"));
    std::fs::rename(&key, &plain).expect("our file");
    std::fs::write(certificates.path("shop.pass"), "correct horse\n").expect("our folder");
    let converted =
        ["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", &plain, "-out", &key, "-passout", "pass:correct horse"];
    openssl(&converted).await.success();
    let mut balancer = certificates.balancer(&a, "").await;
    assert_eq!(handshake(balancer.address(), "shop.example", &[]).await.server(), Some("shop"));
    balancer.stop().await;

    let check = async || {
        let outcome = evenkeel([Path::new("check"), &balancer.config_file()]).await;
        assert!(!outcome.status.success(), "{outcome:?}");
        outcome.stderr
    };
    std::fs::write(certificates.path("shop.pass"), "wrong").expect("our folder");
    let output = check().await;
    assert!(
        output.contains(&format!("the password in {} does not open the key in {key}", certificates.text("shop.pass"))),
        "{output}"
    );
    std::fs::remove_file(certificates.path("shop.pass")).expect("our file");
    let output = check().await;
    assert!(output.contains(&format!("the key in {key} is encrypted: write password_file")), "{output}");
    let traditional = ["rsa", "-aes256", "-traditional", "-in", &plain, "-out", &key, "-passout", "pass:correct horse"];
    openssl(&traditional).await.success();
    let output = check().await;
    assert!(
        output.contains(&format!("convert it by \"openssl pkcs8 -topk8 -v2 aes-256-cbc -in {key} -out NEW\"")),
        "{output}"
    );
    // The command in the message works.
    let new = certificates.text("new");
    let arguments = ["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", &key, "-out", &new];
    openssl(&[&arguments[..], &["-passin", "pass:correct horse", "-passout", "pass:correct horse"]].concat())
        .await
        .success();
    std::fs::rename(new, &key).expect("our file");
    std::fs::write(certificates.path("shop.pass"), "correct horse").expect("our folder");
    balancer.start_again().await;
    assert_eq!(handshake(balancer.address(), "shop.example", &[]).await.server(), Some("shop"));
}

#[tokio::test]
async fn all_problems_with_files_are_reported_at_once() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    for file in ["fine", "other", "lonely"] {
        certificates.issue(file, Kind::Ecdsa, &[&format!("{file}.example")]).await;
    }
    std::fs::copy(certificates.path("fine.key"), certificates.path("other.key")).expect("our files");
    std::fs::remove_file(certificates.path("lonely.key")).expect("our file");
    std::fs::write(certificates.path("text.pem"), "nothing").expect("our folder");
    let half = std::fs::read(certificates.path("fine.pem")).expect("our file");
    std::fs::write(certificates.path("half.pem"), &half[..half.len() / 2]).expect("our folder");
    let balancer =
        Balancer::prepare(&certificates.config(&a, "client_certificates = { mode = \"required\", ca = \"none.pem\" }"));
    let outcome = evenkeel([Path::new("check"), &balancer.config_file()]).await;
    assert!(!outcome.status.success(), "{outcome:?}");
    let text = |file: &str| certificates.text(file);
    for message in [
        format!(
            "listener.tls.certificates: {} is not a valid PEM file: a section has no end; is it written whole?",
            text("half.pem")
        ),
        format!(
            "there is no private key for {}: put it into {} or into the same file",
            text("lonely.pem"),
            text("lonely.key")
        ),
        format!("the key in {} does not belong to the first certificate in {}", text("other.key"), text("other.pem")),
        format!("{} has no certificate: it must be a PEM file, the leaf certificate first", text("text.pem")),
        format!(
            "listener.tls.client_certificates: {} cannot be read: No such file",
            balancer.file("none.pem").display()
        ),
    ] {
        assert!(outcome.stderr.contains(&message), "{message}\n{}", outcome.stderr);
    }
    assert_eq!(outcome.stderr.lines().count(), 5, "{}", outcome.stderr);

    let empty = TempDir::new().expect("a temporary directory");
    balancer
        .configure(&Config::of([&a]).listener(&format!("tls = {{ certificates = \"{}\" }}", empty.path().display())));
    let outcome = evenkeel([Path::new("check"), &balancer.config_file()]).await;
    let message = format!(
        "listener.tls.certificates: {} has no certificate: put NAME.pem and NAME.key there",
        empty.path().display()
    );
    assert!(outcome.stderr.contains(&message), "{outcome:?}");
}

/// Settings that check files often.
const WATCHED: &str = "watch_interval = \"50ms\"";

#[tokio::test]
async fn a_renewed_certificate_is_loaded_without_a_reload() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Ecdsa, &["shop.example"]).await;
    let balancer = certificates.balancer(&a, WATCHED).await;
    let mut kept = Http2::connect(balancer.address()).await;
    assert_eq!(kept.get("/").await.status, 200);
    let shown = async || {
        let client = handshake(balancer.address(), "shop.example", &[]).await;
        let (_, certificate) = client.text.split_once("BEGIN CERTIFICATE").expect("a certificate");
        certificate.split_once("END CERTIFICATE").expect("its end").0.to_owned()
    };
    let before = shown().await;
    // The certificate arrives a moment after its key: until then they do not match.
    certificates.issue("shop", Kind::Ecdsa, &["shop.example"]).await;
    eventually("the renewed one is there", async || shown().await != before).await;
    balancer.logs(&["a file has changed: listener ", " for shop.example, valid until "]).await;
    assert_eq!(kept.get("/").await.status, 200, "what is connected stays so");
    let metrics = balancer.metrics().await;
    let until = metrics.sum("evenkeel_certificate_not_after_timestamp_seconds", &[("name", "shop.example")]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((19.9 * 86400.0..20.1 * 86400.0).contains(&(until - now)), "{until}");
    assert!(metrics.sum("evenkeel_certificate_renewals_total", &[("result", "success")]) >= 1.0);
    assert_eq!(metrics.sum("evenkeel_certificate_problem", &[]), 0.0);
}

// Clients without a name got another certificate as soon as a file was added whose name sorts first.
#[tokio::test]
async fn a_default_certificate_that_moves_to_another_file_is_reported() {
    let a = Origin::start("a").await;
    for (settings, is_watched) in [(WATCHED, true), ("watch_interval = \"0s\"", false)] {
        let certificates = Certificates::new().await;
        certificates.issue("middle", Kind::Ecdsa, &["middle.example"]).await;
        let balancer = certificates.balancer(&a, settings).await;
        certificates.issue("zebra", Kind::Ecdsa, &["zebra.example"]).await;
        let reload = async || balancer.change("POST", "/admin/reload", None).await["warnings"].to_string();
        if is_watched {
            balancer.logs(&["a file has changed: listener", "zebra.example"]).await;
        } else {
            assert!(!reload().await.contains("default certificate"));
        }
        assert!(!balancer.log().contains("the default certificate"), "{}", balancer.log());
        certificates.issue("apple", Kind::Ecdsa, &["apple.example"]).await;
        let [is, was] =
            ["apple", "middle"].map(|name| format!("{} for {name}.example", certificates.text(&format!("{name}.pem"))));
        let message = format!("the default certificate is {is} now, and was {was}");
        match is_watched {
            true => balancer.logs(&["WARN", &message]).await,
            false => {
                let warnings = reload().await;
                assert!(warnings.contains(&message), "{warnings}");
            }
        }
        let log = balancer.log();
        assert!(log.matches("the default certificate").count() <= 1, "{log}");
        assert!(!reload().await.contains("default certificate"), "once");
    }
}

#[tokio::test]
async fn a_half_written_pair_is_not_used_until_it_is_complete() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("one", Kind::Ecdsa, &["one.example"]).await;
    certificates.issue("two", Kind::Ecdsa, &["two.example"]).await;
    let balancer = certificates.balancer(&a, WATCHED).await;
    let server = async |name: &str| handshake(balancer.address(), name, &[]).await.server().map(str::to_owned);
    let whole = std::fs::read(certificates.path("one.pem")).expect("our file");
    std::fs::write(certificates.path("one.pem"), &whole[..whole.len() / 2]).expect("our folder");
    let message =
        format!("{} is not a valid PEM file: a section has no end; is it written whole?", certificates.text("one.pem"));
    balancer.logs(&["WARN", &message, "what was in use before stays so"]).await;
    assert_eq!(server("one.example").await.as_deref(), Some("one"));
    let problem = [("certificate", certificates.text("one.pem"))];
    let problem = problem.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(balancer.metrics().await.sum("evenkeel_certificate_problem", &problem), 1.0);
    let admin = format!("http://{}", balancer.admin_address());
    let status = evenkeel(["status", "--admin", &admin]).await;
    assert!(status.stdout.contains(&message), "{status:?}");
    // Other files are still taken up, including a new one, and the problem is logged once.
    certificates.issue("three", Kind::Ecdsa, &["three.example"]).await;
    eventually("a new one is there", async || server("three.example").await.as_deref() == Some("three")).await;
    assert_eq!(balancer.log().matches(&message).count(), 1, "{}", balancer.log());
    // A key that does not match is another problem.
    std::fs::copy(certificates.path("three.key"), certificates.path("one.key")).expect("our files");
    std::fs::write(certificates.path("one.pem"), &whole).expect("our folder");
    balancer.logs(&["does not belong to the first certificate in"]).await;
    assert_eq!(server("one.example").await.as_deref(), Some("one"));
    certificates.issue("one", Kind::Ecdsa, &["one.example", "more.example"]).await;
    let has_no_problem = async || balancer.metrics().await.sum("evenkeel_certificate_problem", &[]) == 0.0;
    eventually("it is whole again", has_no_problem).await;
    assert_eq!(server("more.example").await.as_deref(), Some("one"));
    let metrics = balancer.metrics().await;
    assert!(metrics.sum("evenkeel_certificate_renewals_total", &[("result", "failure")]) >= 2.0);
}

#[tokio::test]
async fn a_name_keeps_its_certificate_until_it_is_replaced_or_a_reload() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    for name in ["one", "two", "three", "four"] {
        certificates.issue(name, Kind::Ecdsa, &[&format!("{name}.example")]).await;
    }
    certificates.issue("unused", Kind::Ecdsa, &["unused.example"]).await;
    let names = ["one", "two", "three", "four"].map(|name| format!("\"{name}.example\""));
    let site = format!("[[site]]\nhosts = [{}]\npool = \"app\"", names.join(", "));
    let config = certificates.config(&a, WATCHED).sites(&site);
    let mut balancer = Balancer::start(config).await;
    let address = balancer.address();
    let server = async |name: &str| handshake(address, name, &[]).await.server().map(str::to_owned);
    let problems = async |balancer: &Balancer| balancer.metrics().await.sum("evenkeel_certificate_problem", &[]);
    let remove = |file: &str| std::fs::remove_file(certificates.path(file)).expect("our file");
    // Removes one that is also the default, and one whose names are not used.
    remove("four.pem");
    remove("unused.pem");
    let message =
        format!("{} no longer exists, and no other certificate is for four.example", certificates.text("four.pem"));
    balancer.logs(&["WARN", &message, "what was in use before stays so until"]).await;
    eventually("one for no site is given up", async || server("unused.example").await.as_deref() == Some("four")).await;
    assert_eq!(server("four.example").await.as_deref(), Some("four"));
    assert_eq!(problems(&balancer).await, 1.0);
    let admin = format!("http://{}", balancer.admin_address());
    let status = evenkeel(["status", "--admin", &admin]).await;
    assert!(status.stdout.contains(&message), "{status:?}");
    // One pair gets other names, and one an expired certificate.
    certificates.issue("two", Kind::Ecdsa, &["other.example"]).await;
    let message = format!(
        "{} is for other names than before, and no other certificate is for two.example",
        certificates.text("two.pem")
    );
    balancer.logs(&["WARN", &message]).await;
    assert_eq!(server("two.example").await.as_deref(), Some("two"));
    let expired = Path::new(env!("CARGO_MANIFEST_DIR")).join("balancer/check/tls");
    std::fs::copy(expired.join("key.pem"), certificates.path("three.key")).expect("our files");
    std::fs::copy(expired.join("expired.pem"), certificates.path("three.pem")).expect("our files");
    balancer.logs(&["WARN", &format!("{} is not valid now, but from ", certificates.text("three.pem"))]).await;
    assert_eq!(server("three.example").await.as_deref(), Some("three"));
    assert_eq!(problems(&balancer).await, 3.0);
    // Another file for the names that have no certificate now.
    certificates.issue("wild", Kind::Ecdsa, &["*.example"]).await;
    eventually("what was kept is given up", async || server("two.example").await.as_deref() == Some("wild")).await;
    eventually("another is taken up", async || server("four.example").await.as_deref() == Some("wild")).await;
    assert_eq!(server("other.example").await.as_deref(), Some("two"));
    assert_eq!(problems(&balancer).await, 1.0, "the one that is not valid");
    assert_eq!(balancer.log().matches(&message).count(), 1, "{}", balancer.log());
    // A reload uses the files as they are.
    remove("one.pem");
    remove("wild.pem");
    eventually("they are missed", async || problems(&balancer).await == 3.0).await;
    balancer.signal(Signal::SIGHUP);
    eventually("it is given up", async || server("one.example").await.as_deref() != Some("one")).await;
    assert_eq!(problems(&balancer).await, 0.0);
}

#[tokio::test]
async fn folders_swapped_by_symlink_are_loaded_as_kubernetes_and_certbot_write_them() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, certificates.path(name)).expect("our folder");
    let issue = async |folder: &str, names: &[&str]| {
        std::fs::create_dir(certificates.path(folder)).expect("our folder");
        let (certificate, key) = (certificates.path(folder).join("tls.crt"), certificates.path(folder).join("tls.key"));
        certificates.authority.issue(&certificate, &key, Kind::Ecdsa, names, 20).await;
    };
    issue("..2026_1", &["old.example"]).await;
    link("..2026_1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let balancer = certificates.balancer(&a, WATCHED).await;
    let server = async || handshake(balancer.address(), "", &[]).await.server().map(str::to_owned);
    assert_eq!(server().await.as_deref(), Some("old.example"));
    issue("..2026_2", &["new.example", "old.example"]).await;
    link("..2026_2", "..data_tmp");
    std::fs::rename(certificates.path("..data_tmp"), certificates.path("..data")).expect("our folder");
    eventually("the new one is there", async || server().await.as_deref() == Some("new.example")).await;
    assert!(!balancer.log().contains("what was in use"), "{}", balancer.log());
}

#[tokio::test]
async fn tickets_survive_a_renewal() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Ecdsa, &["shop.example"]).await;
    let balancer = certificates.balancer(&a, "").await;
    let session = certificates.text("session");
    // s_client keeps a ticket that arrives after the handshake only if it waits for an answer.
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    let connect = async |arguments: &[&str]| {
        let address = balancer.address().to_string();
        let all = ["s_client", "-connect", &address, "-servername", "shop.example", "-ign_eof"];
        openssl_with(&[&all, arguments].concat(), request).await
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let first = connect(&[version, "-sess_out", &session]).await;
        assert!(first.text.contains("New, TLSv1") && first.text.contains("HTTP/1.1 200"), "{}", first.text);
        certificates.issue("shop", Kind::Ecdsa, &["shop.example"]).await;
        let reload = balancer.change("POST", "/admin/reload", None).await;
        assert_eq!(reload["changes"].as_array().map(Vec::len), Some(1), "{reload}");
        let second = connect(&[version, "-sess_in", &session]).await;
        assert!(second.text.contains("Reused, TLSv1") && second.text.contains("HTTP/1.1 200"), "{}", second.text);
    }
}

#[tokio::test]
async fn balancers_that_share_a_secret_file_accept_each_others_tickets() {
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Ecdsa, &["shop.example"]).await;
    let secrets = certificates.path("secrets");
    std::fs::write(&secrets, format!("# made today\n{}\n", "a".repeat(32))).expect("our folder");
    let settings = format!("ticket_file = \"{}\", {WATCHED}", secrets.display());
    let one = certificates.balancer(&a, &settings).await;
    let mut other = certificates.balancer(&a, &settings).await;
    let session = certificates.text("session");
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    let connect = async |balancer: &Balancer, arguments: &[&str]| {
        let address = balancer.address().to_string();
        let all = ["s_client", "-connect", &address, "-servername", "shop.example", "-ign_eof"];
        openssl_with(&[&all, arguments].concat(), request).await.success()
    };
    let is_resumed = async |balancer: &Balancer, version: &str| {
        connect(balancer, &[version, "-sess_in", &session]).await.contains("Reused, TLSv1")
    };
    for version in ["-tls1_2", "-tls1_3"] {
        connect(&one, &[version, "-sess_out", &session]).await;
        assert!(is_resumed(&other, version).await, "{version}");
        other.stop().await;
        other.start_again().await;
        assert!(is_resumed(&other, version).await, "{version}, after a restart");
    }
    // A new secret comes first; the old one is accepted while it is in the file.
    let old = std::fs::read_to_string(&secrets).expect("our file");
    connect(&one, &["-tls1_3", "-sess_out", &session]).await;
    std::fs::write(&secrets, format!("{}\n{old}", "b".repeat(32))).expect("our folder");
    let renewed = async || {
        let fresh = certificates.text("fresh");
        connect(&one, &["-tls1_3", "-sess_out", &fresh]).await;
        std::fs::write(&secrets, format!("{}\n", "b".repeat(32))).expect("our folder");
        connect(&other, &["-tls1_3", "-sess_in", &fresh]).await.contains("Reused, TLSv1")
    };
    assert!(is_resumed(&other, "-tls1_3").await);
    eventually("the new secret is in use", renewed).await;
    eventually("the old one is not taken any more", async || !is_resumed(&other, "-tls1_3").await).await;
    // If a file contains no valid secret, the current ones stay in use.
    std::fs::write(&secrets, "short\n").expect("our folder");
    other.logs(&["WARN", "has 5 characters: a secret has at least 32"]).await;
    connect(&other, &["-tls1_3", "-sess_out", &session]).await;
    assert!(is_resumed(&other, "-tls1_3").await);
}

const RENEWALS: u64 = 20;

/// Prints its measurements.
#[tokio::test]
async fn renewals_under_load_fail_no_connection_and_no_handshake() {
    #[derive(Default)]
    struct Counts {
        full: AtomicU64,
        resumed: AtomicU64,
        is_over: AtomicBool,
    }
    let a = Origin::start("a").await;
    let certificates = Certificates::new().await;
    certificates.issue("shop", Kind::Ecdsa, &["localhost"]).await;
    let balancer = certificates.balancer(&a, WATCHED).await;
    let address = balancer.address();
    let mut kept = Vec::new();
    for _ in 0..20 {
        kept.push(Http2::connect(address).await);
    }
    let counts = Arc::new(Counts::default());
    // Returning clients: each keeps its last ticket.
    async fn coming(address: std::net::SocketAddr, counts: Arc<Counts>) {
        let client = Arc::new(http2::client(b"http/1.1"));
        while !counts.is_over.load(Ordering::Relaxed) {
            let tcp = TcpStream::connect(address).await.expect("a listener");
            let mut tls = http2::tls_with(Arc::clone(&client), tcp).await.expect("a handshake");
            match tls.get_ref().1.handshake_kind() {
                Some(HandshakeKind::Resumed) => counts.resumed.fetch_add(1, Ordering::Relaxed),
                _ => counts.full.fetch_add(1, Ordering::Relaxed),
            };
            tls.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("a peer");
            let mut answer = Vec::new();
            tls.read_to_end(&mut answer).await.expect("a whole answer");
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
    }
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(coming(address, Arc::clone(&counts)))).collect();
    let mut requests = 0;
    for renewal in 1..=RENEWALS {
        certificates.issue("shop", Kind::Ecdsa, &["localhost"]).await;
        eventually("it is taken up", async || {
            for client in &mut kept {
                assert_eq!(client.get("/").await.status, 200);
                requests += 1;
            }
            let taken_up = [("result", "success")];
            balancer.metrics().await.sum("evenkeel_certificate_renewals_total", &taken_up) >= renewal as f64
        })
        .await;
    }
    counts.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no handshake and no request fails");
    }
    assert!(kept.iter().all(|client| !client.is_closed()));
    let (full, resumed) = (counts.full.load(Ordering::Relaxed), counts.resumed.load(Ordering::Relaxed));
    println!(
        "{RENEWALS} renewals: {} kept connections with {requests} requests, none dropped; {full} full and {resumed} resumed handshakes, none failed",
        kept.len()
    );
    // A client that has got its first ticket always resumes, whatever is renewed.
    assert!(resumed > full, "{full} full, {resumed} resumed");
}
