//! What every [`DataStore`] must do. Each implementation calls [`run`] from its own test.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use futures_util::future::join_all;
use uuid::Uuid;

use super::{DataStore, Login, Millis, Picture, Post, Signup, User, UserName};
use crate::given_up;

/// Runs the suite. `one` and `other` are two handles, as of two instances, on the same data. Existing data is not
/// touched, so the suite can run again on a store that cannot be emptied.
pub async fn run(one: &dyn DataStore, other: &dyn DataStore) {
    one.ready().await.unwrap();
    a_name_belongs_to_the_first_who_takes_it(one, other).await;
    repeating_a_signup_succeeds(one, other).await;
    of_many_signups_at_once_one_wins(one, other).await;
    a_signup_given_up_can_be_repeated(one, other).await;
    a_post_given_up_can_be_repeated(one, other).await;
    an_operation_given_up_leaves_the_answers_of_others_alone(one).await;
    an_unknown_name_is_nobody(one).await;
    logins_are_listed_newest_first_and_per_account(one, other).await;
    posts_page_through_without_gaps_or_repeats(one, other).await;
    repeating_a_post_changes_nothing(one, other).await;
    text_comes_back_as_it_went_in(one, other).await;
}

async fn a_name_belongs_to_the_first_who_takes_it(one: &dyn DataStore, other: &dyn DataStore) {
    let name = fresh_name();
    let ann = user(&name);
    let rival = user(&name.to_uppercase());
    assert_eq!(one.create_user(&ann).await.unwrap(), Signup::Created);
    assert_eq!(other.create_user(&rival).await.unwrap(), Signup::Taken);
    assert_eq!(other.user(&rival.name.key()).await.unwrap(), Some(ann));
}

async fn repeating_a_signup_succeeds(one: &dyn DataStore, other: &dyn DataStore) {
    let ann = user(&fresh_name());
    assert_eq!(one.create_user(&ann).await.unwrap(), Signup::Created);
    assert_eq!(other.create_user(&ann).await.unwrap(), Signup::Created);
}

async fn of_many_signups_at_once_one_wins(one: &dyn DataStore, other: &dyn DataStore) {
    let name = fresh_name();
    let rivals: Vec<User> = (0..8).map(|_| user(&name)).collect();
    let outcomes =
        join_all(rivals.iter().enumerate().map(|(n, rival)| if n % 2 == 0 { one } else { other }.create_user(rival)))
            .await;
    let winners: Vec<_> =
        rivals.iter().zip(outcomes).filter(|(_, outcome)| *outcome.as_ref().unwrap() == Signup::Created).collect();
    assert_eq!(winners.len(), 1);
    let kept = one.user(&rivals[0].name.key()).await.unwrap().unwrap();
    assert_eq!(&kept, winners[0].0);
}

async fn a_signup_given_up_can_be_repeated(one: &dyn DataStore, other: &dyn DataStore) {
    for waits in 0.. {
        let ann = user(&fresh_name());
        let finished = given_up::after(waits, one.create_user(&ann)).await.is_some();
        assert_eq!(other.create_user(&ann).await.unwrap(), Signup::Created);
        for store in [one, other] {
            assert_eq!(store.user(&ann.name.key()).await.unwrap().as_ref(), Some(&ann));
            assert_eq!(store.create_user(&user(ann.name.as_str())).await.unwrap(), Signup::Taken);
        }
        if finished {
            return;
        }
    }
}

async fn a_post_given_up_can_be_repeated(one: &dyn DataStore, other: &dyn DataStore) {
    let author: UserName = fresh_name().parse().unwrap();
    for waits in 0.. {
        let post = post(&author, Millis::now().0 + 40_000_000_000);
        let login = login(&author, post.created.0, true);
        let posted = given_up::after(waits, one.add_post(&post)).await.is_some();
        let recorded = given_up::after(waits, one.record_login(&login)).await.is_some();
        other.add_post(&post).await.unwrap();
        other.record_login(&login).await.unwrap();
        for store in [one, other] {
            assert!(store.posts(None, 50, &[post.cursor()]).await.unwrap().contains(&post));
            assert!(store.logins(&author.key(), None, 50, &[login.cursor()]).await.unwrap().contains(&login));
        }
        if posted && recorded {
            return;
        }
    }
}

/// A dropped future must not leave its connection, with a pending response, to the next operation.
async fn an_operation_given_up_leaves_the_answers_of_others_alone(store: &dyn DataStore) {
    let (ann, ben, nobody) = (user(&fresh_name()), user(&fresh_name()), user(&fresh_name()));
    for member in [&ann, &ben] {
        assert_eq!(store.create_user(member).await.unwrap(), Signup::Created);
    }
    let of_ann = login(&ann.name, 1_000, true);
    store.record_login(&of_ann).await.unwrap();
    let own = [of_ann.cursor()];
    let (key, late) = (ann.name.key(), Millis::now().0 + 50_000_000_000);
    // Each writes new rows, so that it can be repeated.
    let operations: [given_up::Operation<'_>; 7] = [
        &|| Box::pin(async { store.ready().await.map(|_| ()).unwrap() }),
        &|| Box::pin(async { assert!(store.user(&key).await.unwrap().is_some()) }),
        &|| Box::pin(async { assert_eq!(store.logins(&key, None, 10, &own).await.unwrap().len(), 1) }),
        &|| Box::pin(async { assert!(store.posts(None, 10, &[]).await.unwrap().len() <= 10) }),
        &|| Box::pin(async { assert_eq!(store.create_user(&user(&fresh_name())).await.unwrap(), Signup::Created) }),
        &|| Box::pin(async { store.record_login(&login(&nobody.name, 1_000, false)).await.unwrap() }),
        &|| Box::pin(async { store.add_post(&post(&nobody.name, late)).await.unwrap() }),
    ];
    for operation in operations {
        for waits in 0.. {
            let finished = given_up::after(waits, operation()).await.is_some();
            // More at once than the store has connections.
            let lookups = join_all(
                (0..6)
                    .map(|index| [&ann, &ben, &nobody][index % 3])
                    .map(|asked| async move { (asked, store.user(&asked.name.key()).await.unwrap()) }),
            );
            for (asked, found) in lookups.await {
                assert_eq!(found.as_ref(), Some(asked).filter(|asked| asked.id != nobody.id), "after {waits} waits");
            }
            assert_eq!(store.logins(&key, None, 10, &own).await.unwrap(), std::slice::from_ref(&of_ann));
            assert_eq!(store.create_user(&user(ann.name.as_str())).await.unwrap(), Signup::Taken);
            if finished {
                break;
            }
        }
    }
}

async fn an_unknown_name_is_nobody(one: &dyn DataStore) {
    let name: UserName = fresh_name().parse().unwrap();
    assert_eq!(one.user(&name.key()).await.unwrap(), None);
    assert_eq!(one.logins(&name.key(), None, 10, &[]).await.unwrap(), []);
}

async fn logins_are_listed_newest_first_and_per_account(one: &dyn DataStore, other: &dyn DataStore) {
    let ann: UserName = fresh_name().parse().unwrap();
    let ben: UserName = fresh_name().parse().unwrap();
    let mut logins: Vec<Login> = (0..5).map(|n| login(&ann, 1_000 + n / 2, n % 2 == 0)).collect();
    for login in &logins {
        one.record_login(login).await.unwrap();
        other.record_login(login).await.unwrap();
    }
    let of_ben = login(&ben, 1_001, true);
    one.record_login(&of_ben).await.unwrap();
    logins.sort_by_key(|login| std::cmp::Reverse(login.cursor()));
    // A row of another account is named, and must not be listed because of that.
    let own: Vec<_> = logins.iter().chain([&of_ben]).map(Login::cursor).collect();

    assert_eq!(other.logins(&ann.key(), None, 10, &own).await.unwrap(), logins);
    let first = other.logins(&ann.key(), None, 2, &own).await.unwrap();
    assert_eq!(first, logins[..2]);
    let cursor = first[1].cursor();
    assert_eq!(one.logins(&ann.key(), Some(cursor), 10, &own).await.unwrap(), logins[2..]);
}

async fn posts_page_through_without_gaps_or_repeats(one: &dyn DataStore, other: &dyn DataStore) {
    let author: UserName = fresh_name().parse().unwrap();
    // Far in the future, so that existing rows come after these.
    let base = Millis::now().0 + 10_000_000_000;
    let mut posts: Vec<Post> = (0..7).map(|n| post(&author, base + n / 3)).collect();
    for post in &posts {
        one.add_post(post).await.unwrap();
        assert!(
            other.posts(None, 50, &[post.cursor()]).await.unwrap().contains(post),
            "the author finds a finished post anywhere"
        );
    }
    posts.sort_by_key(|post| std::cmp::Reverse(post.cursor()));
    let own: Vec<_> = posts.iter().map(Post::cursor).collect();

    let mut seen = Vec::new();
    let mut after = None;
    while seen.len() < posts.len() {
        let page = other.posts(after, 3, &own).await.unwrap();
        after = page.last().map(Post::cursor);
        assert!(after.is_some(), "the list ended before all posts were seen");
        seen.extend(page.into_iter().filter(|post| post.author == author));
    }
    assert_eq!(seen, posts);
}

async fn repeating_a_post_changes_nothing(one: &dyn DataStore, other: &dyn DataStore) {
    let author: UserName = fresh_name().parse().unwrap();
    let first = post(&author, Millis::now().0 + 20_000_000_000);
    let again = Post { text: "changed".into(), ..first.clone() };
    one.add_post(&first).await.unwrap();
    other.add_post(&again).await.unwrap();
    let posts = one.posts(None, 50, &[first.cursor(), again.cursor()]).await.unwrap();
    let kept: Vec<_> = posts.iter().filter(|post| post.id == first.id).collect();
    assert_eq!(kept, [&first]);
}

async fn text_comes_back_as_it_went_in(one: &dyn DataStore, other: &dyn DataStore) {
    let author: UserName = fresh_name().parse().unwrap();
    let mut odd = post(&author, Millis::now().0 + 30_000_000_000);
    odd.text = "'; DROP TABLE posts; -- \u{1f6f6}\r\n<b>\"$1\"</b> ?".repeat(40);
    odd.picture = Some(Picture {
        name: format!("{}.png", "ab".repeat(32)).parse().unwrap(),
        alt: "quote \" and 'apostrophe'".into(),
        width: 1,
        height: u32::from(u16::MAX),
    });
    one.add_post(&odd).await.unwrap();
    assert!(other.posts(None, 50, &[odd.cursor()]).await.unwrap().contains(&odd));
}

fn fresh_name() -> String {
    format!("n{}", &Uuid::new_v4().simple().to_string()[..24])
}

fn user(name: &str) -> User {
    User {
        id: Uuid::now_v7(),
        name: name.parse().unwrap(),
        password_hash: "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA".into(),
        created: Millis::now(),
    }
}

fn login(name: &UserName, at_ms: i64, succeeded: bool) -> Login {
    Login {
        id: Uuid::now_v7(),
        user: name.key(),
        at: Millis(at_ms),
        address: if succeeded { [192, 0, 2, 7].into() } else { "2001:db8::7".parse().unwrap() },
        instance: "web1".into(),
        succeeded,
    }
}

fn post(author: &UserName, created_ms: i64) -> Post {
    Post {
        id: Uuid::now_v7(),
        created: Millis(created_ms),
        author: author.clone(),
        text: "Hello".into(),
        picture: None,
    }
}
