use std::fs;

use super::*;

fn names(certificates: &Certificates) -> Vec<(String, String, bool)> {
    let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
    let pairs = certificates.pairs().expect("a folder");
    pairs.iter().map(|pair| (name(&pair.certificate), name(&pair.key), pair.password_file.is_some())).collect()
}

fn folder(files: &[&str]) -> (tempfile::TempDir, Certificates) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder that can be written to");
        fs::write(path, "").expect("a folder that can be written to");
    }
    let certificates =
        Certificates { one: None, others: Some(AdditionalCertificates::Folder(folder.path().to_owned())) };
    (folder, certificates)
}

fn pair(certificate: &str, key: &str) -> (String, String, bool) {
    (certificate.to_owned(), key.to_owned(), false)
}

#[test]
fn a_folder_is_read_as_pairs_by_file_name() {
    let (_folder, certificates) =
        folder(&["b.pem", "b.key", "b.pass", "a.crt", "a.key", "c.pem", ".hidden.pem", "README", "d.key"]);
    let expected = [pair("a.crt", "a.key"), ("b.pem".to_owned(), "b.key".to_owned(), true), pair("c.pem", "c.pem")];
    assert_eq!(names(&certificates), expected);
}

#[test]
fn folders_of_certbot_and_kubernetes_are_read() {
    let (_folder, certificates) = folder(&[
        "live/cert.pem",
        "live/chain.pem",
        "live/fullchain.pem",
        "live/privkey.pem",
        "secret/tls.crt",
        "secret/tls.key",
        "secret/..data/tls.crt",
        "other/a.pem",
    ]);
    assert_eq!(names(&certificates), [pair("fullchain.pem", "privkey.pem"), pair("tls.crt", "tls.key")]);
    let (_folder, of_one) = folder(&["cert.pem", "chain.pem", "fullchain.pem", "privkey.pem"]);
    assert_eq!(names(&of_one), [pair("fullchain.pem", "privkey.pem")]);
}

#[test]
fn an_incomplete_pair_is_an_error() {
    let (own, certificates) = folder(&["one/fullchain.pem", "two/privkey.pem", "three/README"]);
    fs::create_dir(own.path().join("four")).expect("a folder that can be written to");
    std::os::unix::fs::symlink("nowhere", own.path().join("four/fullchain.pem")).expect("a link");
    let expected = ["four", "one", "two"].map(|folder| own.path().join(folder).join("fullchain.pem"));
    let pairs = certificates.pairs().expect("a folder");
    assert_eq!(pairs.iter().map(|pair| pair.certificate.clone()).collect::<Vec<_>>(), expected);
}
