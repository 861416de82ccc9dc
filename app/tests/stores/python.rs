//! The Python with the packages in `requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The one in `TEST_PYTHON`, otherwise that of `target/python`, which `make test` creates, otherwise the system's.
pub fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python3");
    let named = std::env::var_os("TEST_PYTHON").map(PathBuf::from);
    named.unwrap_or(if own.exists() { own } else { "python3".into() })
}

/// Python, after checking that it has `module`; panics with instructions if it is missing.
pub fn python_with(module: &str) -> Command {
    let python = python();
    let found = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    let missing = !found.is_ok_and(|output| output.status.success());
    assert!(
        !missing,
        "{} has no module {module}: run `python3 -m venv target/python && target/python/bin/pip install -r \
         app/tests/requirements.txt` (make test does), or name another Python in TEST_PYTHON",
        python.display()
    );
    Command::new(python)
}
