//! Signing up, logging in and out, and one's own login history.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
};
use http::{HeaderValue, StatusCode, header};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{Form, Params, local};
use crate::{
    App,
    data::{Cursor, Login, Millis, Signup, User, UserName},
    error::Error,
    layers::Client,
    metrics::LoginResult,
    page::{Field, Input, Page, alert, in_query, moment},
    passwords::Password,
    sessions::{self, Draft, Member, Session, Visitor},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Credentials {
    name: String,
    password: Password,
    /// Where to go afterwards.
    next: String,
    /// A post that was being written when the session had ended.
    draft_text: String,
    draft_alt: String,
}

impl Credentials {
    fn draft(&self) -> Draft {
        Draft { text: self.draft_text.clone(), alt: self.draft_alt.clone() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Next {
    next: String,
}

/// What is wrong with a form, field by field.
#[derive(Debug, Default)]
struct Complaints {
    name: Option<String>,
    password: Option<String>,
}

pub async fn signup_form(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Params(Next { next }): Params<Next>,
) -> Response {
    let filled = Credentials { next, ..Credentials::default() };
    if visitor.member.is_some() {
        return Redirect::to(local(&filled.next)).into_response();
    }
    signup_page(&app, &visitor, &filled, &Complaints::default()).into_response()
}

pub async fn signup(
    State(app): State<Arc<App>>,
    session: Session,
    client: Client,
    Form(filled): Form<Credentials>,
) -> Result<Response, Error> {
    let refuse =
        |status, complaints| Ok((status, signup_page(&app, &Visitor::default(), &filled, &complaints)).into_response());
    let name = filled.name.parse::<UserName>();
    let password = check_password(&filled.password);
    let name = match (name, password) {
        (Ok(name), Ok(())) => name,
        (name, password) => {
            let complaints = Complaints { name: name.err().map(|bad| bad.to_string()), password: password.err() };
            return refuse(StatusCode::UNPROCESSABLE_ENTITY, complaints);
        }
    };
    let user = User {
        id: Uuid::now_v7(),
        password_hash: app.passwords.hash(filled.password.clone()).await?,
        created: Millis::now(),
        name,
    };
    match app.data.create_user(&user).await? {
        Signup::Created => {
            record(&app, &user, client, true).await?;
            enter(&session, &user, &filled).await
        }
        Signup::Taken => {
            let taken = format!("{} is taken. Choose another name, or log in if it is yours.", user.name);
            refuse(StatusCode::CONFLICT, Complaints { name: Some(taken), ..Complaints::default() })
        }
    }
}

fn check_password(password: &Password) -> Result<(), String> {
    match password.length() {
        0..Password::SHORTEST => Err(format!("A password has at least {} characters.", Password::SHORTEST)),
        Password::SHORTEST..=Password::LONGEST => Ok(()),
        _ => Err(format!("A password has at most {} characters.", Password::LONGEST)),
    }
}

pub async fn login_form(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Params(Next { next }): Params<Next>,
) -> Response {
    let filled = Credentials { next, ..Credentials::default() };
    if visitor.member.is_some() {
        return Redirect::to(local(&filled.next)).into_response();
    }
    login_page(&app, &visitor, &filled, None).into_response()
}

pub async fn login(
    State(app): State<Arc<App>>,
    session: Session,
    client: Client,
    Form(filled): Form<Credentials>,
) -> Result<Response, Error> {
    // No name is longer and no password either: such an attempt is wrong without any work.
    let fit = check_password(&filled.password).is_ok();
    let user = match filled.name.parse::<UserName>() {
        Ok(name) => app.data.user(&name.key()).await?,
        Err(_) => None,
    };
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let password = if fit { filled.password.clone() } else { Password::default() };
    let right = app.passwords.verify(password, hash).await? && fit;
    match user {
        Some(user) if right => {
            app.metrics.login(LoginResult::Succeeded);
            record(&app, &user, client, true).await?;
            return enter(&session, &user, &filled).await;
        }
        Some(user) => {
            app.metrics.login(LoginResult::WrongPassword);
            record(&app, &user, client, false).await?;
        }
        None => app.metrics.login(LoginResult::UnknownName),
    }
    // The same words for both, so that they do not tell which names exist.
    let complaint = "That name and password do not belong together.";
    Ok(unauthorised(login_page(&app, &Visitor::default(), &filled, Some(complaint))))
}

/// The page to log in again, with what was being written.
pub fn session_ended(app: &App, draft: &Draft) -> Response {
    let filled = Credentials {
        next: "/posts/".into(),
        draft_text: draft.text.clone(),
        draft_alt: draft.alt.clone(),
        ..Credentials::default()
    };
    let complaint = "You are not logged in, or no longer. Log in, and your post is waiting for you; \
                     only a picture has to be chosen again.";
    unauthorised(login_page(app, &Visitor::default(), &filled, Some(complaint)))
}

fn unauthorised(page: Html<String>) -> Response {
    let mut response = (StatusCode::UNAUTHORIZED, page).into_response();
    // The standard asks for a challenge; browsers ignore this one and show the page.
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Form realm=\"/accounts/login/\""));
    response
}

async fn record(app: &App, user: &User, client: Client, succeeded: bool) -> Result<(), Error> {
    let login = Login {
        id: Uuid::now_v7(),
        user: user.name.key(),
        at: Millis::now(),
        address: client.address,
        instance: app.instance.name.clone(),
        succeeded,
    };
    Ok(app.data.record_login(&login).await?)
}

async fn enter(session: &Session, user: &User, filled: &Credentials) -> Result<Response, Error> {
    sessions::sign_in(session, &Member { name: user.name.clone() }).await?;
    let draft = filled.draft();
    if !draft.is_empty() {
        draft.keep(session).await?;
    }
    Ok(Redirect::to(local(&filled.next)).into_response())
}

pub async fn logout(session: Session) -> Result<Redirect, Error> {
    sessions::sign_out(&session).await?;
    Ok(Redirect::to("/"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct After {
    after: String,
}

pub async fn history(
    State(app): State<Arc<App>>,
    member: Member,
    visitor: Visitor,
    Params(After { after }): Params<After>,
) -> Result<Html<String>, Error> {
    let after: Option<Cursor> = after.parse().ok();
    let mut logins = app.data.logins(&member.key(), after, HISTORY + 1).await?;
    let more = logins.len() > HISTORY;
    logins.truncate(HISTORY);
    let content = html! {
        section.card aria-labelledby="title" {
            h1 #title { "Your logins" }
            p { "Every attempt to log in as " strong { (member.name) } ", the latest first. If one that worked was not you, someone knows your password." }
            @if logins.is_empty() { p.empty { "No further logins." } }
            @else {
                table.history {
                    thead { tr { th scope="col" { "When" } th scope="col" { "Result" } th scope="col" { "From" } th scope="col" { "Instance" } } }
                    tbody { @for login in &logins { (row(login)) } }
                }
            }
        }
        @if more {
            @if let Some(last) = logins.last() {
                p.more { a.button href={ "/accounts/logs/?after=" (Cursor { at: last.at, id: last.id }) } { "Earlier logins" } }
            }
        }
    };
    Ok(Page { instance: &app.instance, visitor: &visitor, title: "Your logins", here: "/accounts/logs/", content }
        .render())
}

fn row(login: &Login) -> Markup {
    html! {
        tr {
            td data-label="When" { (moment(login.at)) }
            td data-label="Result" {
                @if login.succeeded { "Logged in" } @else { span.failed { "Wrong password" } }
            }
            td data-label="From" { (login.address) }
            td data-label="Instance" { (login.instance) }
        }
    }
}

fn signup_page(app: &App, visitor: &Visitor, filled: &Credentials, complaints: &Complaints) -> Html<String> {
    let content = html! {
        section.card.narrow {
            h1 { "Sign up" }
            @if complaints.name.is_some() || complaints.password.is_some() {
                (alert("Not yet: see what is marked below. The password has to be typed again."))
            }
            form method="post" action="/accounts/signup/" {
                (hidden(filled))
                (Field {
                    name: "name", label: "Name", error: complaints.name.as_deref(),
                    hint: Some("3 to 32 letters, digits, dots, dashes and underscores."),
                    input: Input::Name { value: &filled.name, autofocus: true },
                }.render())
                (Field {
                    name: "password", label: "Password", error: complaints.password.as_deref(),
                    hint: Some("At least 8 characters; a few words make a good one."),
                    input: Input::Password { autocomplete: "new-password" },
                }.render())
                button.main.wide type="submit" { "Sign up" }
            }
            p.hint { "Already here? " a href=(with_next("/accounts/login/", filled)) { "Log in" } "." }
        }
    };
    let title = if complaints.name.is_some() || complaints.password.is_some() { "Error: sign up" } else { "Sign up" };
    Page { instance: &app.instance, visitor, title, here: "/accounts/signup/", content }.render()
}

fn login_page(app: &App, visitor: &Visitor, filled: &Credentials, complaint: Option<&str>) -> Html<String> {
    let content = html! {
        section.card.narrow {
            h1 { "Log in" }
            @if let Some(complaint) = complaint { (alert(complaint)) }
            form method="post" action="/accounts/login/" {
                (hidden(filled))
                (Field {
                    name: "name", label: "Name", hint: None, error: None,
                    input: Input::Name { value: &filled.name, autofocus: true },
                }.render())
                (Field {
                    name: "password", label: "Password", hint: None, error: None,
                    input: Input::Password { autocomplete: "current-password" },
                }.render())
                button.main.wide type="submit" { "Log in" }
            }
            p.hint { "New here? " a href=(with_next("/accounts/signup/", filled)) { "Sign up" } "." }
        }
    };
    let title = if complaint.is_some() { "Error: log in" } else { "Log in" };
    Page { instance: &app.instance, visitor, title, here: "/accounts/login/", content }.render()
}

/// What travels with a form unseen, so that nothing is lost on the way.
fn hidden(filled: &Credentials) -> Markup {
    html! {
        @for (name, value) in [("next", &filled.next), ("draft_text", &filled.draft_text), ("draft_alt", &filled.draft_alt)] {
            @if !value.is_empty() { input type="hidden" name=(name) value=(value); }
        }
    }
}

/// The other form, which goes on to the same page.
fn with_next(path: &str, filled: &Credentials) -> String {
    if filled.next.is_empty() { path.to_owned() } else { format!("{path}?next={}", in_query(&filled.next)) }
}

/// Logins on one page.
const HISTORY: usize = 25;
