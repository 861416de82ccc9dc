//! Posts: everybody's posts, and the form to write one.

mod parts;

use std::sync::Arc;

use axum::extract::multipart::{Field as Part, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use futures_util::TryStreamExt;
use http::{HeaderMap, StatusCode, header};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use self::parts::Progress;
use super::Params;
use super::accounts::session_ended;
use crate::App;
use crate::config::Settings;
use crate::data::{Cursor, Millis, Picture, Post, UserKey};
use crate::error::{Error, StoreError};
use crate::layers::Client;
use crate::media::{Media, MediaName, Refusal, Spool, StoredPicture};
use crate::page::{Field, Input, Page, alert, moment};
use crate::recent_writes::RecentWrites;
use crate::sessions::{Draft, Member, Session, Visitor};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct After {
    after: String,
}

pub async fn list(
    State(app): State<Arc<App>>,
    session: Session,
    visitor: Visitor,
    headers: HeaderMap,
    Params(After { after }): Params<After>,
) -> Result<Html<String>, Error> {
    let after: Option<Cursor> = after.parse().ok();
    let mut filled = Filled::new();
    if visitor.member.is_some() {
        match Draft::kept(&*app.sessions, &session).await {
            Ok(Some(draft)) => (filled.text, filled.alt) = (draft.text, draft.alt),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a draft could not be read, the form is shown without it"),
        }
    }
    page(&app, &visitor, &headers, &filled, after).await
}

/// A picture that is stored.
#[derive(Debug, Clone, Copy)]
enum Chosen {
    /// It was sent with this form.
    Now(StoredPicture),
    /// According to this form, it was sent with an earlier one; `None` if the name is malformed.
    Earlier(Option<MediaName>),
}

impl Chosen {
    fn name(self) -> Option<MediaName> {
        match self {
            Self::Now(kept) => Some(kept.name),
            Self::Earlier(name) => name,
        }
    }
}

/// The submitted form, and its errors.
#[derive(Debug)]
struct Filled {
    /// The post's id, chosen when the form was rendered: sent twice, the form creates one post.
    id: Uuid,
    text: String,
    alt: String,
    /// The picture, if it is stored already.
    chosen: Option<Chosen>,
    has_sent_picture: bool,
    wrong: Option<StatusCode>,
    text_error: Option<String>,
    alt_error: Option<String>,
    picture_error: Option<String>,
}

impl Filled {
    fn new() -> Self {
        Self {
            id: Uuid::now_v7(),
            text: String::new(),
            alt: String::new(),
            chosen: None,
            has_sent_picture: false,
            wrong: None,
            text_error: None,
            alt_error: None,
            picture_error: None,
        }
    }

    /// Records an error; the first status is kept.
    fn refuse(&mut self, status: StatusCode) {
        self.wrong.get_or_insert(status);
    }

    fn check_text(&mut self) {
        let length = self.text.chars().count();
        if self.text.trim().is_empty() {
            self.text_error = Some("Write something first.".into());
        } else if length > MAX_TEXT_CHARS {
            self.text_error = Some(format!("That is {length} characters; a post has at most {MAX_TEXT_CHARS}."));
        } else {
            self.text_error = control_character(&self.text);
        }
        self.alt_error = control_character(&self.alt);
        if self.text_error.is_some() || self.alt_error.is_some() {
            self.refuse(StatusCode::UNPROCESSABLE_ENTITY);
        }
    }

    /// The picture of the post. One that was sent with an earlier form is checked again, so that its size is correct.
    async fn picture(&mut self, app: &App, member: &UserKey) -> Result<Option<Picture>, Error> {
        let kept = match self.chosen {
            None => return Ok(None),
            Some(Chosen::Now(kept)) => kept,
            Some(Chosen::Earlier(name)) => {
                let media = match name {
                    Some(name) => app.media.open(&name, None).await?,
                    None => None,
                };
                let Some(Media { mut content, .. }) = media else {
                    self.chosen = None;
                    let sentence = "The picture that you had chosen no longer exists. Choose it again.";
                    self.picture_error = Some(sentence.into());
                    self.refuse(StatusCode::UNPROCESSABLE_ENTITY);
                    return Ok(None);
                };
                let mut spool = Spool::new(app.settings.pictures).await?;
                while let Some(chunk) = content.try_next().await.map_err(StoreError::unavailable)? {
                    spool.push(&chunk).await?;
                }
                match spool.keep(&*app.media, &app.picture_checks, member, app.settings.pictures).await? {
                    Ok(kept) => kept,
                    Err(refusal) => {
                        self.refuse_picture(app, refusal);
                        return Ok(None);
                    }
                }
            }
        };
        Ok(Some(Picture { name: kept.name, alt: self.alt.trim().to_owned(), width: kept.width, height: kept.height }))
    }

    fn refuse_picture(&mut self, app: &App, refusal: Refusal) {
        app.metrics.picture(refusal.as_str());
        let (status, sentence) = match refusal {
            Refusal::TooManyBytes => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "That picture is too large. Choose one of at most {}.",
                    format_bytes(app.settings.pictures.bytes)
                ),
            ),
            Refusal::TooManyPixels => (
                StatusCode::UNPROCESSABLE_ENTITY,
                format!(
                    "That picture has too many pixels. Choose one of at most {} megapixels.",
                    app.settings.pictures.pixels / 1_000_000,
                ),
            ),
            Refusal::OtherKind => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "That file is not a picture of a kind taken here. Choose a PNG, JPEG, GIF or WebP file.".into(),
            ),
            Refusal::Broken => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "That picture is damaged and cannot be shown. Choose another file, or save it anew.".into(),
            ),
            Refusal::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "There are many pictures to look at just now. Choose yours again in a few seconds.".into(),
            ),
        };
        self.picture_error = Some(sentence);
        self.refuse(status);
    }
}

pub async fn create(
    State(app): State<Arc<App>>,
    session: Session,
    visitor: Visitor,
    client: Client,
    request: Request,
) -> Result<Response, Error> {
    if visitor.sessions_out_of_reach {
        return Err(Error::Store(StoreError::unavailable("the session could not be read")));
    }
    let headers = request.headers().clone();
    let read = body_limit(&app.settings);
    // Pictures of visitors who are not logged in are read and dropped.
    let parsed = if visitor.member.is_some() { read } else { super::MAX_FORM_BYTES };
    let (request, progress) = parts::bound(request, parts::Limits { parsed, read });
    let form = Multipart::from_request(request, &app).await.map_err(|_| Error::UnsupportedBody)?;
    let member = visitor.member.as_ref().map(Member::key);
    let mut filled = receive(&app, form, &progress, member.as_ref()).await?;
    let Some(member) = &visitor.member else {
        return Ok(session_ended(&app, &Draft { text: filled.text, alt: filled.alt }));
    };
    filled.check_text();
    let picture = if filled.wrong.is_none() { filled.picture(&app, &member.key()).await? } else { None };
    if let Some(status) = filled.wrong {
        let page = page(&app, &visitor, &headers, &filled, None).await?;
        return Ok((status, page).into_response());
    }
    let post = Post {
        id: filled.id,
        created: Millis::now(),
        author: member.name.clone(),
        // Browsers send line breaks as two characters.
        text: filled.text.trim().replace("\r\n", "\n"),
        picture,
    };
    app.data.add_post(&post).await?;
    Draft::discard(&*app.sessions, &session).await;
    let posted = RecentWrites::Posts.with(post.cursor(), RecentWrites::Posts.read(&headers), client.tls);
    Ok(([(header::SET_COOKIE, posted)], Redirect::to("/posts/")).into_response())
}

/// An error for a text with control characters: not every store accepts them, and they are invisible.
fn control_character(text: &str) -> Option<String> {
    let found = text.chars().find(|c| c.is_control() && !"\t\n\r".contains(*c))?;
    Some(format!(
        "There is a control character in it (U+{:04X}), which cannot be shown. Take it out.",
        u32::from(found)
    ))
}

/// Reads the form, field by field as it arrives.
async fn receive(
    app: &App,
    mut form: Multipart,
    progress: &Progress,
    member: Option<&UserKey>,
) -> Result<Filled, Error> {
    let mut filled = Filled::new();
    loop {
        let mut part = match form.next_field().await {
            Ok(Some(part)) => part,
            Ok(None) => return Ok(filled),
            Err(error) => return cut_off(app, filled, progress, member, &error),
        };
        progress.made();
        let result = match part.name().unwrap_or_default() {
            "picture" => picture(app, &mut part, &mut filled, progress, member).await,
            name => {
                let name = name.to_owned();
                text(&mut part, progress).await.map(|value| value.map(|value| assign(&mut filled, &name, value)))
            }
        };
        if let Err(error) = result? {
            return cut_off(app, filled, progress, member, &error);
        }
    }
}

/// The response to a form that ended early: if it is too large, the form shows that; otherwise it is malformed.
fn cut_off(
    app: &App,
    mut filled: Filled,
    progress: &Progress,
    member: Option<&UserKey>,
    error: &MultipartError,
) -> Result<Filled, Error> {
    if member.is_none() && progress.is_over() {
        Ok(filled)
    } else if progress.is_over() || error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        filled.refuse_picture(app, Refusal::TooManyBytes);
        Ok(filled)
    } else {
        Err(Error::BadRequest)
    }
}

fn assign(filled: &mut Filled, name: &str, value: String) {
    match name {
        "id" => filled.id = value.parse().unwrap_or(filled.id),
        "text" => filled.text = value,
        "alt" => filled.alt = value.chars().take(MAX_ALT_CHARS).collect(),
        "kept" if !filled.has_sent_picture => filled.chosen = Some(Chosen::Earlier(value.parse().ok())),
        _ => {}
    }
}

async fn text(part: &mut Part<'_>, progress: &Progress) -> Result<Result<String, MultipartError>, Error> {
    let mut bytes = Vec::new();
    loop {
        let chunk = part.chunk().await;
        progress.made();
        match chunk {
            Ok(Some(chunk)) if bytes.len() + chunk.len() <= super::MAX_FORM_BYTES => bytes.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(Error::TooLarge),
            Ok(None) => return String::from_utf8(bytes).map(Ok).map_err(|_| Error::BadRequest),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Reads the picture of a form, at most one. A browser without a chosen file sends an empty one.
async fn picture(
    app: &App,
    part: &mut Part<'_>,
    filled: &mut Filled,
    progress: &Progress,
    member: Option<&UserKey>,
) -> Result<Result<(), MultipartError>, Error> {
    let limits = app.settings.pictures;
    let mut spool = None;
    loop {
        let chunk = part.chunk().await;
        progress.made();
        match chunk {
            Ok(Some(chunk)) if member.is_some() && !chunk.is_empty() => {
                if filled.has_sent_picture {
                    return Err(Error::BadRequest);
                }
                let spool = match &mut spool {
                    Some(spool) => spool,
                    None => spool.insert(Spool::new(limits).await?),
                };
                // Reads beyond the limit: a browser shows the response only after it has sent everything.
                spool.push(&chunk).await?;
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => return Ok(Err(error)),
        }
    }
    let (Some(spool), Some(member)) = (spool, member) else { return Ok(Ok(())) };
    filled.has_sent_picture = true;
    match spool.keep(&*app.media, &app.picture_checks, member, limits).await? {
        Ok(kept) => {
            app.metrics.picture("kept");
            filled.chosen = Some(Chosen::Now(kept));
        }
        Err(refusal) => filled.refuse_picture(app, refusal),
    }
    Ok(Ok(()))
}

async fn page(
    app: &App,
    visitor: &Visitor,
    headers: &HeaderMap,
    filled: &Filled,
    after: Option<Cursor>,
) -> Result<Html<String>, Error> {
    let mut posts = app.data.posts(after, PAGE + 1, &RecentWrites::Posts.read(headers)).await?;
    let more = posts.len() > PAGE;
    posts.truncate(PAGE);
    let content = html! {
        div.column {
            h1 { "Posts" }
            @if after.is_none() {
                @if visitor.member.is_some() { (form(app, filled)) } @else { (invitation()) }
            }
            @if posts.is_empty() {
                p.empty { @if after.is_none() { "Nothing here yet. Be the first to write." } @else { "No earlier posts." } }
            }
            ol.posts { @for post in &posts { (entry(post)) } }
            @if more {
                @if let Some(last) = posts.last() {
                    p.more { a.button href={ "/posts/?after=" (last.cursor()) } { "Earlier posts" } }
                }
            } @else if after.is_some() {
                p.more { a href="/posts/" { "Back to the latest" } }
            }
        }
    };
    let title = if filled.wrong.is_some() { "Error: posts" } else { "Posts" };
    Ok(Page { instance: &app.instance, visitor, title, here: "/posts/", content }.render())
}

fn invitation() -> Markup {
    html! {
        section.card {
            p { a href="/accounts/login/?next=/posts/" { "Log in" } " or " a href="/accounts/signup/?next=/posts/" { "sign up" } " to write a post." }
        }
    }
}

fn form(app: &App, filled: &Filled) -> Markup {
    let hint = format!("PNG, JPEG, GIF or WebP, up to {}.", format_bytes(app.settings.pictures.bytes));
    html! {
        section.card aria-labelledby="write" {
            h2 #write { "Write a post" }
            @if filled.wrong.is_some() { (alert("Not posted yet: see what is marked below.")) }
            form method="post" action="/posts/" enctype="multipart/form-data" {
                // The picture comes last, so that the text is received whatever happens to it.
                input type="hidden" name="id" value=(filled.id);
                (Field {
                    name: "text", label: "Text", hint: None, error: filled.text_error.as_deref(),
                    input: Input::Area { value: &filled.text, longest: MAX_TEXT_CHARS, required: true },
                }.render())
                (Field {
                    name: "alt", label: "What the picture shows", error: filled.alt_error.as_deref(),
                    hint: Some("For those who cannot see it. Leave it empty without a picture."),
                    input: Input::Text { value: &filled.alt, longest: MAX_ALT_CHARS },
                }.render())
                @if let Some(name) = filled.chosen.and_then(Chosen::name) {
                    input type="hidden" name="kept" value=(name);
                    div.kept {
                        img src={ "/media/" (name) } alt="The picture you chose" width="80" height="80";
                        p.hint { "Your picture is kept. Choose another below to replace it." }
                    }
                }
                (Field {
                    name: "picture", label: "Picture", hint: Some(&hint), error: filled.picture_error.as_deref(),
                    input: Input::Picture { accept: "image/png,image/jpeg,image/gif,image/webp" },
                }.render())
                button.main type="submit" { "Post" }
            }
        }
    }
}

fn entry(post: &Post) -> Markup {
    html! {
        li {
            article.card.post aria-labelledby={ "p" (post.id.simple()) } {
                header {
                    h2 id={ "p" (post.id.simple()) } { (post.author) }
                    (moment(post.created))
                }
                p.text { (post.text) }
                @if let Some(picture) = &post.picture {
                    img src={ "/media/" (picture.name) } alt=(picture.alt) width=(picture.width) height=(picture.height)
                        loading="lazy" decoding="async";
                }
            }
        }
    }
}

/// Limit on a form with a picture, in bytes. It exceeds the picture's own limit, so that a slightly too large picture
/// is read to its end and refused in the form, with the other fields kept.
pub fn body_limit(settings: &Settings) -> usize {
    let picture = usize::try_from(settings.pictures.bytes).unwrap_or(usize::MAX);
    picture.saturating_mul(4).saturating_add(super::MAX_FORM_BYTES)
}

fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes / 1024),
        _ if bytes.is_multiple_of(1_048_576) => format!("{} MiB", bytes / 1_048_576),
        _ => format!("{}.{} MiB", bytes / 1_048_576, bytes % 1_048_576 * 10 / 1_048_576),
    }
}

const MAX_TEXT_CHARS: usize = 2_000;
const MAX_ALT_CHARS: usize = 300;
/// Posts per page.
const PAGE: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_round_units() {
        for (bytes, text) in [(1_024, "1 KiB"), (5_242_880, "5 MiB"), (5_767_168, "5.5 MiB")] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
