//! What a client of another implementation says is what is understood, and the other way round: the `h2` crate, over a
//! connection in memory.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use evenkeel::http::h1::response::ResponseHead;
use evenkeel::http::h2::connection::{Connection, HeadKind, Received};
use evenkeel::http::h2::head;
use evenkeel::message::limits::Limits;
use evenkeel::message::{Method, Parsed};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

type Fields = Vec<(String, String)>;

/// One message: fields, content and trailers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    fields: Fields,
    content: Vec<u8>,
    trailers: Fields,
}

fn fields() -> impl Strategy<Value = Fields> {
    let name = prop_oneof![
        "x-[a-z0-9]{1,30}",
        Just("content-type".to_owned()),
        Just("etag".to_owned()),
        Just("set-cookie".to_owned()),
        Just("accept-encoding".to_owned()),
        Just("user-agent".to_owned()),
    ];
    vec((name, "[!-~]{0,40}|[!-~]{120,300}"), 0..12)
}

fn message() -> impl Strategy<Value = Message> {
    let content = prop_oneof![Just(0), 1..200_usize, 10_000..100_000_usize];
    let trailers = vec(("x-[a-z]{1,8}", "[!-~]{0,20}"), 0..3);
    (fields(), content, trailers).prop_map(|(fields, len, trailers)| {
        let content = (0..len).map(|n| (n % 251) as u8).collect();
        Message { fields, content, trailers }
    })
}

fn map(fields: &Fields) -> HeaderMap {
    let pair = |(name, value): &(String, String)| {
        (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
    };
    fields.iter().map(pair).collect()
}

/// Sorted, since a map has no order among names.
fn of_map(map: &HeaderMap) -> Fields {
    let pair =
        |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().expect("ASCII").to_owned());
    sorted(map.iter().map(pair).collect())
}

fn sorted(mut fields: Fields) -> Fields {
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields
}

fn of_lines(lines: &[u8]) -> Fields {
    let text = String::from_utf8(lines.to_vec()).expect("ASCII");
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    sorted(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Answers each request with the next of these messages; what the requests were.
async fn serve(mut io: DuplexStream, answers: Vec<Message>) -> Vec<Message> {
    let mut connection = Connection::new(1 << 20);
    let mut unread = Vec::new();
    let mut open: Vec<(u32, Message, usize, bool)> = Vec::new();
    let mut seen: Vec<Message> = Vec::new();
    let mut answers = answers.into_iter();
    loop {
        let (mut streams, mut at) = (std::mem::take(&mut open), 0);
        poll_fn(|cx| {
            while at < streams.len() {
                let (id, message, ..) = &mut streams[at];
                while let Poll::Ready(Ok(Received::Bytes(count))) = connection.poll_content(*id, cx) {
                    connection.take_content(*id, count, |content| message.content.extend_from_slice(content));
                }
                at += 1;
            }
            Poll::Ready(())
        })
        .await;
        for (id, mut request, sent, has_head) in streams {
            let answer = answers.as_slice()[0].clone();
            let ended =
                poll_fn(|cx| Poll::Ready(connection.poll_content(id, cx) == Poll::Ready(Ok(Received::End)))).await;
            if !ended {
                open.push((id, request, sent, has_head));
                continue;
            }
            if !has_head {
                request.trailers = of_lines(&connection.take_trailers(id));
                let lines: String = answer.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let text = format!("HTTP/1.1 203 Text\r\n{lines}\r\n");
                let mut head = ResponseHead::default();
                let parsed = head.parse(text.as_bytes(), Method::Get, &Limits::LARGEST);
                assert_eq!(parsed, Parsed::Complete(text.len()));
                connection
                    .send_head(id, HeadKind::Response, false, |out| head::write_response(&head, text.as_bytes(), out));
            }
            let mut sent = sent;
            while sent < answer.content.len() {
                let window = poll_fn(|cx| Poll::Ready(connection.poll_window(id, cx))).await;
                let Poll::Ready(Ok(most)) = window else { break };
                let count = most.min(answer.content.len() - sent).min(7_000);
                let start = connection.begin_content();
                connection.content().extend_from_slice(&answer.content[sent..sent + count]);
                connection.end_content(start, id, false);
                sent += count;
            }
            if sent < answer.content.len() {
                open.push((id, request, sent, true));
                continue;
            }
            let lines: String = answer.trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            if lines.is_empty() {
                let start = connection.begin_content();
                connection.end_content(start, id, true);
            } else {
                connection.send_trailers(id, |out| head::write_trailers(lines.as_bytes(), out));
            }
            connection.leave(id);
            answers.next();
            seen.push(request);
        }
        while !connection.unsent().is_empty() {
            let count = connection.unsent().len().min(5_000);
            if io.write_all(&connection.unsent()[..count]).await.is_err() {
                return seen;
            }
            connection.sent(count);
        }
        let is_waiting = open.iter().all(|(.., has_head)| !has_head);
        let has_room =
            poll_fn(|cx| Poll::Ready(open.first().is_some_and(|&(id, ..)| connection.poll_window(id, cx).is_ready())))
                .await;
        if !is_waiting && has_room {
            continue;
        }
        if io.read_buf(&mut unread).await.unwrap_or_default() == 0 {
            return seen;
        }
        let used = connection.receive(&unread);
        unread.drain(..used);
        assert_eq!(connection.error(), None);
        while let Some((id, request)) = connection.next_request() {
            let (line, lines) =
                request.text.split_at(request.text.iter().position(|&b| b == b'\n').expect("a line") + 1);
            assert_eq!(line, b"POST /x?y HTTP/1.1\r\n");
            open.push((id, Message { fields: of_lines(lines), content: Vec::new(), trailers: Vec::new() }, 0, false));
        }
    }
}

/// Sends each request, and what its answer was.
async fn ask(io: DuplexStream, requests: Vec<Message>, window: u32) -> Vec<Message> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).header_table_size(window % 5_000);
    let (mut sender, driver) = builder.handshake::<_, Bytes>(io).await.expect("a handshake");
    let driver = tokio::spawn(driver);
    let mut answers = Vec::new();
    for message in requests {
        let mut request = Request::post("https://a.example/x?y").body(()).expect("a request");
        *request.headers_mut() = map(&message.fields);
        sender = sender.ready().await.expect("an open connection");
        let (answer, mut body) = sender.send_request(request, false).expect("a request");
        body.send_data(message.content.into(), message.trailers.is_empty()).expect("an open stream");
        if !message.trailers.is_empty() {
            body.send_trailers(map(&message.trailers)).expect("an open stream");
        }
        let (parts, mut body) = answer.await.expect("an answer").into_parts();
        assert_eq!(parts.status, 203);
        let mut content = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.expect("content");
            content.extend_from_slice(&data);
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = body.trailers().await.expect("an end").as_ref().map_or_else(Vec::new, of_map);
        answers.push(Message { fields: of_map(&parts.headers), content, trailers });
    }
    drop(sender);
    driver.abort();
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_are_what_the_other_side_meant(
        messages in vec((message(), message()), 1..6),
        window in prop_oneof![1_000..3_000_u32, Just(65_535), Just(1 << 20)],
    ) {
        let (requests, answers): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (seen, came) = runtime.block_on(async {
            let (client, server) = tokio::io::duplex(9_000);
            let served = tokio::spawn(serve(server, answers.clone()));
            let came = ask(client, requests.clone(), window).await;
            (served.await.expect("no panic"), came)
        });
        let own = [("host".to_owned(), "a.example".to_owned()), ("transfer-encoding".to_owned(), "chunked".to_owned())];
        for (seen, request) in seen.iter().zip(&requests) {
            let fields = request.fields.iter().chain(&own).cloned().collect();
            prop_assert_eq!(&seen.fields, &sorted(fields));
            prop_assert_eq!(&seen.content, &request.content);
            prop_assert_eq!(&seen.trailers, &sorted(request.trailers.clone()));
        }
        prop_assert_eq!(came.len(), answers.len());
        prop_assert_eq!(seen.len(), requests.len());
        for (came, answer) in came.iter().zip(&answers) {
            prop_assert_eq!(&came.fields, &sorted(answer.fields.clone()));
            prop_assert_eq!(&came.content, &answer.content);
            prop_assert_eq!(&came.trailers, &sorted(answer.trailers.clone()));
        }
    }
}
