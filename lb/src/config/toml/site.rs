//! Reads sites and their routes: what they match, and what responds.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use toml::de::DeValue;

use super::reader::{Reader, Section, Setting, did_you_mean};
use super::rules::{References, RuleScope};
use super::tls::not_pinnable;
use super::{collect, values};
use crate::config::route::{HostPattern, PathPrefix};
use crate::config::site::{
    Action, JumpTo, ListenerName, Matcher, Page, PoolFrom, Redirect, Respond, Rewrite, RouteConfig, RouteName, Rules,
    SiteConfig,
};
use crate::config::{HostRoute, PoolName};
use crate::value::condition::{Comparison, Condition, MethodSet, NetSet, Test, TextSet};
use crate::value::table::{Percent, Tables, Written, WrittenCases};
use crate::value::variable::Variable;
use crate::value::{Phase, Scope, Value};

const ACTIONS: &[&str] = &["pool", "pool_from", "respond", "redirect", "jump"];
const MATCHERS: &[&str] = &["path", "exact", "prefix", "regex"];

/// A site, with what is needed to name and compare it.
struct SiteAt {
    site: SiteConfig,
    /// The offset of its hosts.
    offset: usize,
    is_named: bool,
    routes: Vec<RouteAt>,
}

/// Information about a route besides its configuration.
struct RouteAt {
    offset: usize,
    /// Its configured name.
    name: Option<(String, usize)>,
    /// Routes of this site that it jumps to by name, with the offset of each jump.
    jumps: Vec<(RouteName, usize)>,
}

impl<'t> Reader<'t> {
    /// The tables of `[values]`, and whether they are valid. If not, they exist by name only, so that values which
    /// refer to them are not reported as well.
    pub(super) fn values(&mut self, roots: &[Section<'t>]) -> (Tables, bool) {
        let mut written = Vec::new();
        let mut offsets: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut is_sound = true;
        for root in roots {
            let Some(entries) = self.entries(root, "values") else {
                is_sound = false;
                continue;
            };
            for entry in entries {
                let value = self.free_section(root, &format!("values.{}", entry.name), "values", entry.value);
                match value.and_then(|section| self.value_table(&section, entry.name)) {
                    Some((table, cases)) => {
                        written.push(table);
                        offsets.push((entry.key_offset, cases));
                    }
                    None => {
                        written.push(Written {
                            name: entry.name.to_owned(),
                            from: String::new(),
                            cases: WrittenCases::Map { cases: Vec::new(), hostnames: false },
                            default: None,
                        });
                        offsets.push((entry.key_offset, Vec::new()));
                        is_sound = false;
                    }
                }
            }
        }
        match Tables::read(&written) {
            Ok(tables) => (tables, is_sound),
            Err(problems) => {
                for problem in problems {
                    let index = problem.table.0 as usize;
                    let Some((offset, cases)) = offsets.get(index) else { continue };
                    let offset = match problem.at {
                        crate::value::table::At::Case(case) => cases.get(case).copied().unwrap_or(*offset),
                        _ => *offset,
                    };
                    self.problem(offset, format!("values.{}: {}", written[index].name, problem.message));
                }
                (Tables::unread(written.into_iter().map(|table| table.name)), false)
            }
        }
    }

    fn value_table(&mut self, section: &Section<'t>, name: &str) -> Option<(Written, Vec<usize>)> {
        let from = self.required(section, "from", values::text);
        if let Some(text) = from.as_ref().filter(|text| !text.contains('$')) {
            let message = format!(
                "{} is \"{text}\", which is the same for every request: write a variable, such as \"${text}\"",
                section.name_of("from")
            );
            self.problem(section.offset("from"), message);
        }
        let default = self.optional(section, "default", values::text);
        let hostnames = self.optional(section, "hostnames", values::flag);
        let kinds: Vec<_> = ["cases", "networks", "shares"].into_iter().filter(|key| section.has(key)).collect();
        let [kind] = kinds.as_slice() else {
            let offset = kinds.get(1).map_or(section.own_offset(), |key| section.key_offset(key));
            let message = format!(
                "{} has {}: write one of cases, networks and shares, such as cases = {{ gold = \"fast\" }}",
                section.name_of("").trim_end_matches('.'),
                if kinds.is_empty() { "none of cases, networks and shares".to_owned() } else { kinds.join(" and ") }
            );
            self.problem(offset, message);
            return None;
        };
        let mut offsets = Vec::new();
        let mut texts = Some(Vec::new());
        if *kind == "shares" {
            let mut shares = Some(Vec::new());
            for entry in self.entries(section, kind)? {
                offsets.push(entry.key_offset);
                let share = self.read_at(section, &format!("{kind}.{}", entry.name), entry.value, |value| {
                    Percent::new(values::number(value)?).map_err(|_| "percent from 0.01 to 100, such as 5".to_owned())
                });
                collect(&mut shares, share.map(|share| (share, entry.name.to_owned())));
            }
            let cases = WrittenCases::Shares(shares?);
            return Some((Written { name: name.to_owned(), from: from?, cases, default: default? }, offsets));
        }
        for entry in self.entries(section, kind)? {
            offsets.push(entry.key_offset);
            if entry.name == "default" {
                let message = format!(
                    "{} has \"default\", which is taken for a text here: write default = \"…\" beside {kind}{}",
                    section.name_of(kind),
                    if *kind == "cases" { ", or '\\default' for the text" } else { "" }
                );
                self.problem(entry.key_offset, message);
                texts = None;
                continue;
            }
            let text = self.read_at(section, &format!("{kind}.{}", entry.name), entry.value, values::text);
            collect(&mut texts, text.map(|text| (entry.name, text)));
        }
        let texts = texts?;
        let mut problem = |index: usize, message: String| {
            let key = format!("{}: ", section.name_of(kind));
            self.problem(offsets.get(index).copied().unwrap_or_default(), format!("{key}{message}"));
        };
        let cases = match *kind {
            "networks" => {
                let mut networks = Some(Vec::new());
                for (index, (name, text)) in texts.into_iter().enumerate() {
                    let network = values::network_in(name);
                    if let Err(fix) = &network {
                        problem(index, format!("\"{name}\" is not a network: write {fix}"));
                    }
                    collect(&mut networks, network.ok().map(|network| (network, text)));
                }
                WrittenCases::Networks(networks?)
            }
            _ => WrittenCases::Map {
                cases: texts.into_iter().map(|(name, text)| (name.to_owned(), text)).collect(),
                hostnames: hostnames?.unwrap_or(false),
            },
        };
        Some((Written { name: name.to_owned(), from: from?, cases, default: default? }, offsets))
    }

    pub(super) fn sites(
        &mut self,
        roots: &[Section<'t>],
        routes: &[HostRoute],
        around: &References<'_>,
    ) -> Option<Vec<SiteConfig>> {
        let sections: Vec<_> = roots.iter().flat_map(|root| self.tables(root, "site")).collect();
        let mut sites = Some(Vec::new());
        for section in &sections {
            let site = self.site(section, around);
            collect(&mut sites, site);
        }
        let mut sites: Vec<SiteAt> = sites?;
        self.check_hosts(&sites, routes);
        self.name_sites(&mut sites);
        self.name_routes(&mut sites, routes);
        Some(sites.into_iter().map(|site| site.site).collect())
    }

    fn site(&mut self, section: &Section<'t>, around: &References<'_>) -> Option<SiteAt> {
        let name = self.optional(section, "name", values::site_name);
        let hosts = self.hosts(section);
        let listeners = match section.has("listeners") {
            true => self.each(section, "listeners", values::listener_name),
            false => Some(Vec::new()),
        };
        let is_known = |name: &&ListenerName| around.listeners.iter().any(|one| one.may_be(name));
        for listener in listeners.iter().flatten().filter(|name| !is_known(name) && !around.listeners.is_empty()) {
            let names: Vec<_> = around.listeners.iter().flat_map(|one| &one.name).map(ListenerName::as_str).collect();
            let message = format!(
                "site.listeners has \"{listener}\", but there is no such listener: {}the listeners are {}",
                did_you_mean(listener.as_str(), &names),
                names.join(", ")
            );
            self.absent(Some(section.offset("listeners")), message);
        }
        let certificate = self.pinned(section, listeners.as_deref().unwrap_or_default(), around);
        let expression = hosts.iter().flatten().filter_map(|host| match host {
            HostPattern::Regex(regex) => Some(regex),
            _ => None,
        });
        let expressions: Vec<_> = expression.collect();
        let host = if let [one] = expressions.as_slice() { Some(*one) } else { None };
        let has_server_name = !matches!(hosts.iter().flatten().next(), Some(HostPattern::Any | HostPattern::Regex(_)));
        let rule_scope = RuleScope { around, host, route: None, has_server_name };
        let rules = self.rules(section, &Rules::default(), &rule_scope);
        let mut routes = Some(Vec::new());
        let mut at = Vec::new();
        let has_action = ACTIONS.iter().any(|action| section.has(action));
        let sections = self.tables(section, "route");
        for inner in &sections {
            let read = self.route_of_site(inner, rules.as_ref().unwrap_or(&Rules::default()), &rule_scope);
            collect(
                &mut routes,
                read.map(|(route, route_at)| {
                    at.push(route_at);
                    route
                }),
            );
        }
        if has_action {
            let action = self.action(section, &rule_scope);
            if let (Some((Action::Respond(respond), _)), Some(rules)) = (&action, &rules) {
                self.check_respond(section, respond, rules);
            }
            let route = || {
                let (action, jumps) = action?;
                at.push(RouteAt {
                    offset: section.own_offset(),
                    name: None,
                    jumps: [jumps, rules.as_ref().map(|rules| self.page_jumps(section, rules)).unwrap_or_default()]
                        .concat(),
                });
                Some(RouteConfig {
                    name: RouteName::new(""),
                    matcher: Matcher::Path(PathPrefix::parse("/")?),
                    condition: None,
                    over_regex: false,
                    internal: false,
                    action,
                    rules: rules.clone()?,
                    defined_at: self.origin(section.own_offset()),
                })
            };
            let route = route();
            collect(&mut routes, route);
        } else if sections.is_empty() && !section.has("route") {
            let message = "site has neither routes nor an action: write a [[site.route]], or for all of its requests one of pool, redirect, respond and jump";
            self.absent(Some(section.own_offset()), message);
        }
        let routes = routes?;
        self.check_hidden(&routes, &at);
        let hosts = hosts?;
        let rules = rules?;
        let name = name?;
        let is_named = name.is_some();
        Some(SiteAt {
            offset: section.offset("hosts"),
            is_named,
            site: SiteConfig {
                name: name.unwrap_or_default(),
                hosts,
                listeners: listeners?,
                certificate: certificate?,
                routes,
                fallback: rules,
                defined_at: self.origin(section.own_offset()),
            },
            routes: at,
        })
    }

    /// The certificate that a site pins.
    fn pinned(
        &mut self,
        section: &Section<'t>,
        listeners: &[ListenerName],
        around: &References<'_>,
    ) -> Option<Option<PathBuf>> {
        let base = self.base(section);
        let file = |value: &DeValue<'t>| values::path(base, value)?.ok_or_else(|| "the path of a PEM file".to_owned());
        let certificate = self.optional(section, "certificate", file)?;
        if let Some(path) = &certificate
            && let Some(problem) = not_pinnable(around.listeners, listeners, path)
        {
            let message = format!(
                "site.certificate is {}, but {problem}: name a certificate of the listener's tls by the same path",
                path.display()
            );
            self.absent(Some(section.offset("certificate")), message);
        }
        Some(certificate)
    }

    fn hosts(&mut self, section: &Section<'t>) -> Option<Vec<HostPattern>> {
        if !section.has("hosts") {
            self.missing(section, "hosts");
            return None;
        }
        let elements = self.elements(section, "hosts")?;
        if elements.is_empty() {
            self.problem(
                section.offset("hosts"),
                "site.hosts is empty: write the names, or [\"\"] for any host".to_owned(),
            );
            return None;
        }
        let mut hosts: Option<Vec<HostPattern>> = Some(Vec::new());
        for element in elements {
            let host = self.read_at(section, "hosts", element, values::site_host);
            if let (Some(host), Some(known)) = (&host, &hosts)
                && known.contains(host)
            {
                self.problem(section.at(element), format!("site.hosts has \"{host}\" twice: remove one"));
            }
            collect(&mut hosts, host);
        }
        hosts
    }

    /// Checks that no host belongs to two sites.
    fn check_hosts(&mut self, sites: &[SiteAt], routes: &[HostRoute]) {
        let mut known: HashMap<String, Vec<usize>> = HashMap::new();
        let of_routes: HashMap<String, &HostRoute> =
            routes.iter().map(|route| (route.host.to_string(), route)).collect();
        for (index, SiteAt { site, offset, .. }) in sites.iter().enumerate() {
            for host in &site.hosts {
                let shown = host.to_string();
                if let Some(route) = of_routes.get(&shown) {
                    let message = format!(
                        "site.hosts has \"{shown}\", for which there is a [[route]] ({}): write that one as a [[site.route]], or another host",
                        route.defined_at
                    );
                    self.problem(*offset, message);
                }
                let with_host = known.entry(shown.clone()).or_default();
                let other = with_host
                    .iter()
                    .filter(|other| **other != index)
                    .filter_map(|other| sites.get(*other))
                    .find(|other| overlap(&other.site, site));
                if let Some(other) = other {
                    let line = self.line(other.offset, *offset);
                    let message = format!(
                        "site.hosts has \"{shown}\", which the site in {line} has on the same listener: remove one of the two, or give them different listeners"
                    );
                    self.problem(*offset, message);
                }
                with_host.push(index);
            }
        }
    }

    /// Names a site after its first host, and its listener if another site has that host, too.
    fn name_sites(&mut self, sites: &mut [SiteAt]) {
        let first = |site: &SiteConfig| match site.hosts.first() {
            None | Some(HostPattern::Any) => "*".to_owned(),
            Some(host) => host.to_string(),
        };
        let mut count: HashMap<String, usize> = HashMap::new();
        for SiteAt { site, is_named, .. } in sites.iter() {
            let name = if *is_named { site.name.clone() } else { first(site) };
            *count.entry(name).or_default() += 1;
        }
        let mut taken: HashMap<String, usize> = HashMap::new();
        for index in 0..sites.len() {
            let SiteAt { site, is_named, offset, .. } = &mut sites[index];
            let offset = *offset;
            if !*is_named {
                let name = first(site);
                let listener = site.listeners.first().filter(|_| count.get(&name).is_some_and(|count| *count > 1));
                site.name = listener.map_or(name.clone(), |listener| format!("{name}@{listener}"));
            }
            let name = site.name.clone();
            match taken.get(&name) {
                Some(first) => {
                    let line = self.line(sites[*first].offset, offset);
                    self.problem(offset, format!("the site in {line} is called \"{name}\" too: write another name, such as name = \"{name}-2\""));
                }
                None => drop(taken.insert(name, index)),
            }
        }
    }

    /// Names routes by site and path; names are unique.
    fn name_routes(&mut self, sites: &mut [SiteAt], routes: &[HostRoute]) {
        let mut given: HashMap<String, usize> = HashMap::new();
        for SiteAt { routes, .. } in sites.iter() {
            for (name, offset) in routes.iter().filter_map(|route| route.name.as_ref()) {
                match given.get(name) {
                    Some(first) => {
                        let line = self.line(*first, *offset);
                        let message =
                            format!("site.route.name is \"{name}\", which the route in {line} has: write another name");
                        self.problem(*offset, message);
                    }
                    None => drop(given.insert(name.clone(), *offset)),
                }
            }
        }
        let top_level = routes.iter().map(|route| format!("{}{}", route.host, route.path.as_str()));
        let mut taken: HashSet<String> = given.into_keys().chain(top_level).collect();
        for SiteAt { site, routes, .. } in sites.iter_mut() {
            let prefix = if site.name == "*" { "" } else { &site.name };
            for (route, at) in site.routes.iter_mut().zip(routes.iter()) {
                let name = match (&at.name, &route.matcher) {
                    (Some((name, _)), _) => name.clone(),
                    (None, Matcher::Path(path)) => format!("{prefix}{}", path.as_str()),
                    (None, Matcher::Exact(path)) => format!("{prefix} exact {path}"),
                    (None, Matcher::Prefix(path)) => format!("{prefix} prefix {path}"),
                    (None, Matcher::Regex(regex)) => format!("{prefix} regex {}", regex.text()),
                    (None, Matcher::Named) => continue,
                };
                let mut name = name.trim_start().to_owned();
                if at.name.is_none() {
                    let numbered = (2..).map(|number| format!("{name}#{number}"));
                    name = std::iter::once(name.clone())
                        .chain(numbered)
                        .find(|name| !taken.contains(name))
                        .unwrap_or(name);
                    taken.insert(name.clone());
                }
                route.name = RouteName::new(&name);
            }
            for (name, offset) in routes.iter().flat_map(|route| &route.jumps) {
                if !site.routes.iter().any(|route| route.name == *name) {
                    let names: Vec<_> =
                        routes.iter().filter_map(|route| Some(route.name.as_ref()?.0.as_str())).collect();
                    let fix = match names.is_empty() {
                        true => format!(
                            "add a [[site.route]] with name = \"{name}\", or write a path that begins with \"/\""
                        ),
                        false => {
                            format!("{}the named routes are {}", did_you_mean(name.as_str(), &names), names.join(", "))
                        }
                    };
                    self.problem(*offset, format!("the site has no route that is called \"{name}\": {fix}"));
                }
            }
        }
    }

    /// Reports hidden routes: of several routes with one path, the first whose condition holds is used.
    fn check_hidden(&mut self, routes: &[RouteConfig], at: &[RouteAt]) {
        let mut of_path: HashMap<(u8, &str), Vec<(&RouteConfig, &RouteAt)>> = HashMap::new();
        for (route, route_at) in routes.iter().zip(at) {
            let key = match &route.matcher {
                Matcher::Path(path) => (0, path.as_str()),
                Matcher::Exact(path) => (1, path.as_str()),
                Matcher::Prefix(path) => (2, path.as_str()),
                Matcher::Regex(regex) => (3, regex.text()),
                Matcher::Named => continue,
            };
            let hides = |above: &RouteConfig| above.condition.is_none() || above.condition == route.condition;
            let before = of_path.entry(key).or_default();
            let hiding = before.iter().find(|(above, _)| hides(above)).map(|(_, above)| above.offset);
            before.push((route, route_at));
            if let Some(above) = hiding {
                let line = self.line(above, route_at.offset);
                let message = format!(
                    "no request can reach this route, since the one in {line} takes all for the same path: write this one before it, or give that one a condition (methods, networks or when)"
                );
                self.problem(route_at.offset, message);
            }
        }
    }

    fn route_of_site(
        &mut self,
        section: &Section<'t>,
        outer: &Rules,
        rule_scope: &RuleScope<'_>,
    ) -> Option<(RouteConfig, RouteAt)> {
        let name = self.optional(section, "name", values::route_name);
        let matcher = self.matcher(section);
        let expression = if let Some(Matcher::Regex(regex)) = &matcher { Some(regex) } else { None };
        let rule_scope = RuleScope { route: expression, ..*rule_scope };
        let condition = self.condition(section, &rule_scope);
        let over_regex = self.optional(section, "over_regex", values::flag);
        let internal = self.optional(section, "internal", values::flag);
        let rules = self.rules(section, outer, &rule_scope);
        let written: Vec<_> = ACTIONS.iter().filter(|action| section.has(action)).collect();
        let action = match written.as_slice() {
            [] => {
                let message = "site.route has no action: write one of pool, pool_from, redirect, respond and jump";
                self.absent(Some(section.own_offset()), message);
                None
            }
            _ => self.action(section, &rule_scope),
        };
        if let (Some(true), Some(Matcher::Exact(_) | Matcher::Regex(_) | Matcher::Named)) =
            (over_regex.flatten(), &matcher)
        {
            let message = "site.route.over_regex has no effect here, since only the longest path or prefix is chosen over a regex: remove it";
            self.problem(section.key_offset("over_regex"), message);
        }
        if let (Some(Rules { rewrite: Some(Rewrite::Prefix { .. }), .. }), Some(Matcher::Regex(_) | Matcher::Named)) =
            (&rules, &matcher)
        {
            let message = "rewrite.prefix has no effect here, since this route has no path of its own to put it in place of: write rewrite = { to = \"…\" }, or { regex = \"…\", to = \"…\" }";
            self.problem(section.first_offset(&["rewrite"]), message);
        }
        let page_jumps = rules.as_ref().map(|rules| self.page_jumps(section, rules)).unwrap_or_default();
        let (action, jumps) = action?;
        if let (Action::Respond(respond), Some(rules)) = (&action, &rules) {
            self.check_respond(section, respond, rules);
        }
        let at = RouteAt {
            offset: section.first_offset(MATCHERS),
            name: name?.map(|name| (name, section.offset("name"))),
            jumps: [jumps, page_jumps].concat(),
        };
        let route = RouteConfig {
            name: RouteName::new(""),
            matcher: matcher?,
            condition: condition?,
            over_regex: over_regex?.unwrap_or(false),
            internal: internal?.unwrap_or(false),
            action,
            rules: rules?,
            defined_at: self.origin(section.own_offset()),
        };
        Some((route, at))
    }

    fn page_jumps(&self, section: &Section<'t>, rules: &Rules) -> Vec<(RouteName, usize)> {
        let name = |page: &Page| match page {
            Page::Jump(JumpTo::Route(name)) => Some(name.clone()),
            _ => None,
        };
        let offset = section.first_offset(&["error_pages"]);
        rules.error_pages.iter().filter_map(|page| Some((name(&page.page)?, offset))).collect()
    }

    fn matcher(&mut self, section: &Section<'t>) -> Option<Matcher> {
        let written: Vec<_> = MATCHERS.iter().filter(|key| section.has(key)).collect();
        match written.as_slice() {
            [] if section.has("name") => Some(Matcher::Named),
            [] => {
                let message = "site.route has no path: write path = \"/\" for all, or exact, prefix or regex; a route that only jumps lead to needs a name";
                self.absent(Some(section.own_offset()), message);
                None
            }
            [key] => match **key {
                "path" => self.required(section, "path", values::path_prefix).map(Matcher::Path),
                "exact" => {
                    let path = self.required(section, "exact", values::path_prefix);
                    path.map(|path| Matcher::Exact(path.as_str().to_owned()))
                }
                "prefix" => self.required(section, "prefix", values::byte_prefix).map(Matcher::Prefix),
                _ => self.regex(section, "regex").map(Matcher::Regex),
            },
            [first, second, ..] => {
                let message = format!(
                    "site.route has {first} and {second}: write one of the two, and another [[site.route]] for the other"
                );
                self.problem(section.key_offset(second), message);
                None
            }
        }
    }

    /// Reads `methods`, `networks` and `when`. The inner `None` means no condition.
    fn condition(&mut self, section: &Section<'t>, rule_scope: &RuleScope<'_>) -> Option<Option<Condition>> {
        let (mut is_sound, mut condition) = (true, Condition::default());
        if section.has("methods") {
            let methods = self.each(section, "methods", values::text);
            match methods.map(MethodSet::new) {
                Some(Ok(methods)) if methods.iter().next().is_some() => condition.methods = Some(methods),
                Some(Ok(_)) => {
                    self.problem(
                        section.offset("methods"),
                        format!("{} is empty: write [\"GET\", \"HEAD\"], or remove it", section.name_of("methods")),
                    );
                    is_sound = false;
                }
                Some(Err(message)) => {
                    self.problem(section.offset("methods"), format!("{}: {message}", section.name_of("methods")));
                    is_sound = false;
                }
                None => is_sound = false,
            }
        }
        if section.has("networks") {
            match self.each(section, "networks", values::network) {
                Some(networks) if !networks.is_empty() => condition.networks = Some(NetSet::new(networks)),
                Some(_) => {
                    self.problem(
                        section.offset("networks"),
                        format!("{} is empty: write [\"10.0.0.0/8\"], or remove it", section.name_of("networks")),
                    );
                    is_sound = false;
                }
                None => is_sound = false,
            }
        }
        let when = self.section(section, "when");
        match self.tests(&when, rule_scope, Phase::Head) {
            Some(tests) => condition.tests = tests,
            None => is_sound = false,
        }
        is_sound.then(|| if condition.is_empty() { None } else { Some(condition) })
    }

    /// Like `condition`, with everything in one table.
    pub(super) fn condition_within(
        &mut self,
        section: &Section<'t>,
        rule_scope: &RuleScope<'_>,
        known: Phase,
    ) -> Option<Option<Condition>> {
        let mut condition = Condition { tests: self.tests(section, rule_scope, known)?, ..Condition::default() };
        if section.has("methods") {
            let methods = self.each(section, "methods", values::text)?;
            match MethodSet::new(methods) {
                Ok(methods) => condition.methods = Some(methods),
                Err(message) => {
                    self.problem(section.offset("methods"), format!("{}: {message}", section.name_of("methods")));
                    return None;
                }
            }
        }
        if section.has("networks") {
            condition.networks = Some(NetSet::new(self.each(section, "networks", values::network)?));
        }
        Some(if condition.is_empty() { None } else { Some(condition) })
    }

    /// Reads the tests of `headers`, `cookies`, `query` and `values`.
    fn tests(&mut self, when: &Section<'t>, rule_scope: &RuleScope<'_>, known: Phase) -> Option<Vec<Test>> {
        let mut tests = Some(Vec::new());
        for (key, prefix) in [("headers", "http_"), ("cookies", "cookie_"), ("query", "arg_"), ("values", "")] {
            for entry in self.entries(when, key).unwrap_or_default() {
                let text = match prefix {
                    "" => entry.name.to_owned(),
                    prefix => format!("${{{prefix}{}}}", entry.name),
                };
                if !text.contains('$') {
                    let message = format!(
                        "{} has \"{text}\", which is the same for every request: write a variable, such as \"${text}\"",
                        when.name_of(key)
                    );
                    self.problem(entry.key_offset, message);
                }
                let of = Value::parse(&text, &rule_scope.scope(known));
                if let Err(message) = &of {
                    self.problem(entry.key_offset, format!("{}: {message}", when.name_of(key)));
                }
                let test =
                    self.test(when.within(&format!("{key}.{}", entry.name), entry.value), &rule_scope.scope(known));
                let test = of.ok().zip(test).map(|(of, (is, negated))| Test { of, is, negated });
                collect(&mut tests, test);
            }
        }
        tests
    }

    /// Reads one comparison, which may be negated.
    fn test(&mut self, setting: Setting<'_, 't>, scope: &Scope<'_>) -> Option<(Comparison, bool)> {
        let Setting { section, key, value } = setting;
        if let DeValue::Table(table) = value.get_ref()
            && let (Some(inner), 1) = (table.get("not"), table.len())
        {
            let (is, negated) = self.test(section.within(&format!("{key}.not"), inner), scope)?;
            return Some((is, !negated));
        }
        self.read_at(section, key, value, |value| match value {
            DeValue::Boolean(present) => Ok((Comparison::Present(Default::default()), !present)),
            DeValue::String(text) => match text.strip_prefix('~') {
                Some(regex) => values::regex_in(regex).map(|regex| (Comparison::Matches(regex), false)),
                None => {
                    let text = text.strip_prefix('\\').filter(|rest| rest.starts_with('~')).unwrap_or(text);
                    let value = Value::parse(text, scope).map_err(|message| format!("another value: {message}"));
                    value.map(|value| (Comparison::Equal(value), false))
                }
            },
            DeValue::Array(elements) if !elements.is_empty() => {
                let texts = elements.iter().map(|element| element.get_ref().as_str());
                let texts: Option<Vec<_>> = texts.collect();
                let texts = texts.ok_or_else(|| "texts in quotes, such as [\"a\", \"b\"]".to_owned())?;
                Ok((Comparison::OneOf(TextSet::new(texts)), false))
            }
            _ => Err("a text that it must be, [\"several\", \"texts\"], \"~REGEX\", true (it is there), false (it is not), or { not = … }".to_owned()),
        })
    }

    /// The one action that is written, with the routes that it jumps to by name.
    fn action(
        &mut self,
        section: &Section<'t>,
        rule_scope: &RuleScope<'_>,
    ) -> Option<(Action, Vec<(RouteName, usize)>)> {
        let written: Vec<_> = ACTIONS.iter().filter(|action| section.has(action)).collect();
        if let [first, second, ..] = written.as_slice() {
            let message = format!(
                "{} is beside {first}, and only one of them can respond: remove one of the two",
                section.name_of(second)
            );
            self.problem(section.key_offset(second), message);
        }
        let mut jumps = Vec::new();
        let mut actions = Vec::new();
        for key in written {
            let action = match *key {
                "pool" => self.pool_of(section, "pool", rule_scope).map(Action::Pool),
                "pool_from" => {
                    let inner = self.section(section, "pool_from");
                    self.pool_from(&inner, rule_scope).map(Action::PoolFrom)
                }
                "respond" => {
                    let inner = self.section(section, "respond");
                    self.respond(&inner, rule_scope).map(Action::Respond)
                }
                "redirect" => self.redirect(section, rule_scope).map(Action::Redirect),
                _ => self.jump(section.setting("jump")?, &rule_scope.scope(Phase::Route)).map(|to| {
                    if let JumpTo::Route(name) = &to {
                        jumps.push((name.clone(), section.offset("jump")));
                    }
                    Action::Jump(to)
                }),
            };
            actions.push(action);
        }
        let is_one = actions.len() == 1;
        actions.pop().flatten().filter(|_| is_one).map(|action| (action, jumps))
    }

    fn pool_of(&mut self, section: &Section<'t>, key: &str, rule_scope: &RuleScope<'_>) -> Option<PoolName> {
        let pool = self.required(section, key, values::pool_name)?;
        self.known_pool(section, key, &pool, rule_scope.around.pools).then_some(pool)
    }

    fn pool_from(&mut self, section: &Section<'t>, rule_scope: &RuleScope<'_>) -> Option<PoolFrom> {
        let value = self.required_value(section, "value", rule_scope, Phase::Route);
        if !section.has("pools") {
            self.missing(section, "pools");
            return None;
        }
        let pools = self.each(section, "pools", values::pool_name)?;
        if pools.is_empty() {
            self.problem(
                section.offset("pools"),
                format!("{} is empty: write the pools that it may be", section.name_of("pools")),
            );
            return None;
        }
        let all = pools.iter().map(|pool| self.known_pool(section, "pools", pool, rule_scope.around.pools));
        let all: Vec<_> = all.collect();
        let (value, is_sound) = (value?, all.into_iter().all(|is_known| is_known));
        is_sound.then_some(PoolFrom { value, pools })
    }

    fn respond(&mut self, section: &Section<'t>, rule_scope: &RuleScope<'_>) -> Option<Respond> {
        let status = self.optional(section, "status", values::whole(200, 599));
        let body = self.optional_value(section, "body", rule_scope, Phase::Route);
        let content_type = self.optional_value(section, "content_type", rule_scope, Phase::Route);
        let (status, body) = (status?.unwrap_or(200), body?);
        if status == 444 {
            let message = format!(
                "{} is 444, by which nginx closes the connection without an answer, and that is not implemented yet: write 403, or another status",
                section.name_of("status")
            );
            self.problem(section.offset("status"), message);
            return None;
        }
        if body.is_some() && matches!(status, 204 | 205 | 304) {
            let message = format!(
                "{} has no effect with status {status}, which has no body: remove it, or write another status",
                section.name_of("body")
            );
            self.problem(section.key_offset("body"), message);
            return None;
        }
        let content_type = content_type?.unwrap_or_else(|| Value::constant(super::rules::PLAIN_TEXT));
        Some(Respond { status, body, content_type })
    }

    /// Refuses statuses of redirects in `respond`.
    fn check_respond(&mut self, section: &Section<'t>, respond: &Respond, rules: &Rules) {
        let leads = rules.response_headers.iter().any(|change| change.name.eq_ignore_ascii_case("location"));
        if values::is_redirect(respond.status) && !leads {
            let (name, status) = (section.name_of("respond"), respond.status);
            let message = format!(
                "{name} has the status {status} and no Location: write redirect = {{ to = \"/path\", status = {status} }}"
            );
            self.problem(section.offset("respond"), message);
        }
    }

    fn redirect(&mut self, section: &Section<'t>, rule_scope: &RuleScope<'_>) -> Option<Redirect> {
        const KEY: &str = "redirect";
        let value = section.written(KEY)?;
        let (to, status) = match value.get_ref() {
            DeValue::Table(_) => {
                let inner = self.section(section, KEY);
                let to = self.required_value(&inner, "to", rule_scope, Phase::Route);
                if let Some(to) = &to {
                    self.check_redirect(inner.setting("to")?, to, rule_scope)?;
                }
                let status = self.optional(&inner, "status", values::redirect_status);
                (to?, status?)
            }
            _ => {
                let setting = section.within(KEY, value);
                let to = self.value_in(setting, &rule_scope.scope(Phase::Route))?;
                self.check_redirect(setting, &to, rule_scope)?;
                (to, None)
            }
        };
        Some(Redirect { to, status: status.unwrap_or(302) })
    }

    /// Refuses a redirect whose host a request can choose.
    pub(super) fn check_redirect(
        &mut self,
        setting: Setting<'_, 't>,
        to: &Value,
        rule_scope: &RuleScope<'_>,
    ) -> Option<()> {
        let Err(why) = is_safe(to, rule_scope) else { return Some(()) };
        self.problem(setting.offset(), format!("{}: {why}", setting.name()));
        None
    }

    /// A path, or the name of a route.
    pub(super) fn jump(&mut self, setting: Setting<'_, 't>, scope: &Scope<'_>) -> Option<JumpTo> {
        let Setting { section, key, value } = setting;
        let is_path = value.get_ref().as_str().is_some_and(|text| text.starts_with(['/', '$']));
        match is_path {
            true => self.value_in(setting, scope).map(JumpTo::Path),
            false => {
                let name = |value: &DeValue<'_>| {
                    values::route_name(value)
                        .map_err(|_| "a path that begins with \"/\", or the name of a route of this site".to_owned())
                };
                let name = self.read_at(section, key, value, name)?;
                Some(JumpTo::Route(RouteName::new(&name)))
            }
        }
    }
}

fn overlap(a: &SiteConfig, b: &SiteConfig) -> bool {
    a.listeners.is_empty()
        || b.listeners.is_empty()
        || a.listeners.iter().any(|listener| b.listeners.contains(listener))
}

/// Like [`Value::check_location`], and also refuses a host that is empty for every request.
fn is_safe(to: &Value, rule_scope: &RuleScope<'_>) -> Result<(), String> {
    to.check_location(rule_scope.around.tables)?;
    if !rule_scope.has_server_name && names_server(to, rule_scope.around.tables) {
        return Err(format!(
            "in \"{}\", $server_name is empty, since the site's first host is \"\" or a regex; write $host, or a name \
             before the site's other hosts",
            to.text()
        ));
    }
    Ok(())
}

/// Whether a value contains `$server_name`, directly or by its tables.
fn names_server(value: &Value, tables: &Tables) -> bool {
    value.variables().any(|variable| match variable {
        Variable::ServerName => true,
        Variable::Table(id) => {
            tables.get(*id).is_some_and(|table| table.results().any(|result| names_server(result, tables)))
        }
        _ => false,
    })
}
