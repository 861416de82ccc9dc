//! Every statement that CrateDB can be sent, before the parser that is generated from CrateDB's own grammar. It knows
//! no types and no functions: what it takes may still be refused by a server.

use std::io::Write;
use std::process::{Command, Stdio};

use app::data::cratedb;
use app::data::wire::statements;

use crate::python::python_with;

/// Reads a JSON list of statements, and writes the list of what is wrong with each, null where nothing is.
const PROGRAM: &str = "
import json, sys
from cratedb_sqlparse import sqlparse
def refusal(statement):
    try:
        parsed = sqlparse(statement, raise_exception=True)
    except Exception as error:
        return str(error)
    return None if len(parsed) == 1 else f'{len(parsed)} statements'
json.dump([refusal(statement) for statement in json.load(sys.stdin)], sys.stdout)
";

fn refusals(mut python: Command, of: &[&str]) -> Vec<Option<String>> {
    let mut process = python.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(serde_json::to_string(of).unwrap().as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn cratedbs_grammar_takes_every_statement() {
    let all: Vec<_> = statements::ALL.into_iter().chain(statements::of_file(cratedb::DDL)).collect();
    assert_eq!(all.len(), statements::ALL.len() + statements::OUR_TABLES.len());
    for (statement, refusal) in all.iter().zip(refusals(python_with("cratedb_sqlparse"), &all)) {
        assert_eq!(refusal, None, "{statement}");
    }
    println!("{} statements accepted by CrateDB's grammar; parsed, never executed", all.len());
}

#[test]
fn cratedbs_grammar_refuses_what_cratedb_does() {
    // Else it would prove nothing.
    let wrong = ["ROLLBACK", "SAVEPOINT a", "SELECT id FROM posts WHERE (created_ms, id) < ($1, $2)", "CREATE TABLE"];
    assert!(refusals(python_with("cratedb_sqlparse"), &wrong).iter().all(Option::is_some));
}
