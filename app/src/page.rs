//! The common parts of pages: frame, form fields, style sheet. Markup escapes inserted text.

use std::sync::LazyLock;

use axum::response::Html;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::Instance;
use crate::data::Millis;
use crate::sessions::Visitor;

/// A page with its frame.
pub struct Page<'p> {
    pub instance: &'p Instance,
    pub visitor: &'p Visitor,
    pub title: &'p str,
    /// Path of the navigation entry that is this page, if any.
    pub here: &'p str,
    pub content: Markup,
}

impl Page<'_> {
    pub fn render(self) -> Html<String> {
        let markup = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " \u{b7} Evenkeel" }
                    link rel="icon" href=(icon_path(self.instance)) type="image/svg+xml";
                    link rel="stylesheet" href=(STYLE.path);
                }
                body class=(self.instance.tint.class()) {
                    a.skip href="#main" { "Skip to content" }
                    header.top {
                        div.bar {
                            a.brand href="/" { (LOGO) span { "Evenkeel" } }
                            (navigation(self.visitor, self.here))
                        }
                    }
                    @if self.visitor.sessions_out_of_reach {
                        p.banner role="status" {
                            "Sessions cannot be reached just now, so this page does not know who you are. Nothing is lost: try again in a moment."
                        }
                    }
                    main #main tabindex="-1" { (self.content) }
                    footer.bottom {
                        p { "Answered by " strong.badge { (self.instance.name) } }
                    }
                }
            }
        };
        Html(markup.into_string())
    }
}

fn navigation(visitor: &Visitor, here: &str) -> Markup {
    let entry = |path: &str, text: &str| {
        html! { a href=(path) aria-current=[(path == here).then_some("page")] { (text) } }
    };
    html! {
        nav aria-label="Main" {
            (entry("/", "Home"))
            (entry("/posts/", "Posts"))
            @if let Some(member) = &visitor.member {
                (entry("/accounts/logs/", "Logins"))
                form.inline method="post" action="/accounts/logout/" {
                    button.link type="submit" { "Log out" span.who { " " (member.name) } }
                }
            } @else {
                (entry("/accounts/login/", "Log in"))
                (entry("/accounts/signup/", "Sign up"))
            }
        }
    }
}

/// The page of a refusal. `number` is the request id, for the log.
pub fn refusal(instance: &Instance, heading: &str, sentence: &str, number: Option<&str>) -> Html<String> {
    let content = html! {
        section.card.narrow {
            h1 { (heading) }
            p { (sentence) }
            @if let Some(number) = number {
                p.hint { "Request " code { (number) } }
            }
            p { a.button href="/" { "Go to the home page" } }
        }
    };
    Page { instance, visitor: &Visitor::default(), title: heading, here: "", content }.render()
}

/// A labelled field. An error is linked to it, so that screen readers read it together with the field.
pub struct Field<'f> {
    pub name: &'f str,
    pub label: &'f str,
    pub hint: Option<&'f str>,
    pub error: Option<&'f str>,
    pub input: Input<'f>,
}

pub enum Input<'f> {
    Name { value: &'f str, autofocus: bool },
    Password { autocomplete: &'f str },
    Text { value: &'f str, longest: usize },
    Area { value: &'f str, longest: usize, required: bool },
    Picture { accept: &'f str },
}

impl Field<'_> {
    pub fn render(&self) -> Markup {
        let (hint_id, error_id) = (format!("{}-hint", self.name), format!("{}-error", self.name));
        let described: Vec<&str> = [self.error.map(|_| error_id.as_str()), self.hint.map(|_| hint_id.as_str())]
            .into_iter()
            .flatten()
            .collect();
        let described = (!described.is_empty()).then(|| described.join(" "));
        let invalid = self.error.map(|_| "true");
        let name = self.name;
        html! {
            div.field {
                label for=(name) { (self.label) }
                @if let Some(error) = self.error { p.error id=(error_id) { (error) } }
                @match &self.input {
                    Input::Name { value, autofocus } => {
                        input id=(name) name=(name) type="text" value=(value) required autocomplete="username"
                            autocapitalize="none" spellcheck="false" maxlength="64" autofocus[*autofocus]
                            aria-describedby=[described] aria-invalid=[invalid];
                    }
                    Input::Password { autocomplete } => {
                        input id=(name) name=(name) type="password" required autocomplete=(autocomplete)
                            maxlength="256" aria-describedby=[described] aria-invalid=[invalid];
                    }
                    Input::Text { value, longest } => {
                        input id=(name) name=(name) type="text" value=(value) maxlength=(longest)
                            aria-describedby=[described] aria-invalid=[invalid];
                    }
                    Input::Area { value, longest, required } => {
                        // The parser drops a newline right after the tag: adding one preserves one in the text.
                        textarea id=(name) name=(name) rows="4" maxlength=(longest) required[*required]
                            aria-describedby=[described] aria-invalid=[invalid] { "\n" (value) }
                    }
                    Input::Picture { accept } => {
                        input id=(name) name=(name) type="file" accept=(accept)
                            aria-describedby=[described] aria-invalid=[invalid];
                    }
                }
                @if let Some(hint) = self.hint { p.hint id=(hint_id) { (hint) } }
            }
        }
    }
}

/// A problem with a form as a whole, read out when the page opens.
pub fn alert(text: &str) -> Markup {
    html! { p.alert role="alert" { (text) } }
}

/// A time, readable for people and programs.
pub fn moment(at: Millis) -> Markup {
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let people = format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute]:[second] UTC");
    let programs = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    html! {
        time datetime=(time.format(programs).unwrap_or_default()) { (time.format(people).unwrap_or_default()) }
    }
}

/// Escapes a value in a query string.
pub fn in_query(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A file embedded in the program, under a name that changes with its content.
pub struct Asset {
    pub path: String,
    pub content: &'static str,
}

pub static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    let content = include_str!("page/style.css");
    let digest: String = Sha256::digest(content).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Asset { path: format!("/static/style-{digest}.css"), content }
});

/// Path of the icon in an instance's colour.
pub fn icon_path(instance: &Instance) -> String {
    format!("/static/icon-{}.svg", instance.tint.number())
}

/// The icon in a colour.
pub fn icon(colour: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="{colour}"/><path d="M16 6v13M16 6l8 11h-8zM6 21h20c-1.5 3.5-4.5 5-10 5s-8.5-1.5-10-5z" fill="#fff" stroke="#fff" stroke-width="1.5" stroke-linejoin="round"/></svg>"##
    )
}

const LOGO: PreEscaped<&str> = PreEscaped(
    r#"<svg class="logo" viewBox="0 0 32 32" aria-hidden="true" focusable="false"><rect width="32" height="32" rx="8"/><path d="M16 6v13M16 6l8 11h-8zM6 21h20c-1.5 3.5-4.5 5-10 5s-8.5-1.5-10-5z"/></svg>"#,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_text_is_escaped() {
        let field = Field {
            name: "text",
            label: "Text",
            hint: None,
            error: Some("<b>"),
            input: Input::Area { value: "</textarea><script>", longest: 9, required: true },
        };
        let markup = field.render().into_string();
        assert!(!markup.contains("<script>") && !markup.contains("<b>"), "{markup}");
    }

    #[test]
    fn an_error_is_tied_to_its_field() {
        let field = Field {
            name: "name",
            label: "Name",
            hint: Some("hint"),
            error: Some("wrong"),
            input: Input::Name { value: "x", autofocus: false },
        };
        let markup = field.render().into_string();
        assert!(markup.contains(r#"aria-describedby="name-error name-hint""#), "{markup}");
        assert!(markup.contains(r#"aria-invalid="true""#) && markup.contains(r#"<label for="name">"#));
    }

    #[test]
    fn times_are_readable() {
        let markup = moment(Millis(1_763_697_600_123)).into_string();
        assert_eq!(markup, r#"<time datetime="2025-11-21T04:00:00Z">21 Nov 2025, 04:00:00 UTC</time>"#);
    }

    #[test]
    fn query_values_cannot_leave_their_parameter() {
        assert_eq!(in_query("/posts/?after=1&x=\r\n\"é"), "/posts/%3Fafter%3D1%26x%3D%0D%0A%22%C3%A9");
    }
}
