//! The files in `examples/` are read as they stand.

use std::path::Path;

use super::*;

/// Made by `openssl`, as `examples/README.md` has its readers do.
const FILES: [(&str, &[u8]); 8] = [
    ("tls/shop.pem", include_bytes!("../test-data/cert.pem")),
    ("tls/shop.key", include_bytes!("../test-data/key.pem")),
    ("clients.pem", include_bytes!("../test-data/cert.pem")),
    ("internal-ca.pem", include_bytes!("../test-data/cert.pem")),
    ("balancer.pem", include_bytes!("../test-data/cert.pem")),
    ("balancer.key", include_bytes!("../test-data/key.pem")),
    ("token", b"0123456789abcdef"),
    ("sticky-secret", b"0123456789abcdef"),
];

#[test]
fn each_example_is_valid_without_warnings_and_listed() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let list = fs::read_to_string(examples.join("README.md")).expect("a list");
    let folder = folder(&FILES);
    fs::create_dir(folder.path().join("pages")).expect("made");
    fs::copy(examples.join("pages/maintenance.html"), folder.path().join("pages/maintenance.html")).expect("copied");
    let mut count = 0;
    for entry in fs::read_dir(&examples).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a text");
        let mut checked =
            check(&text, &folder.path().join(&name)).unwrap_or_else(|problems| panic!("{name}: {problems:#?}"));
        crate::site::unreachable::tell(&mut checked);
        // That for tests is for other names, and valid until long after.
        let is_ours = |warning: &&Warning| !warning.problem.message.contains("certificate");
        let warnings: Vec<_> = checked.warnings.iter().filter(is_ours).collect();
        assert!(warnings.is_empty(), "{name}: {warnings:#?}");
        assert!(list.contains(&format!("[{name}]({name})")), "examples/README.md does not list {name}");
        count += 1;
    }
    assert!(count >= 10, "only {count} examples are found");
}

#[test]
fn the_configuration_of_the_readme_is_valid() {
    let readme = include_str!("../../../../../README.md");
    let (example, _) = readme.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```")).expect("an example");
    assert_eq!(config(example).pools[0].backends.len(), 3);
}
