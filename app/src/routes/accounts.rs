//! Signing up, logging in and out, and the login history of a member.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{AppendHeaders, Html, IntoResponse, Redirect, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{Form, Params, local};
use crate::App;
use crate::attempts::{Attempt, Refused};
use crate::data::{Cursor, Login, Millis, Signup, User, UserKey, UserName};
use crate::error::{Error, StoreError};
use crate::layers::Client;
use crate::metrics::LoginResult;
use crate::page::{Field, Input, Page, alert, in_query, moment};
use crate::passwords::Password;
use crate::recent_writes::RecentWrites;
use crate::sessions::{self, Draft, LoggingIn, Member, Session, Visitor};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Credentials {
    name: String,
    password: Password,
    /// Where to go afterwards.
    next: String,
    /// A post that was being written when the session ended.
    draft_text: String,
    draft_alt: String,
}

impl Credentials {
    fn draft(&self) -> Draft {
        Draft { text: self.draft_text.clone(), alt: self.draft_alt.clone() }
    }

    /// Why the draft cannot be kept, if it cannot.
    fn draft_complaint(&self) -> Option<String> {
        let length = self.draft().length();
        (length > Draft::MAX_BYTES).then(|| {
            format!(
                "Your post and the description of its picture are {length} bytes; at most {} can be kept while you log in. \
                 Shorten them, or copy them to a safe place and leave them empty here.",
                Draft::MAX_BYTES
            )
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Next {
    next: String,
}

/// The errors of a form, by field.
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
    entering: LoggingIn,
    client: Client,
    headers: HeaderMap,
    Form(filled): Form<Credentials>,
) -> Result<Response, Error> {
    let refuse =
        |status, complaints| Ok((status, signup_page(&app, &Visitor::default(), &filled, &complaints)).into_response());
    let name = UserName::chosen(&filled.name);
    let password = check_password(&filled.password);
    let name = match (name, password) {
        (Ok(name), Ok(())) if filled.draft_complaint().is_none() => name,
        (name, password) => {
            let complaints = Complaints { name: name.err().map(|bad| bad.to_string()), password: password.err() };
            return refuse(StatusCode::UNPROCESSABLE_ENTITY, complaints);
        }
    };
    let attempt = match Attempt::sign_up(&*app.sessions, app.settings.attempts, client.address, &headers).await? {
        Ok(attempt) => attempt,
        Err(refused) => {
            let (seconds, minutes) = refused.wait();
            let complaint = format!("Too many accounts were asked for from your network. Try again in {minutes} min.");
            let complaints = Complaints { name: Some(complaint), ..Complaints::default() };
            let page = signup_page(&app, &Visitor::default(), &filled, &complaints);
            return Ok((StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds)], page).into_response());
        }
    };
    let user = match new_account(&app, name.clone(), &filled.password).await {
        Ok(Some(user)) => user,
        Ok(None) => {
            let taken = format!("{name} is taken. Choose another name, or log in if it is yours.");
            return refuse(StatusCode::CONFLICT, Complaints { name: Some(taken), ..Complaints::default() });
        }
        Err(error) => {
            attempt.withdraw(&*app.sessions).await;
            return Err(error);
        }
    };
    let member = Member::new(user.name.clone(), user.name.key());
    let device = attempt.remember(&*app.sessions, &member.key(), client.tls).await;
    match enter(&app, &entering, &member, client, &filled, device).await {
        Ok(response) => Ok(response),
        Err(error) => {
            tracing::warn!(%error, "a new member could not be logged in");
            let complaint = "Your account is made, but you could not be logged in just now. Try it in a few seconds.";
            Ok(login_page(&app, &Visitor::default(), &filled, Some(complaint)).into_response())
        }
    }
}

/// Creates an account; `None` if the name is taken, which is checked before the password is hashed.
async fn new_account(app: &App, name: UserName, password: &Password) -> Result<Option<User>, Error> {
    if account(app, &name).await?.is_some() {
        return Ok(None);
    }
    let password_hash = app.passwords.hash(password.clone()).await?;
    let user = User { id: Uuid::now_v7(), password_hash, created: Millis::now(), name };
    Ok(match app.data.create_user(&user).await? {
        Signup::Created => Some(user),
        Signup::Taken => None,
    })
}

/// The account with a name, and its key.
async fn account(app: &App, name: &UserName) -> Result<Option<(User, UserKey)>, StoreError> {
    let (key, former) = (name.key(), name.former_key());
    let found = app.data.user(&key).await?.map(|user| (user, key.clone()));
    if former == key {
        return Ok(found);
    }
    // Looked up even if the first was found: the response time must not reveal which names exist.
    Ok(app.data.user(&former).await?.map(|user| (user, former)).or(found))
}

fn check_password(password: &Password) -> Result<(), String> {
    match password.length() {
        0..Password::MIN_CHARS => Err(format!("A password has at least {} characters.", Password::MIN_CHARS)),
        Password::MIN_CHARS..=Password::MAX_CHARS => Ok(()),
        _ => Err(format!("A password has at most {} characters.", Password::MAX_CHARS)),
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
    entering: LoggingIn,
    client: Client,
    headers: HeaderMap,
    Form(filled): Form<Credentials>,
) -> Result<Response, Error> {
    if filled.draft_complaint().is_some() {
        let page = login_page(&app, &Visitor::default(), &filled, Some("Not yet: your post is too long, see below."));
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    let name = filled.name.parse::<UserName>().ok();
    let (key, limits) = (name.as_ref().map(UserName::key), app.settings.attempts);
    let attempt = match Attempt::begin(&*app.sessions, limits, key.as_ref(), client.address, &headers).await? {
        Ok(attempt) => attempt,
        Err(refused) => {
            app.metrics.login(LoginResult::Refused);
            return Ok(too_many(&app, &filled, refused));
        }
    };
    let (account, right) = match judge(&app, name.as_ref(), &filled.password).await {
        Ok(judged) => judged,
        Err(error) => {
            attempt.withdraw(&*app.sessions).await;
            return Err(error);
        }
    };
    match account {
        Some((user, key)) if right => {
            app.metrics.login(LoginResult::Succeeded);
            let device = attempt.succeeded(&*app.sessions, &user.name.key(), client.tls).await;
            return Ok(enter(&app, &entering, &Member::new(user.name, key), client, &filled, device).await?);
        }
        Some((_, key)) => {
            app.metrics.login(LoginResult::WrongPassword);
            // Not awaited: the response time must not reveal which names exist.
            drop(app.history.write(record(&app, key, client, false)));
        }
        None => app.metrics.login(LoginResult::UnknownName),
    }
    // The same message for both, so that it does not reveal which names exist.
    let complaint = "That name and password do not belong together.";
    Ok(unauthorised(login_page(&app, &Visitor::default(), &filled, Some(complaint))))
}

/// The account with a name, and whether the password is correct.
async fn judge(
    app: &App,
    name: Option<&UserName>,
    password: &Password,
) -> Result<(Option<(User, UserKey)>, bool), Error> {
    // No name or password is that long: the attempt fails without any work.
    let fit = check_password(password).is_ok();
    let account = match name {
        Some(name) => account(app, name).await?,
        None => None,
    };
    let hash = account.as_ref().map(|(user, _)| user.password_hash.clone());
    let password = if fit { password.clone() } else { Password::default() };
    let right = app.passwords.verify(password, hash).await? && fit;
    Ok((account, right))
}

/// The page for too many attempts; the same whether or not the name exists.
fn too_many(app: &App, filled: &Credentials, refused: Refused) -> Response {
    let (seconds, minutes) = refused.wait();
    let complaint = format!(
        "Too many attempts have failed, so this one was not looked at. Try again in {minutes} min, or from a browser in \
         which you have logged in before."
    );
    let page = login_page(app, &Visitor::default(), filled, Some(&complaint));
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds)], page).into_response()
}

/// The login page with the draft.
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
    // The standard requires a challenge; browsers ignore this one and show the page.
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Form realm=\"/accounts/login/\""));
    response
}

fn record(app: &App, user: UserKey, client: Client, succeeded: bool) -> Login {
    Login {
        id: Uuid::now_v7(),
        user,
        at: Millis::now(),
        address: client.address,
        instance: app.instance.name.clone(),
        succeeded,
    }
}

/// Logs in a member whose password was correct.
async fn enter(
    app: &App,
    entering: &LoggingIn,
    member: &Member,
    client: Client,
    filled: &Credentials,
    device: Option<HeaderValue>,
) -> Result<Response, StoreError> {
    let login = record(app, member.key(), client, true);
    let logged_in = RecentWrites::Logins.with(login.cursor(), Vec::new(), client.tls);
    app.history.write_now(login).await;
    entering.sign_in(member, &filled.draft()).await?;
    let cookies = [device, Some(logged_in)].into_iter().flatten().map(|cookie| (header::SET_COOKIE, cookie));
    Ok((AppendHeaders(cookies), Redirect::to(local(&filled.next))).into_response())
}

pub async fn logout(State(app): State<Arc<App>>, session: Session) -> Result<Redirect, Error> {
    sessions::sign_out(&*app.sessions, &session).await?;
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
    headers: HeaderMap,
    Params(After { after }): Params<After>,
) -> Result<Html<String>, Error> {
    let after: Option<Cursor> = after.parse().ok();
    let mut logins = app.data.logins(&member.key(), after, HISTORY + 1, &RecentWrites::Logins.read(&headers)).await?;
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
                p.more { a.button href={ "/accounts/logs/?after=" (last.cursor()) } { "Earlier logins" } }
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
    let is_wrong = complaints.name.is_some() || complaints.password.is_some() || filled.draft_complaint().is_some();
    let content = html! {
        section.card.narrow {
            h1 { "Sign up" }
            @if is_wrong {
                (alert("Not yet: see what is marked below. The password has to be typed again."))
            }
            form method="post" action="/accounts/signup/" {
                (carried(filled))
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
    let title = if is_wrong { "Error: sign up" } else { "Sign up" };
    Page { instance: &app.instance, visitor, title, here: "/accounts/signup/", content }.render()
}

fn login_page(app: &App, visitor: &Visitor, filled: &Credentials, complaint: Option<&str>) -> Html<String> {
    let content = html! {
        section.card.narrow {
            h1 { "Log in" }
            @if let Some(complaint) = complaint { (alert(complaint)) }
            form method="post" action="/accounts/login/" {
                (carried(filled))
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

/// Hidden fields that keep the draft through the login; shown if the draft is too long to be kept.
fn carried(filled: &Credentials) -> Markup {
    let complaint = filled.draft_complaint();
    let draft = [("draft_text", &filled.draft_text), ("draft_alt", &filled.draft_alt)];
    html! {
        @if !filled.next.is_empty() { input type="hidden" name="next" value=(filled.next); }
        @if complaint.is_some() {
            (Field {
                name: "draft_text", label: "Your post", hint: None, error: complaint.as_deref(),
                input: Input::Area { value: &filled.draft_text, longest: Draft::MAX_BYTES, required: false },
            }.render())
            (Field {
                name: "draft_alt", label: "What the picture shows", hint: None, error: None,
                input: Input::Text { value: &filled.draft_alt, longest: Draft::MAX_BYTES },
            }.render())
        } @else {
            @for (name, value) in draft {
                @if !value.is_empty() { input type="hidden" name=(name) value=(value); }
            }
        }
    }
}

/// The path of the other form, with the same destination.
fn with_next(path: &str, filled: &Credentials) -> String {
    if filled.next.is_empty() { path.to_owned() } else { format!("{path}?next={}", in_query(&filled.next)) }
}

/// Logins per page.
const HISTORY: usize = 25;
