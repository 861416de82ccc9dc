//! The table of pools and backends, once or every second.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::admin::{AdminError, Backend, Certificate, Client, Endpoint, Pool, Pools, Probe, printable};

const INTERVAL: Duration = Duration::from_secs(1);
const ERROR_CHARS: usize = 60;
const GAP: &str = "  ";
const NOTHING: &str = "-";

/// The counters of all backends at one time, from which rates are computed.
struct Sample {
    at: Instant,
    requests: HashMap<(String, String), u64>,
}

/// Requests per second of each backend by pool and address; none if the counter was reset.
type Rates = HashMap<(String, String), f64>;

struct Cell {
    text: String,
    is_number: bool,
    /// SGR code.
    colour: Option<u8>,
}

pub(super) fn print(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let shown = client.pools()?;
    out.write_all(table(&shown.pools, None, super::wants_colours()).as_bytes())?;
    out.write_all(drift(&shown).as_bytes())?;
    out.write_all(certificates(&shown.certificates).as_bytes())?;
    Ok(())
}

/// Shows the state every second until the process is interrupted. Waits for a balancer that is not reachable.
pub(super) fn watch(client: &Client, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if as_json {
        return watch_json(client, out);
    }
    let is_terminal = io::stdout().is_terminal();
    let colours = super::wants_colours();
    let mut shown = client.pools()?;
    let mut before = Sample::new(&shown.pools, Instant::now());
    let mut rates = Rates::new();
    let mut unreachable: Option<String> = None;
    loop {
        let mut text = table(&shown.pools, Some(&rates), colours) + &drift(&shown) + &certificates(&shown.certificates);
        match &unreachable {
            None => text.push_str(&format!("\nversion {}, every second until Ctrl-C\n", shown.version)),
            Some(reason) => {
                text.push_str(&format!("\n{reason}\nThis is how it was last; trying again every second.\n"))
            }
        }
        out.write_all(if is_terminal { over_the_last(&text) } else { format!("{text}\n") }.as_bytes())?;
        out.flush()?;
        thread::sleep(INTERVAL);
        match client.pools() {
            Ok(pools) => {
                let now = Sample::new(&pools.pools, Instant::now());
                rates = now.rates_since(&before);
                (shown, before, unreachable) = (pools, now, None);
            }
            Err(e @ AdminError::Unreachable { .. }) => unreachable = Some(e.to_string()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn watch_json(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut answer = client.get("/admin/pools")?;
    loop {
        writeln!(out, "{answer}")?;
        out.flush()?;
        answer = loop {
            thread::sleep(INTERVAL);
            match client.get("/admin/pools") {
                Ok(answer) => break answer,
                Err(AdminError::Unreachable { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        };
    }
}

/// Overwrites the previous output line by line, which flickers less than clearing the screen.
fn over_the_last(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

impl Sample {
    fn new(pools: &[Pool], at: Instant) -> Self {
        let requests = pools.iter().flat_map(|pool| pool.backends.iter().map(|b| (key(pool, b), b.requests))).collect();
        Self { at, requests }
    }

    fn rates_since(&self, before: &Self) -> Rates {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
        let rate = |(key, requests): (&(String, String), &u64)| {
            let new = requests.checked_sub(*before.requests.get(key)?)?;
            Some((key.clone(), new as f64 / seconds))
        };
        self.requests.iter().filter_map(rate).collect()
    }
}

/// The differences between the file and the configuration in force.
fn drift(shown: &Pools) -> String {
    let are = if shown.drift == 1 { "is" } else { "are" };
    let mut text = match shown.drift {
        0 => String::new(),
        n => format!(
            "\n{} {are} in force and not in the file: `evenkeel config --diff` shows, `evenkeel reset` takes back\n",
            super::counted(n, "change")
        ),
    };
    if !shown.awaiting_restart.is_empty() {
        text.push_str("\nIn the file, from the next start on:\n");
        for setting in &shown.awaiting_restart {
            text.push_str(&format!("  {}\n", printable(setting)));
        }
    }
    text
}

/// Certificates that need attention.
fn certificates(all: &[Certificate]) -> String {
    let mut text = String::new();
    for Certificate { listener, file, names, days_left, renewal, problem } in all {
        let certificate = format!("certificate {} of listener {}", printable(file), printable(listener));
        let names = printable(&names.join(", "));
        match (renewal.as_deref(), days_left) {
            (Some("expired"), _) => text.push_str(&format!("{certificate} for {names} has expired: renew it\n")),
            (Some(_), Some(days)) => text.push_str(&format!(
                "{certificate} for {names} expires in {}: renew it\n",
                super::counted(*days as usize, "day")
            )),
            _ => {}
        }
        if let Some(problem) = problem {
            text.push_str(&format!("{certificate}: {}; what was in use before stays so\n", printable(problem)));
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// A heading and one line per backend, or per address if it has several. With rates, there are columns for these.
fn table(pools: &[Pool], rates: Option<&Rates>, colours: bool) -> String {
    let mut heading = vec!["POOL", "ALGORITHM", "BACKEND", "STATUS", "WEIGHT", "IN FLIGHT", "REQUESTS"];
    if rates.is_some() {
        heading.extend(["REQ/S", "SHARE"]);
    }
    heading.extend(["FAILURES", "LATENCY", "LAST PROBE"]);
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for pool in pools {
        let begin = rows.len();
        for backend in &pool.backends {
            rows.push(row(pool, backend, rates));
            if backend.endpoints.len() > 1 {
                rows.extend(backend.endpoints.iter().map(|endpoint| row_of_endpoint(endpoint, rates.is_some())));
            }
        }
        if rows.len() == begin {
            rows.push(vec![Cell::text(""), Cell::text(""), Cell::text("no backends")]);
        }
        // The pool's name is shown only beside its first backend.
        rows[begin][0] = Cell::text(&pool.name);
        rows[begin][1] = Cell::text(&pool.algorithm);
    }
    let mut text = aligned(&heading, &rows, colours);
    for pool in pools.iter().filter(|pool| pool.panic) {
        let warning = format!("pool {} panics: too few backends are usable, so it ignores their health", pool.name);
        text.push_str(&format!("\n{}\n", Cell::text(&warning).coloured(RED).shown(0, colours)));
    }
    for pool in pools.iter().filter(|pool| pool.queued > 0) {
        let wait = if pool.queued == 1 { "waits" } else { "wait" };
        let requests = super::counted(pool.queued as usize, "request");
        let warning = format!("pool {}: {requests} {wait}, since every backend is at its max_connections", pool.name);
        text.push_str(&format!("\n{}\n", Cell::text(&warning).coloured(YELLOW).shown(0, colours)));
    }
    for (pool, backend, error) in unresolved(pools) {
        let has_addresses = backend.endpoints.iter().any(|endpoint| endpoint.address.is_some());
        let then = if has_addresses { "its last addresses are used on" } else { "nothing can be sent there" };
        let warning = format!("backend {} of pool {} is not resolved, {then}: {error}", backend.address, pool.name);
        text.push_str(&format!("\n{}\n", Cell::text(&warning).coloured(YELLOW).shown(0, colours)));
    }
    text
}

/// Backends whose last lookup failed, and why.
fn unresolved(pools: &[Pool]) -> impl Iterator<Item = (&Pool, &Backend, &str)> {
    let backends = pools.iter().flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    backends.filter_map(|(pool, backend)| Some((pool, backend, backend.resolution.as_ref()?.error.as_deref()?)))
}

/// The state of one address; counters and settings belong to the backend.
fn row_of_endpoint(endpoint: &Endpoint, has_rates: bool) -> Vec<Cell> {
    let address = endpoint.address.as_deref().unwrap_or(NOTHING);
    let status = match endpoint.status.as_str() {
        "ejected" => format!("ejected, {} left", duration(endpoint.ejected_for_seconds)),
        status if endpoint.ejection_prevented => format!("{status}, {NOT_EJECTED}"),
        status => status.to_owned(),
    };
    let none = || Cell::text("");
    let mut cells = vec![none(), none(), Cell::text(&format!("  {address}"))];
    cells.push(coloured(Cell::text(&status), &endpoint.status));
    cells.extend([none(), Cell::number(count(endpoint.in_flight.into())), none()]);
    if has_rates {
        cells.extend([none(), none()]);
    }
    cells.push(none());
    cells.push(Cell::number(endpoint.latency_seconds.map_or(NOTHING.to_owned(), duration)));
    cells.push(Cell::text(&endpoint.last_probe.as_ref().map_or(NOTHING.to_owned(), probe)));
    cells
}

fn row(pool: &Pool, backend: &Backend, rates: Option<&Rates>) -> Vec<Cell> {
    let mut cells = vec![
        Cell::text(""),
        Cell::text(""),
        Cell::text(&backend.address),
        status(backend),
        Cell::number(backend.weight.to_string()),
        Cell::number(match backend.max_connections {
            Some(max) => format!("{}/{}", count(backend.in_flight.into()), count(max.into())),
            None => count(backend.in_flight.into()),
        }),
        Cell::number(count(backend.requests)),
    ];
    if let Some(rates) = rates {
        let rate = rates.get(&key(pool, backend)).copied();
        let total: f64 = pool.backends.iter().filter_map(|b| rates.get(&key(pool, b))).sum();
        cells.push(Cell::number(rate.map_or(NOTHING.to_owned(), per_second)));
        let share = rate.filter(|_| total > 0.0).map(|rate| format!("{:.0}%", rate * 100.0 / total));
        cells.push(Cell::number(share.unwrap_or(NOTHING.to_owned())));
    }
    let failures = Cell::number(count(backend.failures));
    cells.push(if backend.failures > 0 { failures.coloured(YELLOW) } else { failures });
    cells.push(Cell::number(backend.latency_seconds.map_or(NOTHING.to_owned(), duration)));
    cells.push(Cell::text(&backend.last_probe.as_ref().map_or(NOTHING.to_owned(), probe)));
    cells
}

/// Its traffic fails, and an ejection would leave too few.
const NOT_EJECTED: &str = "fails, not ejected";

const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const CYAN: u8 = 36;

fn status(backend: &Backend) -> Cell {
    let left = backend.ejected_for_seconds;
    let text = match backend.status.as_str() {
        "ejected" => Cell::text(&format!("ejected, {} left", duration(left))),
        status => match super::kill_after(backend) {
            Some(left) => Cell::text(&format!("{status}, killed in {}", duration(left))),
            None if backend.ejection_prevented => Cell::text(&format!("{status}, {NOT_EJECTED}")),
            None => Cell::text(status),
        },
    };
    coloured(text, &backend.status)
}

fn coloured(text: Cell, status: &str) -> Cell {
    match status {
        "healthy" => text.coloured(GREEN),
        "unhealthy" | "ejected" => text.coloured(RED),
        "unknown" => text.coloured(YELLOW),
        _ => text.coloured(CYAN),
    }
}

fn probe(probe: &Probe) -> String {
    let ago = duration(probe.seconds_ago);
    match &probe.error {
        _ if probe.ok => format!("ok in {}, {ago} ago", duration(probe.duration_seconds)),
        Some(error) => {
            let short: String = printable(error).chars().take(ERROR_CHARS).collect();
            format!("failed {ago} ago: {short}")
        }
        None => format!("failed {ago} ago"),
    }
}

fn key(pool: &Pool, backend: &Backend) -> (String, String) {
    (pool.name.clone(), backend.address.clone())
}

/// Up to four digits unchanged, beyond that three with a unit.
fn count(n: u64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // A number that rounds up to the next unit is written in it: 999,950 is 1.00M, not 1000k.
    let value = n as f64;
    match UNITS.iter().find(|(unit, _)| value >= unit * 0.9995) {
        Some((unit, name)) if n >= 10_000 => format!("{}{name}", three_digits(value / unit)),
        _ => n.to_string(),
    }
}

fn per_second(rate: f64) -> String {
    if rate < 99.95 { format!("{rate:.1}") } else { count(rate.round() as u64) }
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.000_999_5 => format!("{:.0}µs", s * 1e6),
        s if s < 0.9995 => format!("{}ms", three_digits(s * 1e3)),
        s if s < 99.95 => format!("{s:.1}s"),
        s if s < 5970.0 => format!("{:.0}m", s / 60.0),
        s => format!("{:.0}h", s / 3600.0),
    }
}

fn three_digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn aligned(heading: &[&str], rows: &[Vec<Cell>], colours: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(Cell::width);
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heading.len()).map(width).collect();
    let is_number = |column: usize| rows.iter().filter_map(|row| row.get(column)).any(|cell| cell.is_number);
    let heading =
        heading.iter().enumerate().map(|(column, name)| Cell { is_number: is_number(column), ..Cell::text(name) });
    let heading: Vec<_> = heading.collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| cell.shown(*width, colours)).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

impl Cell {
    fn text(text: &str) -> Self {
        Self { text: printable(text), is_number: false, colour: None }
    }

    fn number(text: String) -> Self {
        Self { text, is_number: true, colour: None }
    }

    fn coloured(self, colour: u8) -> Self {
        Self { colour: Some(colour), ..self }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn shown(&self, width: usize, colours: bool) -> String {
        let space = " ".repeat(width.saturating_sub(self.width()));
        let text = match self.colour {
            Some(colour) if colours => format!("\x1b[{colour}m{}\x1b[0m", self.text),
            _ => self.text.clone(),
        };
        if self.is_number { format!("{space}{text}") } else { format!("{text}{space}") }
    }
}

#[cfg(test)]
mod tests;
