//! A certificate authority for a test, with OpenSSL.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::installed;

pub struct Authority {
    folder: TempDir,
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct Certified {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let authority = Self { folder: TempDir::new().expect("a temporary directory") };
        let text = "[ca]\ndefault_ca = here\n[here]\nnew_certs_dir = .\ndatabase = index\nserial = serial\n\
                    certificate = ca.pem\nprivate_key = ca.key\ndefault_md = sha256\npolicy = any\nunique_subject = no\n\
                    copy_extensions = copy\n[any]\ncommonName = supplied\n";
        for (file, text) in [("openssl.cnf", text), ("index", ""), ("serial", "01\n")] {
            std::fs::write(authority.path(file), text).expect("a writable directory");
        }
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 30 \
             -subj /CN={name} -addext keyUsage=critical,keyCertSign"
        ));
        authority
    }

    /// The certificate of the authority itself.
    pub fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A certificate for these names, such as `DNS:app.test,IP:127.0.0.1`, that is valid now.
    pub fn certify(&self, name: &str, names: &str) -> Certified {
        self.certify_until(name, names, "20991231235959Z")
    }

    /// As [`Self::certify`], valid from 2020 to this time.
    pub fn certify_until(&self, name: &str, names: &str, until: &str) -> Certified {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr \
             -subj /CN={name} -addext subjectAltName={names}"
        ));
        self.openssl(&format!(
            "ca -config openssl.cnf -batch -notext -startdate 20200101000000Z -enddate {until} -in {name}.csr -out {name}.pem"
        ));
        Certified { certificate: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new(installed("openssl", "openssl"));
        let output = command.args(arguments.split_whitespace()).current_dir(self.folder.path()).output();
        let output = output.expect("a program that starts");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Certified {
    /// Lines of nginx's `server` block.
    pub fn of_nginx(&self) -> String {
        format!("ssl_certificate {};\nssl_certificate_key {};\n", shown(&self.certificate), shown(&self.key))
    }
}

pub fn shown(path: &Path) -> String {
    path.display().to_string()
}
