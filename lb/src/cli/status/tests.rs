use super::*;

fn backend(address: &str) -> Backend {
    Backend {
        address: address.to_owned(),
        weight: 1,
        status: "healthy".to_owned(),
        ejected_for_seconds: 0.0,
        ejection_prevented: false,
        in_flight: 0,
        max_connections: None,
        deadline_seconds: None,
        grace_seconds: None,
        requests: 0,
        failures: 0,
        latency_seconds: None,
        last_probe: None,
        endpoints: Vec::new(),
        resolution: None,
    }
}

fn pool(name: &str, backends: Vec<Backend>) -> Pool {
    Pool { name: name.to_owned(), algorithm: "round-robin".to_owned(), panic: false, queued: 0, backends }
}

fn sample(pools: &[(&str, &str, u64)], at: Instant) -> Sample {
    let key = |pool: &str, address: &str| (pool.to_owned(), address.to_owned());
    let requests = pools.iter().map(|(pool, address, requests)| (key(pool, address), *requests)).collect();
    Sample { at, requests }
}

#[test]
fn the_table_is_aligned_and_names_each_pool_once() {
    let busy = Backend {
        weight: 20,
        in_flight: 3,
        requests: 1_234_567,
        failures: 12,
        latency_seconds: Some(0.0021),
        last_probe: Some(Probe { ok: true, seconds_ago: 0.71, duration_seconds: 0.00085, error: None }),
        ..backend("web1:8888")
    };
    let ejected = Backend {
        status: "ejected".to_owned(),
        ejected_for_seconds: 12.0,
        ejection_prevented: false,
        last_probe: Some(Probe {
            ok: false,
            seconds_ago: 2.0,
            duration_seconds: 0.1,
            error: Some("connection\x1b refused".to_owned()),
        }),
        ..backend("[::1]:8888")
    };
    let pools = [pool("app", vec![busy, ejected]), pool("empty", vec![])];
    assert_eq!(
        table(&pools, None, false),
        "\
POOL   ALGORITHM    BACKEND      STATUS               WEIGHT  IN FLIGHT  REQUESTS  FAILURES  LATENCY  LAST PROBE
app    round-robin  web1:8888    healthy                  20          3     1.23M        12   2.10ms  ok in 850µs, 710ms ago
                    [::1]:8888   ejected, 12.0s left       1          0         0         0        -  failed 2.0s ago: connection  refused
empty  round-robin  no backends
"
    );
}

#[test]
fn each_address_of_a_name_has_a_line_and_unresolved_names_are_marked() {
    let endpoint = |address: &str, status: &str| Endpoint {
        address: Some(address.to_owned()),
        status: status.to_owned(),
        ejected_for_seconds: 12.0,
        ejection_prevented: false,
        in_flight: 1,
        latency_seconds: Some(0.0021),
        last_probe: None,
    };
    let endpoints = vec![endpoint("10.0.0.1:80", "healthy"), endpoint("[fd00::1]:80", "ejected")];
    let resolution = Some(super::super::admin::Resolution { error: Some("SERVFAIL".to_owned()) });
    let web = Backend { in_flight: 2, endpoints, resolution, ..backend("web:80") };
    assert_eq!(
        table(&[pool("app", vec![web, backend("b:1")])], None, false),
        "\
POOL  ALGORITHM    BACKEND         STATUS               WEIGHT  IN FLIGHT  REQUESTS  FAILURES  LATENCY  LAST PROBE
app   round-robin  web:80          healthy                   1          2         0         0        -  -
                     10.0.0.1:80   healthy                              1                       2.10ms  -
                     [fd00::1]:80  ejected, 12.0s left                  1                       2.10ms  -
                   b:1             healthy                   1          0         0         0        -  -

backend web:80 of pool app is not resolved, its last addresses are used on: SERVFAIL
"
    );
}

#[test]
fn a_panicking_pool_is_marked() {
    let text = table(&[Pool { panic: true, ..pool("app", vec![backend("a:1")]) }], None, false);
    assert!(text.ends_with("\npool app panics: too few backends are usable, so it ignores their health\n"), "{text}");
}

#[test]
fn colours_do_not_move_columns() {
    let pools = [pool("app", vec![backend("a:1"), Backend { status: "down".to_owned(), ..backend("b:1") }])];
    let coloured = table(&pools, None, true);
    assert!(coloured.contains("\x1b[32mhealthy\x1b[0m") && coloured.contains("\x1b[36mdown\x1b[0m"), "{coloured:?}");
    let mut plain = coloured;
    for code in ["\x1b[32m", "\x1b[36m", "\x1b[0m"] {
        plain = plain.replace(code, "");
    }
    assert_eq!(plain, table(&pools, None, false));
}

#[test]
fn watching_adds_rates_and_shares_within_the_pool() {
    let start = Instant::now();
    let before = sample(&[("app", "a:1", 100), ("app", "b:1", 0), ("api", "a:1", 5), ("app", "c:1", 50)], start);
    let after = sample(
        &[("app", "a:1", 400), ("app", "b:1", 100), ("api", "a:1", 5), ("app", "c:1", 1), ("app", "d:1", 9)],
        start + Duration::from_secs(2),
    );
    let rates = after.rates_since(&before);
    let pools = [pool("app", ["a:1", "b:1", "c:1", "d:1"].map(backend).to_vec()), pool("api", vec![backend("a:1")])];
    let text = table(&pools, Some(&rates), false);
    let columns = |line: &str| line.split_whitespace().rev().skip(3).take(2).map(str::to_owned).collect::<Vec<_>>();
    let shown: Vec<_> = text.lines().skip(1).map(columns).collect();
    // A counter that fell began anew with the balancer, and of a new backend nothing is known yet.
    assert_eq!(shown, [["75%", "150"], ["25%", "50.0"], ["-", "-"], ["-", "-"], ["-", "0.0"]]);
}

#[test]
fn numbers_are_short() {
    for (n, text) in [
        (0, "0"),
        (9_999, "9999"),
        (10_000, "10.0k"),
        (99_949, "99.9k"),
        (99_950, "100k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (1_234_567, "1.23M"),
        (u64::MAX, "18446744T"),
    ] {
        assert_eq!(count(n), text, "{n}");
    }
    for (seconds, text) in [
        (0.0, "0µs"),
        (0.000_85, "850µs"),
        (0.000_999_6, "1.00ms"),
        (0.0021, "2.10ms"),
        (0.0999, "99.9ms"),
        (0.9996, "1.0s"),
        (59.94, "59.9s"),
        (150.0, "2m"),
        (7200.0, "2h"),
    ] {
        assert_eq!(duration(seconds), text, "{seconds}");
    }
    for (rate, text) in [(0.0, "0.0"), (17.04, "17.0"), (99.96, "100"), (12_345.6, "12.3k")] {
        assert_eq!(per_second(rate), text, "{rate}");
    }
}

#[test]
fn the_screen_is_overwritten_line_by_line() {
    assert_eq!(over_the_last("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
}

#[test]
fn limits_are_shown_beside_their_counts_and_queued_requests_below() {
    let full = Backend { in_flight: 12_345, max_connections: Some(12_345), ..backend("web1:8888") };
    let one = Backend { in_flight: 1, max_connections: Some(8), ..backend("web2:8888") };
    let pools = [Pool { queued: 2, ..pool("app", vec![full, one]) }];
    assert_eq!(
        table(&pools, None, false),
        "\
POOL  ALGORITHM    BACKEND    STATUS   WEIGHT    IN FLIGHT  REQUESTS  FAILURES  LATENCY  LAST PROBE
app   round-robin  web1:8888  healthy       1  12.3k/12.3k         0         0        -  -
                   web2:8888  healthy       1          1/8         0         0        -  -

pool app: 2 requests wait, since every backend is at its max_connections
"
    );
}
