use std::path::PathBuf;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::*;
use crate::config::certificate::Certificate;
use crate::config::route::HostPattern;
use crate::config::tls::Pair;

const KEYS: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/toml/test-data/key.pem"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls/server/test-data/rsa.key"),
];

/// A certificate for these names, with a key of ECDSA or of RSA, valid until then.
fn loaded(file: &str, names: &[&str], is_rsa: bool, not_after: i64) -> Arc<LoadedCertificate> {
    let key = PrivateKeyDer::from_pem_file(KEYS[usize::from(is_rsa)]).expect("a key");
    let key = default_provider().key_provider.load_private_key(key).expect("a key that is used");
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Arc::new(LoadedCertificate {
        pair: Pair { certificate: file.into(), key: file.into(), password_file: None },
        // By its first byte it is known.
        certified: Arc::new(CertifiedKey::new(vec![file.as_bytes().to_vec().into()], key)),
        leaf: Certificate { issuer: vec![], subject: vec![], not_before: 0, not_after, names },
        digest: [0; 32],
    })
}

const LATER: i64 = 1 << 40;
const BOTH: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];
const RSA: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256];

fn config() -> TlsConfig {
    TlsConfig::of_pair("".into(), "".into())
}

/// The file of the certificate that a client gets.
fn file(choice: &Choice, name: Option<&str>, schemes: &[SignatureScheme]) -> String {
    let certified = choice.certificate(name, schemes).expect("there is always one");
    String::from_utf8(certified.cert[0].to_vec()).expect("a name")
}

#[test]
fn exact_names_outrank_wildcards_and_these_the_default() {
    let certificates = [
        loaded("first", &["first.example"], false, LATER),
        loaded("star", &["*.shop.example", "shop.example"], false, LATER),
        loaded("exact", &["WWW.shop.example"], false, LATER),
    ];
    let choice = Choice::new(&config(), &certificates);
    for (name, expected) in [
        (Some("www.shop.example"), "exact"),
        (Some("WWW.SHOP.example"), "exact"),
        (Some("www.shop.example."), "exact"),
        (Some("a.shop.example"), "star"),
        (Some("shop.example"), "star"),
        (Some("a.b.shop.example"), "first"),
        (Some("other.example"), "first"),
        (Some("*.shop.example"), "star"),
        (None, "first"),
    ] {
        assert_eq!(file(&choice, name, BOTH), expected, "{name:?}");
        assert_eq!(choice.admits(name), Ok(()));
    }
    let given = TlsConfig { default: Some("star".into()), ..config() };
    assert_eq!(file(&Choice::new(&given, &certificates), Some("other.example"), BOTH), "star");
}

#[test]
fn unknown_names_are_refused_where_configured() {
    let config = TlsConfig { unknown_names: UnknownNames::Refuse, ..config() };
    let choice = Choice::new(&config, &[loaded("star", &["*.shop.example"], false, LATER)]);
    assert_eq!(choice.admits(Some("a.shop.example")), Ok(()));
    assert_eq!(choice.admits(Some("shop.example")), Err(UnknownName));
    // A client that names nobody, as by an address.
    assert_eq!(choice.admits(None), Ok(()));
}

#[test]
fn ecdsa_and_rsa_are_chosen_by_the_clients_offer() {
    let certificates = [
        loaded("rsa", &["shop.example"], true, LATER),
        loaded("ecdsa", &["shop.example"], false, LATER),
        loaded("star", &["*.example"], true, LATER),
    ];
    let choice = Choice::new(&config(), &certificates);
    let name = Some("shop.example");
    assert_eq!(file(&choice, name, BOTH), "ecdsa", "whatever their order");
    assert_eq!(file(&choice, name, RSA), "rsa");
    // The default is the first; clients that cannot take it get its counterpart.
    assert_eq!(file(&choice, None, BOTH), "rsa");
    assert_eq!(file(&choice, None, &BOTH[..1]), "ecdsa");
    // Nothing fits: the handshake fails with the right alert.
    assert_eq!(file(&choice, Some("a.example"), &BOTH[..1]), "star");
}

#[test]
fn of_equal_certificates_the_longest_valid_is_chosen() {
    let certificates = [
        loaded("expired", &["a.example"], false, 1),
        loaded("longer", &["a.example"], false, LATER + 1),
        loaded("long", &["a.example"], false, LATER),
    ];
    assert_eq!(file(&Choice::new(&config(), &certificates), Some("a.example"), BOTH), "longer");
}

#[test]
fn a_site_may_pin_a_certificate() {
    let certificates = [
        loaded("exact", &["shop.example", "a.pinned.example"], false, LATER),
        loaded("other", &["other.example"], false, LATER),
    ];
    let host = |text: &str| HostPattern::parse(text).expect("a host");
    let pin = |host_text: &str, path: Option<&str>| (host(host_text), path.map(PathBuf::from));
    let pins = vec![pin("*.pinned.example", Some("other")), pin("a.pinned.example", None)];
    let choice = Choice::new(&TlsConfig { pins, ..config() }, &certificates);
    assert_eq!(file(&choice, Some("B.pinned.example"), BOTH), "other");
    assert_eq!(file(&choice, Some("a.pinned.example"), BOTH), "exact", "it belongs to another site");
    assert_eq!(file(&choice, Some("shop.example"), BOTH), "exact");
}
