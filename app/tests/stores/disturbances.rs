//! Members who post, list and log in without pause while nodes of the stand-in for CrateDB hang, end and restart: what
//! was acknowledged is there, once and as its author's; nobody is logged out; and whatever fails is a 503.
//!
//! `compose/README.md` has the same table of a real cluster. Its times are too long for a test: with
//! `EVENKEEL_DISTURBANCES=full` these are them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use app::tls;
use reqwest::multipart::Form;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};
use tests::{Balancer, Config, Pool, eventually};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::databases::one_node;
use crate::standin::{CrateStandIn, NODES};
use crate::whole::{Data, Shared};

const MEMBERS: usize = 8;

/// How long each part of a disturbance takes.
struct Times {
    /// `--database-statement-timeout` and `--database-timeout`.
    statement: Duration,
    overall: Duration,
    /// Until a frozen node is removed from the cluster: any node, and the master (before that, there is none).
    detected: Duration,
    elected: Duration,
    /// Until there is another master after the previous one has ended.
    without_master: Duration,
    hangs: Duration,
    ended: Duration,
    /// From the end of all nodes until they know their tables again.
    recovery: Duration,
    /// Load before and after.
    around: Duration,
    /// Between two requests of a member.
    pause: Duration,
}

impl Times {
    /// As in compose/docker-compose.yml and in the real cluster.
    const FULL: Self = Self {
        statement: Duration::from_secs(2),
        overall: Duration::from_secs(8),
        detected: Duration::from_secs(5),
        elected: Duration::from_secs(7),
        without_master: Duration::from_millis(800),
        hangs: Duration::from_secs(20),
        ended: Duration::from_secs(10),
        recovery: Duration::from_secs(39),
        around: Duration::from_secs(10),
        pause: Duration::from_millis(20),
    };

    const SHORT: Self = Self {
        statement: Duration::from_secs(1),
        overall: Duration::from_secs(4),
        detected: Duration::from_millis(700),
        elected: Duration::from_secs(1),
        without_master: Duration::from_millis(100),
        hangs: Duration::from_millis(1500),
        ended: Duration::from_millis(500),
        recovery: Duration::from_millis(4500),
        around: Duration::from_millis(200),
        pause: Duration::from_millis(100),
    };

    fn wanted() -> Self {
        match std::env::var("EVENKEEL_DISTURBANCES").as_deref() {
            Ok("full") => Self::FULL,
            Ok(other) => panic!("EVENKEEL_DISTURBANCES={other}: take full, or leave it out"),
            Err(_) => Self::SHORT,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    None,
    FollowerHangs,
    MasterHangs,
    FollowerIsKilled,
    MasterIsKilled,
    AllRestart,
}

impl Disturbance {
    const ALL: [Self; 6] = [
        Self::None,
        Self::FollowerHangs,
        Self::MasterHangs,
        Self::FollowerIsKilled,
        Self::MasterIsKilled,
        Self::AllRestart,
    ];

    async fn happen(self, crate_db: &CrateStandIn, times: &Times) {
        const MASTER: usize = 0;
        const FOLLOWER: usize = 1;
        match self {
            Self::None => sleep(times.hangs).await,
            Self::FollowerHangs => {
                crate_db.freeze(FOLLOWER, times.detected);
                sleep(times.hangs).await;
                crate_db.thaw(FOLLOWER);
            }
            Self::MasterHangs => {
                crate_db.freeze(MASTER, times.elected);
                sleep(times.detected).await;
                crate_db.set_master(false);
                sleep(times.elected - times.detected).await;
                crate_db.set_master(true);
                sleep(times.hangs - times.elected).await;
                crate_db.thaw(MASTER);
            }
            Self::FollowerIsKilled => {
                crate_db.kill(FOLLOWER);
                sleep(times.ended).await;
                crate_db.start_again(FOLLOWER);
            }
            Self::MasterIsKilled => {
                crate_db.set_master(false);
                crate_db.kill(MASTER);
                sleep(times.without_master).await;
                crate_db.set_master(true);
                sleep(times.ended - times.without_master).await;
                crate_db.start_again(MASTER);
            }
            Self::AllRestart => {
                (0..NODES).for_each(|node| crate_db.kill(node));
                sleep(times.ended).await;
                crate_db.restart();
                sleep(times.recovery - times.ended).await;
                crate_db.recover();
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Post,
    List,
    History,
    Login,
}

/// A request that was answered.
struct Answered {
    kind: Kind,
    status: u16,
    begun: Instant,
    took: Duration,
}

/// The results of all members' requests.
#[derive(Default)]
struct Outcome {
    answered: Mutex<Vec<Answered>>,
    /// Author and text of the acknowledged posts.
    acknowledged: Mutex<Vec<(String, String)>>,
}

struct Member {
    name: String,
    browser: Client,
    site: String,
}

impl Member {
    fn new(name: String, site: &str) -> Self {
        Self { name, browser: browser(), site: site.to_owned() }
    }

    fn post(&self, browser: &Client, path: &str) -> RequestBuilder {
        browser.post(format!("{}{path}", self.site)).header("origin", &self.site)
    }

    fn with_credentials(&self, browser: &Client, path: &str) -> RequestBuilder {
        self.post(browser, path).form(&[("name", self.name.as_str()), ("password", "correct horse battery")])
    }

    async fn ask(&self, outcome: &Outcome, kind: Kind, request: RequestBuilder) -> (u16, String) {
        let begun = Instant::now();
        let answer = request.send().await.unwrap();
        let (status, page) = (answer.status().as_u16(), answer.text().await.unwrap());
        outcome.answered.lock().unwrap().push(Answered { kind, status, begun, took: begun.elapsed() });
        (status, page)
    }

    /// Posts, checks the post in the lists and the history, and sometimes logs in elsewhere.
    async fn keep_asking(&self, outcome: &Outcome, pause: Duration, stopping: watch::Receiver<bool>) {
        for round in 1.. {
            if *stopping.borrow() {
                return;
            }
            let text = format!("{} {}", self.name, uuid::Uuid::new_v4());
            let form = Form::new().text("text", text.clone()).text("alt", "");
            let post = self.post(&self.browser, "/posts/").multipart(form);
            let posted = self.ask(outcome, Kind::Post, post).await.0 == 303;
            if posted {
                outcome.acknowledged.lock().unwrap().push((self.name.clone(), text.clone()));
            }
            let get = |path: &str| self.browser.get(format!("{}{path}", self.site));
            let mut place = "/posts/".to_owned();
            // On the first page, unless others have posted meanwhile.
            loop {
                let (status, list) = self.ask(outcome, Kind::List, get(&place)).await;
                if !posted || status != 200 || list.contains(&text) {
                    break;
                }
                let earlier = list.find("/posts/?after=").map(|from| list[from..].split('"').next().unwrap());
                place = earlier.unwrap_or_else(|| panic!("in none of its author's lists: {text}")).to_owned();
            }
            let (status, page) = self.ask(outcome, Kind::History, get("/accounts/logs/")).await;
            assert!(matches!(status, 200 | 503), "{} was logged out: {status}: {page}", self.name);
            if round % 5 == 0 {
                let login = self.with_credentials(&browser(), "/accounts/login/");
                self.ask(outcome, Kind::Login, login).await;
            }
            sleep(pause).await;
        }
    }
}

/// Does not follow redirects.
fn browser() -> Client {
    tls::choose_provider();
    Client::builder().cookie_store(true).redirect(Policy::none()).no_proxy().build().unwrap()
}

impl Outcome {
    /// The row of the table, and the number of failed requests.
    fn row(&self, disturbance: Disturbance) -> (String, usize) {
        let answered = self.answered.lock().unwrap();
        let is_write = |kind| matches!(kind, Kind::Post | Kind::Login);
        let failed: Vec<_> = answered.iter().filter(|answer| answer.status >= 500).collect();
        let writes = answered.iter().filter(|answer| is_write(answer.kind)).count();
        let failed_writes = failed.iter().filter(|answer| is_write(answer.kind)).count();
        let first = failed.iter().map(|answer| answer.begun).min();
        let last = failed.iter().map(|answer| answer.begun + answer.took).max();
        let over = first.zip(last).map(|(first, last)| format!("{:.0} s", (last - first).as_secs_f64()));
        let slowest = answered.iter().map(|answer| answer.took).max().unwrap();
        let posts = answered.iter().filter(|answer| answer.kind == Kind::Post && answer.status == 303);
        let mut posts: Vec<_> = posts.map(|answer| answer.took.as_secs_f64()).collect();
        posts.sort_by(f64::total_cmp);
        let row = format!(
            "| {disturbance:?} | {} of {} | {failed_writes} of {writes} | {} | {:.1} s | {:.2}, {:.2} s |",
            failed.len(),
            answered.len(),
            over.unwrap_or_default(),
            slowest.as_secs_f64(),
            posts[posts.len() / 2],
            posts[posts.len() * 99 / 100],
        );
        (row, failed.len())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disturbances_of_the_stand_in_for_cratedb_lose_nothing_that_was_acknowledged() {
    let times = Times::wanted();
    let crate_db = CrateStandIn::start().await;
    crate_db.set_lag(Duration::from_millis(50));
    let shared = Shared::start(Data::CrateDb(crate_db.url()));
    let flags = [
        ["--sessions-per-member", "1000"],
        ["--database-statement-timeout", &format!("{}ms", times.statement.as_millis())],
        ["--database-timeout", &format!("{}ms", times.overall.as_millis())],
    ];
    let instances = ["web1", "web2", "web3"].map(|name| shared.instance_with(name, flags.as_flattened()));
    let backends = instances
        .iter()
        .fold(Pool::empty("app"), |pool, instance| pool.backend(instance.url.strip_prefix("http://").unwrap(), ""));
    let balancer = Balancer::start(Config::default().pool(backends)).await;
    let site = format!("http://{}", balancer.address());

    let members: Vec<_> = (0..MEMBERS).map(|number| Member::new(format!("member{number}"), &site)).collect();
    for member in &members {
        let answer = member.with_credentials(&member.browser, "/accounts/signup/").send().await.unwrap();
        assert_eq!(answer.status(), 303);
    }
    let mut acknowledged = Vec::new();
    for disturbance in Disturbance::ALL {
        let outcome = Outcome::default();
        let (stop, stopping) = watch::channel(false);
        let asking = members.iter().map(|member| member.keep_asking(&outcome, times.pause, stopping.clone()));
        let disturbing = async {
            sleep(times.around).await;
            disturbance.happen(&crate_db, &times).await;
            sleep(times.around).await;
            stop.send_replace(true);
        };
        tokio::join!(futures_util::future::join_all(asking), disturbing);

        let (row, failed) = outcome.row(disturbance);
        println!("{row}");
        for answer in outcome.answered.lock().unwrap().iter() {
            assert!(matches!(answer.status, 200 | 303 | 503), "{:?}: {}", answer.kind, answer.status);
        }
        // Requests wait for as long as it takes. Where a master hangs, the full times leave one second between the
        // election of the next and what a request may take: one whose last attempt goes to the node that hangs fails.
        match disturbance {
            Disturbance::MasterHangs => assert!(failed <= MEMBERS, "{row}"),
            Disturbance::AllRestart => assert!(failed > 0, "{row}"),
            _ => assert_eq!(failed, 0, "{row}"),
        }
        acknowledged.append(&mut outcome.acknowledged.into_inner().unwrap());
    }

    let (client, connection) =
        tokio_postgres::connect(&one_node(&crate_db.url()), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let posts = async || {
        let rows = client.query_typed("SELECT author, text FROM posts", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, String)>>()
    };
    let wanted: BTreeSet<_> = acknowledged.iter().cloned().collect();
    eventually("all that was acknowledged is there", async || wanted.is_subset(&posts().await.into_iter().collect()))
        .await;
    let posts = posts().await;
    let texts: BTreeSet<_> = posts.iter().map(|(_, text)| text).collect();
    assert_eq!(texts.len(), posts.len(), "some are there twice");
    println!("{} posts were acknowledged", acknowledged.len());
}
