use std::time::Duration;

use app::data::UserName;
use app::server::Stop;

use crate::failing::failing;
use crate::fixture::{Answer, Browser, PASSWORD, Running, Site, eventually};

#[tokio::test]
async fn signing_up_logs_in() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "Zoë").await;
    browser.get(&web1, "/").await.says(200, &["Log out", "Zoë"]);
}

#[tokio::test]
async fn a_taken_name_is_reported_and_stays_in_the_form() {
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
async fn invalid_names_and_passwords_are_reported_by_field() {
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
async fn a_wrong_password_and_an_unknown_name_get_the_same_answer() {
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
async fn logging_out_ends_the_session_on_the_server() {
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
        // The left one is unverified.
        .header("x-forwarded-for", "10.0.0.1, 203.0.113.9")
        .form(&[("name", "ann"), ("password", "wrong password")]);
    assert_eq!(attempt.send().await.unwrap().status(), 401);
    recorded(&web1, "ann", 2).await;
    let history = browser.get(&web1, "/accounts/logs/").await;
    history.says(200, &["Wrong password", "Logged in", "203.0.113.9", "127.0.0.1", "web1"]);
    assert!(!history.body.contains("10.0.0.1"));
}

#[tokio::test]
async fn a_long_history_has_several_pages() {
    let mut site = Site::new();
    site.settings.attempts.together = 100;
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for _ in 0..26 {
        browser.log_in(&web1, "ann", "wrong password").await;
    }
    recorded(&web1, "ann", 27).await;
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
async fn a_members_page_redirects_to_the_login_and_back() {
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
async fn members_are_redirected_from_the_login_forms() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    for path in ["/accounts/login/?next=/posts/", "/accounts/signup/?next=/posts/"] {
        assert_eq!(browser.get(&web1, path).await.header("location"), "/posts/");
    }
}

#[tokio::test]
async fn a_request_overtaken_by_a_login_keeps_its_cookie() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let browser = Browser::new();
    let before = session_id(&browser.get(&web1, "/").await);
    browser.log_in(&web1, "ann", PASSWORD).await;
    // Sent with the id from before the login, and answered after it: a new session would log the member out.
    let sent = Browser::new().request(&web1, "/").header("cookie", format!("id={before}")).send().await.unwrap();
    let answer = Answer::of(sent).await;
    answer.says(200, &["Log in"]);
    assert_eq!(answer.header("set-cookie"), "");
    // An id that the store does not know is replaced.
    let sent = Browser::new().request(&web1, "/").header("cookie", "id=AAAAAAAAAAAAAAAAAAAAAA").send().await.unwrap();
    assert!(Answer::of(sent).await.header("set-cookie").starts_with("id="));
    // And the id from before a login or logout does not prevent the next login.
    let again = Browser::new()
        .post_raw(&web1, "/accounts/login/")
        .header("origin", web1.url(""))
        .header("cookie", format!("id={before}"))
        .form(&[("name", "ann"), ("password", PASSWORD)]);
    let again = Answer::of(again.send().await.unwrap()).await;
    assert_eq!(again.status, 303);
    assert_ne!(session_id(&again), before);
}

#[tokio::test]
async fn sessions_of_a_member_are_limited_and_the_longest_unused_ends() {
    let mut site = Site::new();
    site.settings.sessions.sessions_per_member = 2;
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let browsers = [Browser::new(), Browser::new(), Browser::new()];
    browsers[0].sign_up(&web1, "ann").await;
    browsers[1].log_in(&web2, "ann", PASSWORD).await;
    browsers[2].log_in(&web1, "ann", PASSWORD).await;
    assert_eq!(logged_in(&web1, &browsers).await, [false, true, true]);
    // A session that was ended makes room: no other has to end.
    browsers[1].post(&web1, "/accounts/logout/", &[]).await;
    browsers[0].log_in(&web2, "ann", PASSWORD).await;
    assert_eq!(logged_in(&web1, &browsers).await, [true, false, true]);
    // Other members are not affected.
    browsers[1].sign_up(&web1, "ben").await;
    assert_eq!(logged_in(&web1, &browsers).await, [true; 3]);
}

#[tokio::test]
async fn concurrent_logins_on_several_instances_respect_the_session_limit() {
    let mut site = Site::new();
    site.settings.sessions.sessions_per_member = 3;
    // Attempts count as failed until their passwords have been checked.
    site.settings.attempts.together = 100;
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    Browser::new().sign_up(&web1, "ann").await;
    let browsers: Vec<_> = (0..12).map(|_| Browser::new()).collect();
    let logins = browsers.iter().enumerate().map(|(place, browser)| {
        let instance = if place % 2 == 0 { &web1 } else { &web2 };
        async move { assert_eq!(browser.log_in(instance, "ann", PASSWORD).await.status, 303) }
    });
    futures_util::future::join_all(logins).await;
    let alive = logged_in(&web1, &browsers).await.into_iter().filter(|is_in| *is_in).count();
    assert!((1..=3).contains(&alive), "{alive} sessions");
    let one_more = Browser::new();
    one_more.log_in(&web2, "ann", PASSWORD).await;
    one_more.get(&web1, "/").await.says(200, &["Log out"]);
}

#[tokio::test]
async fn a_draft_too_long_to_keep_is_reported_in_the_form() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ann").await;
    let long = "é".repeat(4_097);
    let browser = Browser::new();
    for path in ["/accounts/login/", "/accounts/signup/"] {
        let fields = [("name", "ann"), ("password", PASSWORD), ("draft_text", &long), ("draft_alt", "A view")];
        let answer = browser.post(&web1, path, &fields).await;
        answer.says(422, &["8200 bytes; at most 8192", "<textarea id=\"draft_text\"", &long, r#"value="A view""#]);
        assert_eq!(answer.hidden("draft_text"), None, "it is there to be edited");
    }
    // As it comes from a post that was sent without a session.
    let answer = browser.upload(&web1, &[("text", &long), ("alt", "A view")], None).await;
    answer.says(401, &["at most 8192", "<textarea id=\"draft_text\""]);
    let shorter = [("name", "ann"), ("password", PASSWORD), ("draft_text", &long[..8_186]), ("draft_alt", "A view")];
    assert_eq!(browser.post(&web1, "/accounts/login/", &shorter).await.status, 303);
    browser.get(&web1, "/posts/").await.says(200, &[&long[..8_186], r#"value="A view""#]);
}

#[tokio::test]
async fn failed_logins_are_limited_over_all_instances_without_locking_anybody_out() {
    let site = Site::new();
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let ann = Browser::new();
    ann.sign_up(&web1, "ann").await;
    let stranger = Browser::new();
    for name in ["ann", "nobody"] {
        for attempt in 0..10 {
            let instance = if attempt % 2 == 0 { &web1 } else { &web2 };
            stranger.log_in(instance, name, "wrong password").await.says(401, &["do not belong together"]);
        }
        // The same for existing and unknown names, and for the correct password.
        for instance in [&web1, &web2] {
            let fields = [("name", name), ("password", PASSWORD), ("draft_text", "Long thoughts")];
            let answer = stranger.post(instance, "/accounts/login/", &fields).await;
            answer.says(429, &["Too many attempts have failed", "Try again in 15 min"]);
            assert!((840..=900).contains(&answer.header("retry-after").parse().unwrap()));
            assert_eq!(answer.hidden("draft_text"), Some("Long thoughts"));
        }
    }
    // Ann from the same address, in the browser with which she has logged in before; and anybody elsewhere.
    ann.post(&web1, "/accounts/logout/", &[]).await;
    assert_eq!(ann.log_in(&web2, "ann", PASSWORD).await.status, 303);
    let elsewhere = Browser::new()
        .post_raw(&web1, "/accounts/login/")
        .header("origin", web1.url(""))
        .header("x-forwarded-for", "203.0.113.9")
        .form(&[("name", "ann"), ("password", PASSWORD)]);
    assert_eq!(elsewhere.send().await.unwrap().status(), 303);
    stranger.get(&web1, "/metrics").await.says(200, &[r#"app_logins_total{result="refused"} 2"#]);
    recorded(&web1, "ann", 13).await;
}

#[tokio::test]
async fn signups_from_an_address_are_limited_over_all_instances() {
    let mut site = Site::new();
    site.settings.attempts.signups = 3;
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let fields = |name| [("name", name), ("password", PASSWORD), ("draft_text", "Long thoughts")];
    Browser::new().sign_up(&web1, "ann").await;
    Browser::new().sign_up(&web2, "ben").await;
    // Invalid requests do not count; taken names do.
    Browser::new().post(&web1, "/accounts/signup/", &[("name", "!"), ("password", PASSWORD)]).await.says(422, &[]);
    Browser::new().post(&web1, "/accounts/signup/", &fields("ann")).await.says(409, &["ann is taken"]);
    for (instance, name) in [(&web1, "cid"), (&web2, "ann")] {
        let answer = Browser::new().post(instance, "/accounts/signup/", &fields(name)).await;
        answer.says(429, &["Too many accounts were asked for", "Try again in 15 min"]);
        assert!((840..=900).contains(&answer.header("retry-after").parse().unwrap()));
        assert_eq!(answer.hidden("draft_text"), Some("Long thoughts"));
    }
    // Members can log in, and others can sign up elsewhere.
    assert_eq!(Browser::new().log_in(&web1, "ann", PASSWORD).await.status, 303);
    let elsewhere = Browser::new()
        .post_raw(&web1, "/accounts/signup/")
        .header("origin", web1.url(""))
        .header("x-forwarded-for", "203.0.113.9")
        .form(&fields("cid"));
    assert_eq!(elsewhere.send().await.unwrap().status(), 303);
}

#[tokio::test]
async fn a_login_succeeds_though_it_cannot_be_recorded() {
    let site = Site::new();
    let (stores, data, _) = failing(&site);
    let web1 = site.start_on("web1", stores).await;
    data.fails(|operation, _| operation == "record_login");
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    assert_eq!(browser.log_in(&web1, "ann", PASSWORD).await.status, 303);
    browser.get(&web1, "/").await.says(200, &["Log out"]);
    let metrics = async || browser.get(&web1, "/metrics").await.body;
    eventually("two are missing", async || metrics().await.contains("app_logins_unrecorded_total 2")).await;

    data.hold_failures();
    // While records are not answered at all, nobody waits for those of failures, and nobody waits long.
    browser.log_in(&web1, "ann", "wrong password").await.says(401, &[]);
    assert_eq!(browser.log_in(&web1, "ann", PASSWORD).await.status, 303);
    // The stop waits for them, at most for the deadline.
    let (stop, stopped) = web1.announce();
    stop.send(Stop::Now).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!stopped.is_finished());
    data.let_failures(2);
    stopped.await.unwrap();
}

// A foreign cookie that was not text hid all cookies of its line.
#[tokio::test]
async fn a_cookie_that_is_not_text_hides_no_other() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let id = session_id(&browser.log_in(&web1, "ann", PASSWORD).await);
    for line in [format!("lang=\u{e9}; id={id}"), format!("id={id}; lang=\u{e9}")] {
        let line = reqwest::header::HeaderValue::from_bytes(line.as_bytes()).unwrap();
        let sent = Browser::new().request(&web1, "/accounts/logs/").header("cookie", line).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
}

// During an outage of the database each login with the correct password counted as a wrong one.
#[tokio::test]
async fn an_attempt_that_the_database_could_not_check_is_no_failure() {
    let mut site = Site::new();
    site.settings.attempts.together = 3;
    let (stores, data, _) = failing(&site);
    let web1 = site.start_on("web1", stores).await;
    Browser::new().sign_up(&web1, "ann").await;
    data.fails(|_, _| true);
    for _ in 0..5 {
        Browser::new().log_in(&web1, "ann", PASSWORD).await.says(503, &["Storage is out of reach"]);
    }
    data.fails(|_, _| false);
    assert_eq!(Browser::new().log_in(&web1, "ann", PASSWORD).await.status, 303);
}

#[tokio::test]
async fn a_rate_limited_attempt_is_no_failure() {
    let mut site = Site::new();
    (site.settings.attempts.together, site.settings.attempts.per_address) = (2, 4);
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ben").await;
    for status in [401, 401, 429, 429, 429, 429, 429] {
        Browser::new().log_in(&web1, "ann", "wrong password").await.says(status, &[]);
    }
    assert_eq!(Browser::new().log_in(&web1, "ben", PASSWORD).await.status, 303);
}

// With a third of a Redis Cluster away, hardly anybody could log in, and new visitors got an error instead of pages.
#[tokio::test]
async fn login_works_while_some_sessions_are_unreachable() {
    let site = Site::new();
    let (stores, _, sessions) = failing(&site);
    let web1 = site.start_on("web1", stores).await;
    let former = Browser::new();
    former.sign_up(&web1, "ann").await;
    former.post(&web1, "/accounts/logout/", &[]).await;
    former.get(&web1, "/").await.says(200, &[]);
    // Half of all sessions, all lists, and taking back attempts.
    sessions.fails(|operation, name| match operation {
        "enrol" | "strike" | "uncount" => true,
        "create" | "save" | "load" | "delete" => name.as_bytes()[5] % 2 == 0,
        _ => false,
    });
    for number in 0..8 {
        let browser = Browser::new();
        assert_eq!(browser.log_in(&web1, "ann", PASSWORD).await.status, 303);
        browser.get(&web1, "/accounts/logs/").await.says(200, &["Logged in"]);
        let newcomer = Browser::new();
        newcomer.sign_up(&web1, &format!("newcomer{number}")).await;
        newcomer.get(&web1, "/").await.says(200, &["Log out"]);
        Browser::new().get(&web1, "/").await.says(200, &["web1", "Your session"]);
    }
    // Whatever happens to the browser's previous session.
    sessions.fails(|operation, _| matches!(operation, "load" | "delete"));
    assert_eq!(former.log_in(&web1, "ann", PASSWORD).await.status, 303);
    sessions.fails(|_, _| false);
    former.get(&web1, "/accounts/logs/").await.says(200, &[]);
    // No page fails because a visit could not be saved.
    sessions.fails(|operation, _| matches!(operation, "create" | "save"));
    for browser in [&Browser::new(), &former] {
        browser.get(&web1, "/").await.says(200, &["web1"]);
    }
    former.upload(&web1, &[("text", "Still here")], None).await.says(303, &[]);
    // Without any session there is no login; but if an account was created, the page says so.
    Browser::new().log_in(&web1, "ann", PASSWORD).await.says(503, &[]);
    let fields = [("name", "late"), ("password", PASSWORD), ("next", "/posts/")];
    let made = Browser::new().post(&web1, "/accounts/signup/", &fields).await;
    made.says(200, &["Your account is made", "Log in"]);
    assert_eq!(made.hidden("next"), Some("/posts/"));
    sessions.fails(|_, _| false);
    assert_eq!(Browser::new().log_in(&web1, "late", PASSWORD).await.status, 303);
}

// The cookie that identifies a browser contained only one account: logging in to another one replaced the first.
#[tokio::test]
async fn each_account_remembers_browsers_that_logged_in() {
    let mut site = Site::new();
    site.settings.attempts.together = 2;
    let web1 = site.start("web1").await;
    let shared = Browser::new();
    for name in ["ann", "ben"] {
        shared.sign_up(&web1, name).await;
        shared.post(&web1, "/accounts/logout/", &[]).await;
    }
    for _ in 0..2 {
        for name in ["ann", "ben"] {
            for _ in 0..3 {
                Browser::new().log_in(&web1, name, "wrong password").await;
            }
            Browser::new().log_in(&web1, name, PASSWORD).await.says(429, &[]);
            assert_eq!(shared.log_in(&web1, name, PASSWORD).await.status, 303, "{name}");
            shared.post(&web1, "/accounts/logout/", &[]).await;
        }
    }
}

// Names that are the same since full case folding were two before: both accounts still belong to their owners.
#[tokio::test]
async fn an_account_of_an_earlier_version_is_found_by_its_name() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let fields = [("name", "Stra\u{df}e"), ("password", "another password")];
    assert_eq!(Browser::new().post(&web1, "/accounts/signup/", &fields).await.status, 303);
    // As it was stored then.
    let data = rusqlite::Connection::open(site.path("data.sqlite3")).unwrap();
    let keys = ["users", "logins"].map(|table| format!("UPDATE {table} SET user_key = 'stra\u{df}e'"));
    data.execute_batch(&keys.join(";")).unwrap();
    Browser::new().sign_up(&web1, "Strasse").await;
    let browser = Browser::new();
    browser.log_in(&web1, "Stra\u{df}e", PASSWORD).await.says(401, &[]);
    assert_eq!(browser.log_in(&web1, "STRA\u{df}E", "another password").await.status, 303);
    recorded(&web1, "Strasse", 1).await;
    let history = browser.get(&web1, "/accounts/logs/").await;
    assert_eq!(history.body.matches("Logged in").count(), 2, "and not the other's");
    assert_eq!(Browser::new().log_in(&web1, "STRASSE", PASSWORD).await.status, 303);
}

#[tokio::test]
async fn names_that_look_alike_are_one_account() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let sign_up = async |name: &str| {
        let fields = [("name", name), ("password", PASSWORD)];
        Browser::new().post(&web1, "/accounts/signup/", &fields).await.status.as_u16()
    };
    for name in ["admin", "\u{3bf}\u{3b4}\u{3bf}\u{3c2}", "stra\u{df}e"] {
        assert_eq!(sign_up(name).await, 303, "{name}");
    }
    for taken in
        ["ADMIN", "\u{39f}\u{394}\u{39f}\u{3a3}", "\u{3bf}\u{3b4}\u{3bf}\u{3c3}", "STRASSE", "Strasse", "STRA\u{1e9e}E"]
    {
        assert_eq!(sign_up(taken).await, 409, "{taken}");
    }
    // Invisible letters, by their class.
    for unseen in ["admin\u{3164}", "a\u{115f}dmin", "\u{3164}\u{3164}\u{3164}", "admin\u{1160}", "admin\u{ffa0}"] {
        assert_eq!(sign_up(unseen).await, 422, "{unseen:?}");
    }
    assert_eq!(Browser::new().log_in(&web1, "STRASSE", PASSWORD).await.status, 303);
}

#[tokio::test]
async fn a_logout_overtaken_by_a_login_keeps_the_cookie() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let before = session_id(&browser.log_in(&web1, "ann", PASSWORD).await);
    browser.log_in(&web1, "ann", PASSWORD).await;
    let late = Browser::new()
        .post_raw(&web1, "/accounts/logout/")
        .header("origin", web1.url(""))
        .header("cookie", format!("id={before}"));
    let answer = Answer::of(late.send().await.unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.header("set-cookie")), (303, ""));
    browser.get(&web1, "/").await.says(200, &["Log out"]);
}

#[tokio::test]
async fn a_draft_of_one_member_is_not_shown_to_the_next() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().sign_up(&web1, "ben").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let fields = [("name", "ann"), ("password", PASSWORD), ("draft_text", "Of Ann alone")];
    browser.post(&web1, "/accounts/login/", &fields).await;
    browser.get(&web1, "/posts/").await.says(200, &["Of Ann alone"]);
    browser.log_in(&web1, "ben", PASSWORD).await;
    assert!(!browser.get(&web1, "/posts/").await.body.contains("Of Ann alone"));
}

// Each control character takes six bytes in the store.
#[tokio::test]
async fn a_draft_is_measured_as_it_is_stored() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    for long in ["\u{1}".repeat(1_366), "\"".repeat(4_097)] {
        let fields = [("name", "ann"), ("password", PASSWORD), ("draft_text", &long)];
        Browser::new().post(&web1, "/accounts/signup/", &fields).await.says(422, &["at most 8192"]);
    }
}

/// Waits until `count` attempts of `name` are in the history.
async fn recorded(instance: &Running, name: &str, count: usize) {
    let key = name.parse::<UserName>().unwrap().key();
    let logins = async || instance.app.data.logins(&key, None, 100, &[]).await.unwrap().len();
    eventually("the history", async || logins().await == count).await;
}

async fn logged_in(instance: &Running, browsers: &[Browser]) -> Vec<bool> {
    let mut logged_in = Vec::new();
    for browser in browsers {
        logged_in.push(browser.get(instance, "/accounts/logs/").await.status == 200);
    }
    logged_in
}

fn session_id(answer: &Answer) -> String {
    let mut cookies = answer.headers.get_all("set-cookie").iter().map(|cookie| cookie.to_str().unwrap());
    cookies.find_map(|cookie| cookie.strip_prefix("id=")).unwrap().split(';').next().unwrap().to_owned()
}
