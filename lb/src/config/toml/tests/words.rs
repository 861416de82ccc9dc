//! Words that are no settings, and what their problems say to write instead.

use super::super::words::{NGINX_ABSENT, NGINX_DIRECTIVES, VALUES_INSTEAD, WORDS_OF_SECTIONS};
use super::*;

#[test]
fn unknown_keys_suggest_the_nearest_or_list_the_valid_ones() {
    let sections = "access_log, admin, include, listener, log, metrics, pool, route, server, site, state, values";
    for (marked, message) in [
        (
            minimal_with("route", "§hots = \"a\""),
            "route.hots is not a setting: did you mean \"host\"? [[route]] takes host, path, pool".to_owned(),
        ),
        (
            minimal_with("log", "§colour = true"),
            "log.colour is not a setting: [log] takes file, format, level".to_owned(),
        ),
        (
            minimal_with("log", "§interval = \"2s\""),
            "log.interval is not a setting: it belongs in [pool.probe]; [log] takes file, format, level".to_owned(),
        ),
        (
            format!("[§serer]\n{MINIMAL}"),
            format!("serer is not a setting: did you mean \"server\"? the file takes {sections}"),
        ),
        (
            format!("§threads = 1\n{MINIMAL}"),
            format!("threads is not a setting: it belongs in [server]; the file takes {sections}"),
        ),
    ] {
        assert_problem(&marked, &message);
    }
}

#[test]
fn directives_of_nginx_suggest_the_setting_here() {
    let sections = "access_log, admin, include, listener, log, metrics, pool, route, server, site, state, values";
    for (directive, place) in [
        ("worker_connections", "max_connections in [server]"),
        ("client_max_body_size", "max_body_bytes in [[listener]]"),
        ("proxy_pass", "pool in [[site.route]]"),
        ("return", "respond or redirect in [[site.route]]"),
        ("server_name", "hosts in [[site]]"),
        ("location", "path or exact or prefix or regex in [[site.route]]"),
        ("upstream", "name and backends in [[pool]]"),
        ("map", "[values]"),
        ("max_conns", "max_connections in a backend"),
        ("proxy_bind", "source_address in [[pool]]"),
        ("proxy_ssl_trusted_certificate", "ca in [pool.tls]"),
        ("resolver", "servers in [server.resolver]"),
        ("set_real_ip_from", "trusted_proxies in [server]"),
        ("ssl_certificate", "certificate in [listener.tls]"),
        ("ssl_client_certificate", "ca in [listener.tls.client_certificates]"),
        ("ssl_verify_client", "mode in [listener.tls.client_certificates]"),
        ("ssl_session_ticket_key", "ticket_file in [listener.tls]"),
    ] {
        let message =
            format!("{directive} is not a setting: for nginx's {directive} write {place}; the file takes {sections}");
        assert_problem(&format!("§{directive} = 1\n{MINIMAL}"), &message);
    }
    let examples = with_examples();
    let root = DeTable::parse(&examples).expect("valid");
    let template = Template::of(root.get_ref());
    for (directive, section, keys) in NGINX_DIRECTIVES {
        let section = section.split('.').try_fold(&template, |inside, part| inside.child(part)).expect(section);
        assert!(keys.iter().all(|key| section.child(key).is_some()), "{directive}");
        let found = problems(&format!("{directive} = 1\n{MINIMAL}"));
        assert!(matches!(found.as_slice(), [one] if one.message.contains("for nginx's ")), "{directive}: {found:?}");
    }
    for (directive, instead) in NGINX_ABSENT {
        let message = format!(
            "listener.{directive} is not a setting: nginx's {directive} has no counterpart: {instead}; [[listener]] takes "
        );
        let found = problems(&minimal_with("listener", &format!("{directive} = 1")));
        assert!(matches!(found.as_slice(), [one] if one.message.starts_with(&message)), "{directive}: {found:?}");
    }
}

#[test]
fn words_of_nginx_suggest_settings_of_their_section() {
    for (word, instead) in VALUES_INSTEAD {
        let found = problems(&format!("{word} = 1\n{MINIMAL}"));
        let message = format!("{word} is not a setting: {instead}; the file takes ");
        assert!(matches!(found.as_slice(), [one] if one.message.starts_with(&message)), "{word}: {found:?}");
    }
    for (section, word, instead) in WORDS_OF_SECTIONS {
        let line = format!("{word} = 1");
        let text = match *section {
            "" => format!("{line}\n{MINIMAL}"),
            "listener" | "pool" => minimal_with(section, &line),
            "pool.backends" => {
                minimal_but("\"127.0.0.1:9001\"", &format!("{{ address = \"127.0.0.1:9001\", {line} }}"))
            }
            "pool.tls" => minimal_with("pool.tls", &line),
            _ => minimal_but("[[pool]]", &format!("[{section}]\n{line}\n[[pool]]")),
        };
        let name = if section.is_empty() { (*word).to_owned() } else { format!("{section}.{word}") };
        let message = format!("{name} is not a setting: write {instead}; ");
        let found = problems(&text);
        assert!(found.iter().any(|problem| problem.message.starts_with(&message)), "{name}: {found:?}");
    }
    // What is to be written can be.
    for lines in ["tls = true", "idle_timeout = \"1s\"", "tls = { name = \"app.internal\" }", "queue_timeout = \"1s\""]
    {
        config(&minimal_with("pool", lines));
    }
    config(&minimal_with("server", "resolver = { servers = [\"10.0.0.2\"] }\nuser = \"www-data:www-data\""));
    config(&minimal_but("8888\"", "8888\"\nproxy_protocol = { from = [\"10.0.0.0/8\"] }"));
}

#[test]
fn backends_in_nginx_syntax_suggest_the_syntax_here() {
    for (written, fix) in [
        ("http://web1:8080", "\"web1:8080\", without \"http://\""),
        ("http://web1/", "\"web1:80\", without \"http://\""),
        ("https://10.0.0.5", "\"10.0.0.5:443\", and tls = true in [[pool]]"),
        (
            "https://web1:8443/v1",
            "\"web1:8443\", and tls = true in [[pool]]; the path goes into rewrite = { prefix = \"/v1\" } of a [[site.route]]",
        ),
        ("web1:8080 max_conns=5", "{ address = \"web1:8080\", max_connections = 5 }"),
        ("web1:8080 weight=5 down", "{ address = \"web1:8080\", weight = 5, state = \"down\" }"),
        (
            "web1:8080 weight=2  max_fails=3 backup",
            "{ address = \"web1:8080\", weight = 2 }; max_fails=3 goes into [pool.ejection]; backup is not a backend setting",
        ),
    ] {
        let message = format!("pool.backends is \"{written}\": write {fix}");
        assert_problem(&minimal_but("\"127.0.0.1:9001\"", &format!("§\"{written}\"")), &message);
        let table = fix.split("; ").next().filter(|fix| fix.starts_with('{'));
        table.iter().for_each(|table| drop(config(&minimal_but("\"127.0.0.1:9001\"", table))));
    }
}

#[test]
fn variables_of_nginx_suggest_the_variable_here() {
    for (name, instead) in [
        ("proxy_protocol_addr", "$remote_addr, which has the address that the PROXY protocol tells"),
        ("ssl_client_escaped_cert", "nothing: backends are told of the certificate in Client-Cert (docs/tls.md)"),
        ("ssl_client_serial", "$ssl_client_fingerprint_sha256, which no two certificates share"),
    ] {
        let site = format!("[[site]]\nhosts = [\"\"]\nrespond = {{ status = 200, body = §\"${name}\" }}\n");
        let message = format!("site.respond.body is \"${name}\": there is no variable ${name}; write {instead}");
        assert_problem(&minimal_but("[[route]]\npool = \"app\"\n", &site), &message);
    }
}

#[test]
fn a_file_of_another_program_gets_one_problem() {
    let sections = "access_log, admin, include, listener, log, metrics, pool, route, server, site, state, values";
    for (marked, message) in [
        (
            "# of the distribution\n\n§server {\n  listen 80;\n  root /srv;\n}\n".to_owned(),
            "this looks like a configuration of nginx, but Evenkeel reads TOML: docs/sites.md#from-nginx has what to write for each directive".to_owned(),
        ),
        (
            "§[package]\nname = \"app\"\n[dependencies]\ntokio = \"1\"\n".replacen("§[", "[§", 1),
            format!(
                "no key of this file is a setting of Evenkeel (package, dependencies): the file takes {sections}; `evenkeel config --default` prints every setting"
            ),
        ),
    ] {
        assert_problem(&marked, &message);
    }
}

#[test]
fn an_included_file_of_another_program_is_named() {
    let folder = folder(&[("sites/app.conf", b"server {\n  listen 80;\n}\n")]);
    let text = format!("include = [\"sites/*.conf\"]\n{}", minimal_with("log", "level = \"loud\""));
    let found = read(&text, &folder.path().join("evenkeel.toml")).expect_err("it is not TOML");
    let [typo, foreign] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(typo.file, None, "problems of other files are reported as well");
    assert_eq!(foreign.file.as_deref(), Some(&*folder.path().join("sites/app.conf")));
    assert!(foreign.message.starts_with("this looks like a configuration of nginx"), "{foreign}");
}
