//! The cost of one exchange's heads: a browser's request and a typical response, parsed and rewritten.

mod samples;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use evenkeel::http::h1::head::RequestHead;
use evenkeel::http::h1::response::ResponseHead;
use evenkeel::http::h1::rewrite::{self, Persistence, RequestPlan, ResponsePlan};
use evenkeel::message::limits::Limits;
use evenkeel::message::{Method, Parsed, Version};
use samples::{REQUEST, RESPONSE};

fn request(c: &mut Criterion) {
    let limits = Limits::default();
    let changes = samples::changes();
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    let mut head = RequestHead::default();
    group.bench_function("parse", |b| {
        b.iter(|| {
            head.clear();
            assert!(matches!(head.parse(black_box(REQUEST), &limits), Parsed::Complete(_)));
        });
    });
    group.bench_function("httparse, for comparison", |b| {
        b.iter(|| {
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut fields);
            assert!(request.parse(black_box(REQUEST)).is_ok());
            black_box(request.headers.len())
        });
    });
    let mut out = Vec::with_capacity(4096);
    group.bench_function("rewrite", |b| {
        b.iter(|| {
            out.clear();
            rewrite::request(black_box(&head), REQUEST, &RequestPlan::new(&head, &changes), &mut out);
            black_box(out.as_slice());
        });
    });
    group.bench_function("parse+rewrite", |b| {
        b.iter(|| {
            head.clear();
            assert!(matches!(head.parse(black_box(REQUEST), &limits), Parsed::Complete(_)));
            out.clear();
            rewrite::request(&head, REQUEST, &RequestPlan::new(&head, &changes), &mut out);
            black_box(out.as_slice());
        });
    });
    group.finish();
}

fn response(c: &mut Criterion) {
    let limits = Limits::default();
    let mut group = c.benchmark_group("response");
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    let mut head = ResponseHead::default();
    group.bench_function("parse", |b| {
        b.iter(|| {
            head.clear();
            assert!(matches!(head.parse(black_box(RESPONSE), Method::Get, &limits), Parsed::Complete(_)));
        });
    });
    let mut out = Vec::with_capacity(4096);
    group.bench_function("parse+rewrite", |b| {
        b.iter(|| {
            head.clear();
            assert!(matches!(head.parse(black_box(RESPONSE), Method::Get, &limits), Parsed::Complete(_)));
            out.clear();
            let plan = ResponsePlan::new(&head, Version::Http11, Persistence::KeepAlive, &[]);
            rewrite::response(&head, RESPONSE, &plan, &mut out);
            black_box(out.as_slice());
        });
    });
    group.finish();
}

criterion_group!(heads, request, response);
criterion_main!(heads);
