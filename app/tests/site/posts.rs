use std::time::Duration;

use reqwest::multipart::{Form, Part};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::fixture::{Answer, Browser, PASSWORD, Site, png};

#[tokio::test]
async fn a_post_with_a_picture_is_shown_to_everyone() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let fields = [("text", "Look & see\r\n<b>here</b>"), ("alt", "A \"gradient\"")];
    let answer = browser.upload(&web1, &fields, Some(png(40, 30))).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/posts/"), "{}", answer.body);
    Browser::new().get(&web1, "/posts/").await.says(
        200,
        &[
            "Look &amp; see\n&lt;b&gt;here&lt;/b&gt;",
            "alt=\"A &quot;gradient&quot;\"",
            "width=\"40\" height=\"30\"",
            "ann",
        ],
    );
}

#[tokio::test]
async fn a_post_needs_no_picture() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    assert_eq!(browser.upload(&web1, &[("text", "Just words")], None).await.status, 303);
    let posts = browser.get(&web1, "/posts/").await;
    posts.says(200, &["Just words"]);
    assert_eq!(posts.picture(), None);
}

#[tokio::test]
async fn a_form_sent_twice_makes_one_post() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let form = browser.get(&web1, "/posts/").await;
    let id = form.hidden("id").unwrap();
    for _ in 0..2 {
        assert_eq!(browser.upload(&web1, &[("id", id), ("text", "Only once")], None).await.status, 303);
    }
    assert_eq!(browser.get(&web1, "/posts/").await.body.matches("Only once").count(), 1);
}

#[tokio::test]
async fn an_invalid_text_is_reported_and_the_picture_is_kept() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let long = "é".repeat(2_001);
    let answer = browser.upload(&web1, &[("text", &long), ("alt", "A view")], Some(png(40, 30))).await;
    answer.says(422, &["That is 2001 characters", &long, "A view", "Your picture is kept"]);

    let (id, kept) = (answer.hidden("id").unwrap(), answer.hidden("kept").unwrap());
    let again = [("id", id), ("text", "Shorter"), ("alt", "A view"), ("kept", kept)];
    assert_eq!(browser.upload(&web1, &again, None).await.status, 303);
    let posts = browser.get(&web1, "/posts/").await;
    // Its size is the picture's own, whatever a form says.
    posts.says(200, &["Shorter", "alt=\"A view\" width=\"40\" height=\"30\""]);
    assert!(posts.picture().is_some());
    let enlarged = [("text", "Larger"), ("kept", &*format!("{kept} 4000 1"))];
    browser.upload(&web1, &enlarged, None).await.says(422, &["Choose it again"]);

    browser.upload(&web1, &[("text", "  \r\n ")], None).await.says(422, &["Write something first"]);
}

#[tokio::test]
async fn a_fake_picture_is_refused_and_the_text_is_kept() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let fields = [("text", "My holiday"), ("alt", "The sea")];
    let page = b"<html><script>alert(1)</script></html>".to_vec();
    browser.upload(&web1, &fields, Some(page)).await.says(415, &["not a picture", "My holiday", "The sea"]);
    let mut cut = png(40, 30);
    cut.truncate(60);
    browser.upload(&web1, &fields, Some(cut)).await.says(422, &["damaged", "My holiday", "The sea"]);
    browser.get(&web1, "/posts/").await.says(200, &["Nothing here yet"]);
}

#[tokio::test]
async fn an_oversized_picture_is_refused_and_the_text_is_kept() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let fields = [("text", "My holiday"), ("alt", "The sea")];
    // Somewhat too large, and beyond what is read at all.
    for size in [50_001, 1_000_000] {
        browser
            .upload(&web1, &fields, Some(vec![7; size]))
            .await
            .says(413, &["too large", "48 KiB", "My holiday", "The sea"]);
    }
    let vast = png(400, 300);
    assert!(vast.len() < 50_000, "only its pixels are too many");
    browser.upload(&web1, &fields, Some(vast)).await.says(422, &["too many pixels", "My holiday"]);
}

#[tokio::test]
async fn a_post_written_while_the_session_ended_survives_the_login() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;

    let browser = Browser::new();
    let fields = [("text", "Long thoughts\nin two lines"), ("alt", "A view")];
    let refused = browser.upload(&web1, &fields, Some(png(40, 30))).await;
    refused.says(401, &["no longer", "Log in"]);

    let fields = [
        ("name", "ann"),
        ("password", PASSWORD),
        ("next", refused.hidden("next").unwrap()),
        ("draft_text", refused.hidden("draft_text").unwrap()),
        ("draft_alt", refused.hidden("draft_alt").unwrap()),
    ];
    let answer = browser.post(&web1, "/accounts/login/", &fields).await;
    assert_eq!(answer.header("location"), "/posts/");
    browser.get(&web1, "/posts/").await.says(200, &["\nLong thoughts\nin two lines</textarea>", r#"value="A view""#]);

    browser.upload(&web1, &[("text", "Long thoughts")], None).await;
    let posts = browser.get(&web1, "/posts/").await;
    assert!(!posts.body.contains("in two lines"), "the draft is gone once it was posted");
}

#[tokio::test]
async fn a_draft_survives_a_wrong_password_too() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let fields = [("name", "ann"), ("password", "wrong password"), ("draft_text", "Long thoughts")];
    let answer = Browser::new().post(&web1, "/accounts/login/", &fields).await;
    answer.says(401, &["do not belong together"]);
    assert_eq!(answer.hidden("draft_text"), Some("Long thoughts"));
}

#[tokio::test]
async fn posts_have_several_pages() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for n in 0..21 {
        let id = Uuid::now_v7().to_string();
        assert_eq!(browser.upload(&web1, &[("id", &id), ("text", &format!("post {n}."))], None).await.status, 303);
    }
    let first = browser.get(&web1, "/posts/").await;
    first.says(200, &["post 20.", "post 1.", "Earlier posts"]);
    assert!(!first.body.contains("post 0."));
    let from = first.body.find("/posts/?after=").unwrap();
    let link = first.body[from..].split('"').next().unwrap();
    let second = browser.get(&web1, link).await;
    second.says(200, &["post 0.", "Back to the latest"]);
    assert!(!second.body.contains("post 1."));
}

#[tokio::test]
async fn a_body_that_is_not_a_form_is_refused_clearly() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    browser.post(&web1, "/posts/", &[("text", "x")]).await.says(415, &["Not a form"]);
    let broken = browser
        .post_raw(&web1, "/posts/")
        .header("origin", web1.url(""))
        .header("content-type", "multipart/form-data; boundary=x")
        .body("--y nonsense");
    Answer::of(broken.send().await.unwrap()).await.says(400, &["Not understood"]);
}

// PostgreSQL takes no NUL: it was a failure of ours at any member's will.
#[tokio::test]
async fn control_characters_are_reported_in_the_form() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for bad in ["a\0b", "a\u{1b}[31m", "a\u{9b}31m", "a\u{7f}"] {
        browser.upload(&web1, &[("text", bad)], None).await.says(422, &["control character"]);
        let fields = [("text", "Fine"), ("alt", bad)];
        browser.upload(&web1, &fields, None).await.says(422, &["control character", "Fine"]);
    }
    assert_eq!(browser.upload(&web1, &[("text", "a\tb\r\nc")], None).await.status, 303);
    browser.get(&web1, "/posts/").await.says(200, &["a\tb\nc"]);
}

#[tokio::test]
async fn a_missing_kept_picture_is_reported_in_the_form() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for made_up in [format!("{}.png", "0a".repeat(32)), "holiday.png".to_owned()] {
        let answer = browser.upload(&web1, &[("text", "Look"), ("kept", &made_up)], None).await;
        answer.says(422, &["Choose it again", "Look"]);
        assert_eq!(answer.hidden("kept"), None);
    }
    browser.get(&web1, "/posts/").await.says(200, &["Nothing here yet"]);
}

#[tokio::test]
async fn a_form_has_one_picture() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let part = |side| Part::bytes(png(side, side)).file_name("a.png");
    let form = Form::new().text("text", "Two").part("picture", part(10)).part("picture", part(11));
    let request = browser.post_raw(&web1, "/posts/").header("origin", web1.url("")).multipart(form);
    Answer::of(request.send().await.unwrap()).await.says(400, &["Not understood"]);
}

// All of it was kept in memory while the end of the headers was looked for.
#[tokio::test]
async fn bytes_between_multipart_parts_are_bounded() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let login = Browser::new().log_in(&web1, "ann", PASSWORD).await;
    let cookies = login.headers.get_all("set-cookie").iter();
    let member: Vec<_> = cookies.map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap()).collect();
    let whole = "--x\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nhello\r\n";
    for begin in ["", "--x\r\nX: ", &format!("{whole}--x\r\nX: ")] {
        for cookie in ["", &member.join("; ")] {
            let mut stream = TcpStream::connect(web1.address).await.unwrap();
            let head = format!(
                "POST /posts/ HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\nCookie: {cookie}\r\n\
                 Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 150000\r\n\r\n{begin}"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            // It may be cut off on the way.
            let _ = stream.write_all(&[b'a'; 60_000]).await;
            let mut answer = [0; 12];
            let answered = timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await;
            answered.expect("it does not wait for more").unwrap();
            assert_eq!(&answer, b"HTTP/1.1 400", "{begin:?}");
        }
    }
}

#[tokio::test]
async fn posting_without_a_login_asks_for_it_and_keeps_the_text() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let large = Browser::new().upload(&web1, &[("text", "Long thoughts")], Some(vec![7; 150_000])).await;
    large.says(401, &["Log in"]);
    assert_eq!(large.hidden("draft_text"), Some("Long thoughts"));
}

// A request of the same browser that was under way meanwhile saved the session as it had been.
#[tokio::test]
async fn a_draft_that_was_posted_does_not_come_back() {
    let site = Site::new();
    let stores = site.stores();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let fields = [("name", "ann"), ("password", PASSWORD), ("draft_text", "Long thoughts")];
    let login = browser.post(&web1, "/accounts/login/", &fields).await;
    let cookies = login.headers.get_all("set-cookie").iter();
    let id = cookies.filter_map(|cookie| cookie.to_str().unwrap().strip_prefix("id=")).next().unwrap();
    let before = stores.sessions.load(&id.split(';').next().unwrap().parse().unwrap()).await.unwrap();
    browser.get(&web1, "/posts/").await.says(200, &["Long thoughts</textarea>"]);
    browser.upload(&web1, &[("text", "Long thoughts")], None).await.says(303, &[]);
    assert!(stores.sessions.save(&before.session().unwrap()).await.unwrap());
    let posts = browser.get(&web1, "/posts/").await;
    posts.says(200, &["Long thoughts"]);
    assert!(!posts.body.contains("Long thoughts</textarea>"));
}
