//! The page that shows which instance answers, and its short form for programs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{Html, IntoResponse};
use maud::{Markup, html};
use serde::Serialize;

use crate::App;
use crate::config::Colour;
use crate::page::Page;
use crate::sessions::{Session, Visitor, Visits};

#[derive(Serialize)]
struct Hello<'h> {
    message: &'static str,
    hostname: &'h str,
}

pub async fn hello(State(app): State<Arc<App>>) -> impl IntoResponse {
    Json(Hello { message: "Hello from Evenkeel", hostname: &app.instance.name }).into_response()
}

pub async fn show(State(app): State<Arc<App>>, session: Session, mut visitor: Visitor) -> Html<String> {
    let visits = match Visits::count(&session, &app.instance.name).await {
        Ok(visits) => Some(visits),
        Err(error) => {
            tracing::warn!(%error, "visit could not be counted, the page is shown without it");
            visitor.sessions_out_of_reach = true;
            None
        }
    };
    let content = html! {
        section.hero {
            h1 { "This page was answered by " strong { (app.instance.name) } }
            a.button href="/" { "Ask again" }
        }
        div.grid {
            @if let Some(visits) = &visits { (session_card(visits, &visitor)) }
            (instance_card(&app))
        }
    };
    Page { instance: &app.instance, visitor: &visitor, title: &app.instance.name, here: "/", content }.render()
}

fn session_card(visits: &Visits, visitor: &Visitor) -> Markup {
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for name in &visits.answered {
        *shares.entry(name).or_default() += 1;
    }
    let remembered = visits.answered.len().max(1);
    html! {
        section.card aria-labelledby="session" {
            h2 #session { "Your session" }
            dl.figures {
                div { dt { "Visits" } dd { (visits.count) } }
                div { dt { "You are" } dd { @if let Some(member) = &visitor.member { (member.name) } @else { "a visitor" } } }
            }
            h2 { "Who answered your last visits" }
            ul.shares {
                @for (name, count) in &shares {
                    li class=(Colour::of(name).class()) {
                        b { (name) }
                        svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                            rect height="8" width=(100 * count / remembered) {}
                        }
                        span { (count) }
                    }
                }
            }
            p.hint #order { "The latest first:" }
            ol.answers aria-describedby="order" {
                @for name in &visits.answered { li class=(Colour::of(name).class()) { (name) } }
            }
        }
    }
}

fn instance_card(app: &App) -> Markup {
    html! {
        section.card aria-labelledby="instance" {
            h2 #instance { "Instance " (app.instance.name) }
            dl.figures {
                div { dt { "Requests answered" } dd { (app.metrics.total()) } }
                div { dt { "In flight" } dd { (app.metrics.requests_in_flight.get()) } }
                div { dt { "Connections" } dd { (app.metrics.connections.get()) } }
                div { dt { "Running for" } dd { (format_duration(app.started.elapsed())) } }
            }
            p.hint {
                "Reload to see who answers next. Sessions, posts and pictures are shared: log in here, and you are "
                "logged in on every instance, even when this one is gone."
            }
            p.hint { "For programs: " a href="/api/hello/" { code { "/api/hello/" } } }
        }
    }
}

/// A time span in its largest unit.
fn format_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_in_their_largest_unit() {
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_600, "1 h"), (172_800, "2 days")] {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
    }
}
