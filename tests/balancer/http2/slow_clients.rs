//! Time limits and minimum rates over HTTP/2: whoever sends or reads too slowly is disconnected, alone and without
//! blame for a backend; whoever is slow but moves is served.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use tests::deadline::is_acknowledgement_told;
use tests::http2::{
    self, Http2, PREFACE, frame, kind, literals, next_frame, reply, request, rest, tls, tls_over, write,
};
use tests::wire::narrow;
use tests::{Balancer, Config, End, Origin, Pool, Step, eventually, response, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{answers_by_size, config, half_a_head, requests, requests_in};

const SHORT_TIMEOUTS: &str = "header_timeout = \"300ms\"\nkeepalive_timeout = \"300ms\"\nbody_timeout = \"300ms\"";

#[tokio::test]
async fn silent_connections_are_closed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener(SHORT_TIMEOUTS)).await;
    let half_a_head = [PREFACE, &half_a_head(1)].concat();
    for sent in [&b""[..], b"PRI * HT", PREFACE, &half_a_head] {
        let mut client = http2::connect(balancer.address()).await;
        write(&mut client, sent).await;
        rest(&mut client).await;
    }
    let balancer = Balancer::start(config([&a]).listener("keepalive_timeout = \"300ms\"")).await;
    let mut client = Http2::connect(balancer.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    client.closed().await.expect("a friendly end");
}

// They had no limit for as long as another stream was served.
#[tokio::test]
async fn unfinished_requests_time_out_despite_other_streams() {
    let a = Origin::start("a").await;
    let limits = "header_timeout = \"300ms\"\nbody_timeout = \"500ms\"";
    let balancer = Balancer::start(config([&a]).listener(limits)).await;
    let held = [(":method", "GET"), (":scheme", "https"), (":path", "/hold"), (":authority", "x")];
    let held = frame(kind::HEADERS, 5, 1, &literals(&held));
    let ping = frame(kind::PING, 0, 0, b"8 bytes.");
    let upload = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let upload = frame(kind::HEADERS, 4, 3, &literals(&upload));
    let content = frame(kind::DATA, 0, 3, &[b'x'; 10_000]);
    // What is begun, and what may follow for good without an end of it.
    let begun: [(Vec<u8>, &[u8]); 4] = [
        (half_a_head(3), b""),
        (half_a_head(3), &frame(kind::CONTINUATION, 0, 3, &literals(&[("x", "y")]))),
        (ping[..10].to_vec(), b""),
        ([&upload[..], &content[..100]].concat(), b""),
    ];
    for (begun, more) in begun {
        let mut client = http2::connect(balancer.address()).await;
        write(&mut client, &[PREFACE, &held, &begun].concat()).await;
        let (mut from, mut to) = tokio::io::split(client);
        let dripping = async {
            while to.write_all(more).await.is_ok() && to.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        let goaway = async {
            tokio::select! {
                goaway = http2::frame_of(&mut from, kind::GOAWAY) => goaway,
                () = dripping => unreachable!("it never ends"),
            }
        };
        let goaway = within("a GOAWAY", goaway).await;
        assert_eq!(goaway.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{begun:?}");
    }
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0);
    let errors = balancer.metrics().await.sum("evenkeel_http2_connection_errors_total", &[("reason", "timeout")]);
    assert_eq!(errors, 4.0);
    balancer.logs(&["WARN", "timeout", "an HTTP/2 connection"]).await;
}

// A frame was no progress before all of it had come: it ended the upload, and the connection with all its streams.
#[tokio::test]
async fn part_of_a_large_data_frame_counts_as_progress() {
    let a = Origin::start("a").await;
    let limits = "header_timeout = \"1s\"\nbody_timeout = \"1s\"";
    let balancer = Balancer::start(config([&a]).listener(limits)).await;
    let mut client = http2::connect(balancer.address()).await;
    let fields = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    write(&mut client, &[PREFACE, &frame(kind::HEADERS, 4, 1, &literals(&fields))].concat()).await;
    let content = frame(kind::DATA, 1, 1, &[b'x'; 16_000]);
    for piece in content.chunks(1_000) {
        write(&mut client, piece).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = async {
        loop {
            let frame = next_frame(&mut client).await.expect("a frame");
            if frame.stream == 1 {
                break frame;
            }
        }
    };
    let answer = within("an answer", answer).await;
    // HPACK's number for ":status 200".
    assert_eq!((answer.kind, answer.payload[0]), (kind::HEADERS, 0x88), "{answer:?}");
    assert_eq!(a.last_request().body.len(), 16_000);
}

#[tokio::test]
async fn pings_do_not_keep_a_connection_open() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener(SHORT_TIMEOUTS)).await;
    let mut client = http2::connect(balancer.address()).await;
    write(&mut client, PREFACE).await;
    let pinging = async {
        while client.write_all(&frame(kind::PING, 0, 0, b"8 bytes.")).await.is_ok() && client.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of a connection that only pings", pinging).await;
}

#[tokio::test]
async fn uploads_that_never_end_count_only_against_their_clients() {
    let origins = Origin::several(["a", "b"]).await;
    let pool = Pool::of("app", &origins).ejection("consecutive_failures = 1");
    let settings = format!("{}\n{SHORT_TIMEOUTS}", tls());
    let balancer = Balancer::start(Config::default().pool(pool).listener(&settings)).await;
    let mut client = Http2::connect(balancer.address()).await;
    let mut uploads = Vec::new();
    for count in 0..100 {
        // Small ones are read before a backend is chosen; the others are under way to one.
        let length = if count % 2 == 0 { "10" } else { "1000000" };
        let (answer, mut body) = client.begin(request("POST", "/", &[("content-length", length)]), false).await;
        body.send_data(Bytes::from_static(b"begun"), false).expect("an open stream");
        uploads.push((answer, body));
    }
    for (answer, _body) in uploads {
        if let Ok(answer) = reply(answer).await {
            assert_eq!(answer.status, 408);
        }
    }
    balancer.until_idle().await;
    for origin in &origins {
        assert_eq!(balancer.backend(origin).await["failures"], 0);
        balancer.sees(origin, "healthy").await;
    }
}

// `min_rate` used to hold for HTTP/1.1 alone.
#[tokio::test]
async fn a_stream_is_as_slow_as_its_whole_connection() {
    let a = Origin::start("a").await;
    // Far more than the rate demands, however slow the machine is.
    a.answer_with(response(200, &[], vec![b'x'; 10_000]));
    let balancer = Balancer::start(config([&a]).listener("min_rate = 1000")).await;
    let drip = async |is_busy: bool| {
        let mut client = Http2::connect(balancer.address()).await;
        let (answer, mut upload) = client.begin(request("POST", "/", &[]), false).await;
        let answering = tokio::spawn(reply(answer));
        let begun = Instant::now();
        // Longer than the grace.
        while !answering.is_finished() && begun.elapsed() < Duration::from_secs(8) {
            let _ = upload.send_data(Bytes::from_static(b"x"), false);
            if is_busy {
                assert_eq!(client.get("/").await.status, 200);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let _ = upload.send_data(Bytes::new(), true);
        answering.await.expect("no panic").expect("a response").status
    };
    let (alone, busy) = tokio::join!(drip(false), drip(true));
    assert_eq!((alone, busy), (408, 200));
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0, "the client's fault, not the backend's");
}

// PINGs, or responses on other streams, used to keep it open for good.
#[tokio::test]
async fn a_stream_whose_window_stays_shut_ends_despite_other_traffic() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"500ms\"")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let mut content = within("a head", answer).await.expect("a response").into_body();
    let ended = tokio::spawn(async move { content.data().await });
    let busy = async {
        while !ended.is_finished() {
            let (answer, _) = client.begin(request("HEAD", "/", &[]), true).await;
            assert_eq!(answer.await.expect("a response").status(), 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of the stream", busy).await;
    let Ok(Some(Err(reset))) = ended.await else { panic!("content that no window was opened for") };
    assert!(reset.is_reset(), "{reset}");
    let mut client = http2::connect(balancer.address()).await;
    let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let asked = frame(kind::HEADERS, 5, 1, &literals(&fields));
    write(&mut client, &[PREFACE, &settings, &asked].concat()).await;
    let (mut reading, mut writing) = tokio::io::split(client);
    let reset = tokio::spawn(async move { http2::frame_of(&mut reading, kind::RST_STREAM).await });
    let pinging = async {
        while !reset.is_finished() {
            write(&mut writing, &frame(kind::PING, 0, 0, b"8 bytes.")).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("a reset", pinging).await;
}

// A byte of window renewed `send_timeout`, and `min_rate` was asked of all streams together.
#[tokio::test]
async fn a_stream_whose_window_opens_too_slowly_ends_despite_other_traffic() {
    let a = Origin::start("a").await;
    a.answer(|request| match request.method.as_str() {
        "HEAD" => vec![Step::Send(response(204, &[], ""))],
        _ => vec![Step::Send(response(200, &[], vec![b'x'; 10_000]))],
    });
    let balancer = Balancer::start(config([&a]).listener("min_rate = 1000")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let mut content = within("a head", answer).await.expect("a response").into_body();
    let sipping = tokio::spawn(async move {
        while let Some(data) = content.data().await {
            let sip = data?.len();
            tokio::time::sleep(Duration::from_millis(100)).await;
            content.flow_control().release_capacity(sip)?;
        }
        Ok::<_, h2::Error>(())
    });
    let busy = async {
        while !sipping.is_finished() {
            let (answer, _) = client.begin(request("HEAD", "/", &[]), true).await;
            assert_eq!(answer.await.expect("a response").status(), 204);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of the stream", busy).await;
    let reset = sipping.await.expect("no panic").expect_err("content that is taken too slowly");
    assert!(reset.is_reset(), "{reset}");
}

// Each byte of the connection's window was progress of all streams that waited for it.
#[tokio::test]
async fn streams_end_whose_connection_opens_its_window_by_single_bytes() {
    // By the second setting all of them do. By the first as many are left as get a byte in this time.
    let drip = async |limits: &str, ended: usize| {
        let a = Origin::start("a").await;
        answers_by_size(&a);
        let balancer = Balancer::start(config([&a]).listener(limits)).await;
        let client = http2::connect(balancer.address()).await;
        let (mut reading, mut writing) = tokio::io::split(client);
        write(&mut writing, &requests_in(100, 1 << 20, None)).await;
        let resets = tokio::spawn(async move {
            for _ in 0..ended {
                http2::frame_of(&mut reading, kind::RST_STREAM).await;
            }
        });
        let dripping = async {
            while !resets.is_finished() {
                write(&mut writing, &frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        within("the end of the streams", dripping).await;
        resets.await.expect("no panic");
        let left = 100 - ended as u64;
        eventually("their backends are free", async || balancer.in_flight().await <= left).await;
    };
    tokio::join!(drip("send_timeout = \"500ms\"\nmin_rate = 0", 80), drip("min_rate = 1000000", 100));
}

// What other streams had sent in the meantime must not be counted against one whose turn has not come.
#[tokio::test]
async fn streams_that_wait_for_the_turns_of_others_are_not_slow() {
    const WINDOW: u32 = 64_000;
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"2s\"\nmin_rate = 1000")).await;
    let client = http2::connect(balancer.address()).await;
    let (mut reading, mut writing) = tokio::io::split(client);
    write(&mut writing, &requests_in(100, 40_000, None)).await;
    let came = tokio::spawn(async move {
        let mut came = 0;
        while came < 100 * 40_000 {
            let frame = next_frame(&mut reading).await.expect("an open connection");
            assert_ne!(frame.kind, kind::RST_STREAM, "after {came} bytes");
            came += if frame.kind == kind::DATA { frame.payload.len() } else { 0 };
        }
    });
    // A frame for each of them takes longer than `send_timeout`.
    let opening = async {
        while !came.is_finished() {
            write(&mut writing, &frame(kind::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes())).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("all content", opening).await;
    came.await.expect("all content");
}

// The system calls a socket writable once a third of what it buffers has gone: until then nothing was written, and the
// client was taken for one that does not read.
#[tokio::test]
async fn a_client_that_reads_slowly_and_steadily_is_served_however_much_is_buffered() {
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"2s\"")).await;
    let mut client = http2::connect(balancer.address()).await;
    let size = 40_000_000;
    write(&mut client, &requests(1, size)).await;
    let (begun, mut came) = (Instant::now(), 0);
    let reading = async {
        while came < size {
            let mut sip = vec![0; if begun.elapsed() < Duration::from_secs(8) { 10_000 } else { 100_000 }];
            match client.read(&mut sip).await {
                Ok(count @ 1..) => came += count,
                _ => break,
            }
            if sip.len() == 10_000 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    within("all of it", reading).await;
    assert!(came >= size, "{came} bytes came in {:?}", begun.elapsed());
}

/// A connection is not idle while a response is on its way, however long that takes.
#[tokio::test]
async fn the_rest_of_a_response_to_a_slow_reader_is_not_cut_off() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener("keepalive_timeout = \"100ms\"")).await;
    let content = vec![b'x'; 40_000];
    a.answer_with(response(200, &[], &content));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1000).initial_connection_window_size(1000);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let answer = within("a response", answer).await.expect("a response");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let reply = http2::whole(answer).await;
    assert_eq!((reply.end, reply.body.len()), (End::Complete, content.len()));
}

// Once all of them were in buffers, the client had `keepalive_timeout` and `send_timeout` for everything; and a stream
// had `send_timeout` until its turn came, whatever the client took meanwhile.
#[tokio::test]
async fn a_client_that_reads_slowly_and_without_pause_has_all_responses() {
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let settings = format!("{}\nkeepalive_timeout = \"200ms\"\nsend_timeout = \"1500ms\"", tls());
    let balancer = Balancer::start(Config::of([&a]).listener(&settings)).await;
    // What fits into the buffer of a stream, and what does not. It is read so fast that a third of a full send buffer
    // takes less than the limit: the system reports no less as progress.
    let buffered = read_in_sips(&balancer, 50, 60_000);
    let streaming = read_in_sips(&balancer, 100, 80_000);
    tokio::join!(buffered, streaming);
}

/// Asks for so many responses of so many bytes at once. For a time they are read slowly, then they all have to come.
async fn read_in_sips(balancer: &Balancer, count: u32, size: usize) {
    const BYTES_PER_SECOND: f64 = 800_000.0;
    let mut client = tls_over(b"h2", narrow(balancer.address(), 1400).await).await.expect("a handshake");
    write(&mut client, &requests(count, size)).await;
    let (begun, mut came) = (Instant::now(), 0);
    let reading = async {
        while came < count as usize * size {
            match client.read(&mut [0; 16_000]).await {
                Ok(count @ 1..) => came += count,
                _ => break,
            }
            if begun.elapsed() < Duration::from_secs(4) {
                // Not by equal pauses: on a busy machine they take longer.
                let due = begun + Duration::from_secs_f64(came as f64 / BYTES_PER_SECOND);
                tokio::time::sleep_until(due.into()).await;
            }
        }
    };
    within("all of it", reading).await;
    assert!(came >= count as usize * size, "{came} of {count} * {size} bytes came in {:?}", begun.elapsed());
}
