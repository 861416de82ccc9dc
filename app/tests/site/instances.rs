use crate::fixture::{Browser, PASSWORD, Site, png};

#[tokio::test]
async fn a_login_on_one_instance_counts_on_every_other() {
    let site = Site::new();
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    browser.get(&web2, "/").await.says(200, &["web2", "Log out", "ann"]);
    browser.post(&web2, "/accounts/logout/", &[]).await;
    browser.get(&web1, "/").await.says(200, &["Log in"]);
}

#[tokio::test]
async fn a_login_outlives_its_instance() {
    let site = Site::new();
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    web1.stop().await.unwrap();
    browser.get(&web2, "/accounts/logs/").await.says(200, &["Logged in", "web1"]);
}

#[tokio::test]
async fn an_account_created_on_one_instance_can_log_in_on_another() {
    let site = Site::new();
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    Browser::new().sign_up(&web1, "ann").await;
    let browser = Browser::new();
    assert_eq!(browser.log_in(&web2, "Ann", PASSWORD).await.status, 303);
    browser.get(&web2, "/accounts/logs/").await.says(200, &["web1", "web2"]);
}

#[tokio::test]
async fn posts_and_pictures_appear_on_every_instance_at_once() {
    let site = Site::new();
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let picture = png(30, 30);
    browser.upload(&web1, &[("text", "Seen everywhere")], Some(picture.clone())).await;
    let posts = browser.get(&web2, "/posts/").await;
    posts.says(200, &["Seen everywhere"]);
    let served = browser.request(&web2, posts.picture().unwrap()).send().await.unwrap();
    assert_eq!(served.bytes().await.unwrap(), picture);
}

#[tokio::test]
async fn the_home_page_names_the_instance_and_counts_visits_over_all() {
    let site = Site::new();
    let (web1, web2) = (site.start("web1").await, site.start("web2").await);
    let browser = Browser::new();
    browser.get(&web1, "/").await.says(200, &["<dd>1</dd>", "tint-1"]);
    browser.get(&web2, "/").await.says(200, &["<dd>2</dd>", "<body class=\"tint-2\">"]);
    let third = browser.get(&web1, "/").await;
    third.says(200, &["<dd>3</dd>", "<body class=\"tint-1\">"]);
    let order = "<li class=\"tint-1\">web1</li><li class=\"tint-2\">web2</li><li class=\"tint-1\">web1</li>";
    third.says(200, &[order]);
}
