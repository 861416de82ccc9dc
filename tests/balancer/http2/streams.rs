//! The streams of a connection do not wait for each other: a response that pauses, an upload that its backend does not
//! read, a client that does not read or cancels hold up no other stream, and keep no backend.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tests::http2::{self, Http2, reply, request};
use tests::{Balancer, Origin, Pool, Port, Step, eventually, response, within};

use super::config;

// Their backends had paused in the midst of their responses, and held all the turns that there are: nothing moved until
// one of them went on.
#[tokio::test]
async fn responses_that_pause_do_not_block_others() {
    let a = Origin::start("a").await;
    a.answer(|request| match request.target.strip_prefix("/pauses/") {
        Some(size) => {
            let size: usize = size.parse().expect("a number");
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = [format!("{size:x}\r\n").as_bytes(), &vec![b'x'; size], b"\r\n"].concat();
            vec![Step::Send([head.as_bytes(), &chunk].concat()), Step::Hold, Step::Send(b"0\r\n\r\n".to_vec())]
        }
        None => vec![Step::Send(response(200, &[], vec![b'x'; 200_000]))],
    });
    let balancer = Balancer::start(config([&a]).server("threads = 1")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    // All of the connection's window, which the client opens no further for now.
    let mut pausing = Vec::new();
    for size in [16_383, 16_383, 16_383, 16_383, 3] {
        let (answer, _) = client.begin(request("GET", &format!("/pauses/{size}"), &[]), true).await;
        let mut content = within("a response", answer).await.expect("a response").into_body();
        let mut came = 0;
        while came < size {
            came += within("content", content.data()).await.expect("more").expect("content").len();
        }
        pausing.push((content, came));
    }
    for (content, came) in &mut pausing {
        content.flow_control().release_capacity(*came).expect("an open stream");
    }
    assert_eq!(client.get("/").await.body.len(), 200_000);
    a.release();
    for (mut content, _) in pausing {
        while let Some(rest) = within("the end", content.data()).await {
            assert!(rest.expect("an orderly end").is_empty());
        }
    }
}

// Forty of them used to leave no window to the rest of their connection, for as long as `write_timeout` after the
// client had reset them.
#[tokio::test]
async fn uploads_that_backends_do_not_read_block_no_others() {
    let a = Origin::start("a").await;
    let port = Port::reserve();
    let _never_read = port.listen_with_small_buffers();
    let stuck = Pool::empty("stuck").backend(&port.address().to_string(), "").without_ejection();
    let config = config([&a]).pool(stuck).route("", "/", "app").route("", "/stuck", "stuck");
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect(balancer.address()).await;
    let mut uploads = Vec::new();
    for _ in 0..40 {
        let (answer, mut body) = client.begin(request("POST", "/stuck", &[]), false).await;
        body.send_data(Bytes::from(vec![b'x'; 1 << 20]), false).expect("an open stream");
        uploads.push((answer, body));
    }
    // Until the buffers are full: too short a pause would hide the fault, never make one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (answer, mut body) = client.begin(request("POST", "/", &[]), false).await;
    body.send_data(Bytes::from(vec![b'y'; 256 << 10]), true).expect("an open stream");
    assert_eq!(reply(answer).await.expect("a response").status, 200);
    for (_, body) in &mut uploads {
        body.send_reset(Reason::CANCEL);
    }
    balancer.until_idle().await;
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn a_large_response_does_not_block_a_small_one() {
    let a = Origin::start("a").await;
    a.answer(|request| {
        vec![Step::Send(response(200, &[], vec![b'x'; if request.target == "/" { 10 } else { 64 << 20 }]))]
    });
    let balancer = Balancer::start(config([&a])).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/large", &[]), true).await;
    let (_, mut body) = within("a response", answer).await.expect("a response").into_parts();
    let large = tokio::spawn(async move {
        let mut received = 0;
        while let Some(data) = body.data().await {
            received += data.expect("content").len();
        }
        received
    });
    assert_eq!(client.get("/").await.body.len(), 10);
    assert!(!large.is_finished(), "the small one came behind the large one");
    assert_eq!(large.await.expect("no panic"), 64 << 20);
}

// It used to be noticed when the backend read on, or after `write_timeout`.
#[tokio::test]
async fn a_cancelled_upload_that_the_backend_does_not_read_is_noticed() {
    let a = Origin::start("a").await;
    a.at_head(|_| vec![Step::Hold]);
    let balancer = Balancer::start(config([&a]).listener("max_body_bytes = 100000000")).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, mut upload) = client.begin(request("POST", "/", &[]), false).await;
    // More than the buffers on the way hold.
    upload.send_data(vec![b'x'; 50_000_000].into(), false).expect("an open stream");
    eventually("the head arrived", async || a.heads() == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    upload.send_reset(Reason::CANCEL);
    drop(answer);
    balancer.until_idle().await;
}

// The lease used to be kept until the refusal was written.
#[tokio::test]
async fn an_unread_refusal_holds_no_backend() {
    let a = Origin::start("a").await;
    a.at_head(|_| vec![Step::Hold]);
    let balancer = Balancer::start(config([&a]).listener("max_body_bytes = 100000\nsend_timeout = \"1h\"")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut client = Http2::over(tests::http2::connect(balancer.address()).await, builder).await;
    let (answer, mut upload) = client.begin(request("POST", "/", &[]), false).await;
    eventually("the head arrived", async || a.heads() == 1).await;
    upload.send_data(vec![b'x'; 200_000].into(), false).expect("an open stream");
    let answer = within("a head", answer).await.expect("a response");
    assert_eq!(answer.status(), 413);
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_cancelled_request_frees_its_backend_and_cancels_are_bounded() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).app(Pool::without_ejection)).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, mut stream) = client.begin(request("GET", "/hold", &[]), true).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    eventually("the backend is left", async || a.abandoned() == 1).await;
    balancer.until_idle().await;
    assert_eq!(client.get("/").await.status, 200);

    let cancelling = async {
        // Many at once: over time, some are forgiven.
        'connected: loop {
            let mut begun = Vec::new();
            for _ in 0..20 {
                let Ok(mut sender) = client.sender.clone().ready().await else { break 'connected };
                let Ok(one) = sender.send_request(request("GET", "/hold", &[]), true) else { break 'connected };
                begun.push(one);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            for (_, mut stream) in begun {
                stream.send_reset(Reason::CANCEL);
            }
        }
    };
    within("the end of a connection that cancels everything", cancelling).await;
    let error = client.closed().await.expect_err("an end with a reason");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
}
