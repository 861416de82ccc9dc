use crate::fixture::{Answer, Browser, PASSWORD, Site};

#[tokio::test]
async fn signing_up_logs_in() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "Zoë").await;
    browser.get(&web1, "/").await.says(200, &["Log out", "Zoë"]);
}

#[tokio::test]
async fn a_taken_name_is_told_and_kept_in_the_form() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let fields = [("name", "ANN"), ("password", PASSWORD), ("next", "/posts/")];
    let answer = Browser::new().post(&web1, "/accounts/signup/", &fields).await;
    answer.says(409, &["ANN is taken", r#"value="ANN""#, "aria-invalid"]);
    assert_eq!(answer.hidden("next"), Some("/posts/"));
    assert!(!answer.body.contains(PASSWORD), "a password is never sent back");
}

#[tokio::test]
async fn unfit_names_and_passwords_are_told_field_by_field() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    let answer = browser.post(&web1, "/accounts/signup/", &[("name", "<b>x</b>"), ("password", "short")]).await;
    answer.says(422, &["starts with a letter", "at least 8 characters", r#"value="&lt;b&gt;x&lt;/b&gt;""#]);
    browser.post(&web1, "/accounts/signup/", &[]).await.says(422, &["3 to 32 characters"]);
    let long = "x".repeat(300);
    browser
        .post(&web1, "/accounts/signup/", &[("name", "ann"), ("password", &long)])
        .await
        .says(422, &["at most 256 characters"]);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_name_are_told_alike() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let browser = Browser::new();
    let wrong = browser.log_in(&web1, "ann", "wrong password").await;
    wrong.says(401, &["do not belong together", r#"value="ann""#]);
    assert!(!wrong.header("www-authenticate").is_empty());
    browser.log_in(&web1, "ben", PASSWORD).await.says(401, &["do not belong together", r#"value="ben""#]);
    browser.log_in(&web1, "<script>", "x").await.says(401, &["do not belong together"]);
    browser.get(&web1, "/").await.says(200, &["Log in"]);
}

#[tokio::test]
async fn login_renews_the_session_id_and_keeps_the_visits() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;

    let browser = Browser::new();
    let before = session_id(&browser.get(&web1, "/").await);
    let login = browser.log_in(&web1, "ann", PASSWORD).await;
    let after = session_id(&login);
    assert_ne!(before, after);
    browser.get(&web1, "/").await.says(200, &["<dd>2</dd>", "Log out"]);

    let stale = Browser::new().request(&web1, "/accounts/logs/").header("cookie", format!("id={before}"));
    assert_eq!(stale.send().await.unwrap().status(), 303, "the id from before the login is worth nothing");
}

#[tokio::test]
async fn logging_out_ends_the_session_for_whoever_kept_its_id() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let id = session_id(&browser.log_in(&web1, "ann", PASSWORD).await);
    let answer = browser.post(&web1, "/accounts/logout/", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/"));
    assert!(answer.header("set-cookie").contains("Max-Age=0"));
    browser.get(&web1, "/").await.says(200, &["Log in"]);
    let stale = Browser::new().request(&web1, "/accounts/logs/").header("cookie", format!("id={id}"));
    assert_eq!(stale.send().await.unwrap().status(), 303);
}

#[tokio::test]
async fn logging_out_without_a_session_is_no_error() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    assert_eq!(Browser::new().post(&web1, "/accounts/logout/", &[]).await.status, 303);
}

#[tokio::test]
async fn the_history_shows_successes_failures_addresses_and_instances() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let attempt = browser
        .post_raw(&web1, "/accounts/login/")
        .header("origin", web1.url(""))
        // The left is the client's own word.
        .header("x-forwarded-for", "10.0.0.1, 203.0.113.9")
        .form(&[("name", "ann"), ("password", "wrong password")]);
    assert_eq!(attempt.send().await.unwrap().status(), 401);
    let history = browser.get(&web1, "/accounts/logs/").await;
    history.says(200, &["Wrong password", "Logged in", "203.0.113.9", "127.0.0.1", "web1"]);
    assert!(!history.body.contains("10.0.0.1"));
}

#[tokio::test]
async fn a_long_history_goes_on_over_pages() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for _ in 0..26 {
        browser.log_in(&web1, "ann", "wrong password").await;
    }
    let first = browser.get(&web1, "/accounts/logs/").await;
    first.says(200, &["Earlier logins"]);
    assert_eq!(first.body.matches("Wrong password").count(), 25);
    let from = first.body.find("/accounts/logs/?after=").unwrap();
    let link = first.body[from..].split('"').next().unwrap();
    let second = browser.get(&web1, link).await;
    second.says(200, &["Logged in"]);
    assert_eq!(second.body.matches("Wrong password").count(), 1);
    browser.get(&web1, "/accounts/logs/?after=nonsense").await.says(200, &["Earlier logins"]);
}

#[tokio::test]
async fn a_page_for_members_sends_strangers_to_log_in_and_back() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let browser = Browser::new();
    let sent = browser.get(&web1, "/accounts/logs/?after=1.2").await;
    assert_eq!(sent.status, 303);
    let form = browser.get(&web1, sent.header("location")).await;
    assert_eq!(form.hidden("next"), Some("/accounts/logs/?after=1.2"));
    form.says(200, &["/accounts/signup/?next=/accounts/logs/%3Fafter%3D1.2"]);
    let fields = [("name", "ann"), ("password", PASSWORD), ("next", "/accounts/logs/?after=1.2")];
    let back = browser.post(&web1, "/accounts/login/", &fields).await;
    assert_eq!(back.header("location"), "/accounts/logs/?after=1.2");
}

#[tokio::test]
async fn a_login_never_leads_to_another_site() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let fields = [("name", "ann"), ("password", PASSWORD), ("next", "//evil.example/")];
    let answer = Browser::new().post(&web1, "/accounts/login/", &fields).await;
    assert_eq!(answer.header("location"), "/");
}

#[tokio::test]
async fn a_form_from_another_site_is_refused() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for (name, value) in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"), ("x-none", "at all")] {
        let sent = browser.post_raw(&web1, "/accounts/logout/").header(name, value).send().await.unwrap();
        Answer::of(sent).await.says(403, &["Sent from elsewhere"]);
    }
    browser.get(&web1, "/").await.says(200, &["Log out"]);
}

#[tokio::test]
async fn cookies_are_secure_where_the_trusted_balancer_serves_tls() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let sent = Browser::new().request(&web1, "/").header("x-forwarded-proto", "https").send().await.unwrap();
    assert!(Answer::of(sent).await.header("set-cookie").ends_with("; Secure"));
    assert!(!Browser::new().get(&web1, "/").await.header("set-cookie").contains("Secure"));
}

#[tokio::test]
async fn a_form_too_large_or_of_another_type_is_refused_clearly() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let long = "x".repeat(100_000);
    Browser::new().post(&web1, "/accounts/login/", &[("name", &long)]).await.says(413, &["Too large"]);
    let json = Browser::new()
        .post_raw(&web1, "/accounts/login/")
        .header("origin", web1.url(""))
        .header("content-type", "application/json")
        .body("{}");
    Answer::of(json.send().await.unwrap()).await.says(415, &["Not a form"]);
}

#[tokio::test]
async fn members_are_not_shown_the_forms_to_enter() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for path in ["/accounts/login/?next=/posts/", "/accounts/signup/?next=/posts/"] {
        assert_eq!(browser.get(&web1, path).await.header("location"), "/posts/");
    }
}

fn session_id(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie");
    cookie.strip_prefix("id=").unwrap().split(';').next().unwrap().to_owned()
}
