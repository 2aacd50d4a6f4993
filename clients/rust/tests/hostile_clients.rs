//! Clients that break every rule: they are turned away with the reason, and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use isorun_channel::wire::{Body, Content, Failure, MAX_RELEASES, Message, Welcome, role};
use isorun_channel::{Endpoint, EndpointOptions, Error, Outgoing, Policy, Sharing, Tensor};
use rustix::fs::MemfdFlags;
use support::bad::{ALL, bad_descriptors, content, memfd};
use support::{LONG, Place, Raw, SHORT, descriptors, eventually, hello};

fn refused(raw: &Raw) -> (u16, String) {
    loop {
        match raw.hear().expect("a reason before the end").body {
            Body::Error(Failure {
                code,
                text,
                closes: true,
            }) => {
                assert!(raw.hear().is_none(), "and then the end");
                return (code, text);
            }
            Body::Welcome(_) | Body::Release(_) | Body::Tensor(_) => {}
            body => panic!("{body:?}"),
        }
    }
}

/// An endpoint with a good subscriber, which must get everything whatever others do.
struct Served {
    place: Place,
    endpoint: Endpoint,
    good: isorun_channel::Subscriber,
}

impl Served {
    fn new() -> Self {
        let place = Place::new();
        let options = EndpointOptions {
            handshake: Duration::from_millis(300),
            ..EndpointOptions::default()
        };
        let endpoint = place.channel.listen_with("e", options).unwrap();
        let good = place.channel.subscribe("e").unwrap();
        endpoint.wait_for_subscribers(1, LONG).unwrap();
        Self {
            place,
            endpoint,
            good,
        }
    }

    fn still_serves(&self) {
        let tensor = Tensor::copy_of(&[7_u8], &[1]).unwrap();
        self.endpoint.publish(&tensor).unwrap();
        let got = self.good.recv(LONG).unwrap().tensor.unwrap();
        assert_eq!(got.as_slice::<u8>().unwrap(), [7]);
        // The bad ones are gone.
        eventually("one peer is left", || self.endpoint.peers().len() == 1);
    }
}

#[test]
fn clients_that_send_garbage() {
    let served = Served::new();
    let good = |body: Body| {
        Message {
            sequence: 2,
            refers: 0,
            body,
        }
        .encode()
    };
    let mut long = good(Body::Ping);
    long.resize(5_000, 0);
    let mut version = good(Body::Ping);
    version[4] = 9;
    let garbage: Vec<(Vec<u8>, &str)> = vec![
        (vec![0xff; 100], "magic"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "magic"),
        (vec![b'I'], "header"),
        (good(Body::Ping)[..31].to_vec(), "length"),
        (long, "too long"),
        (version, "version 9"),
        (good(hello(1, 0)), "HELLO from a client"),
        (
            good(Body::Welcome(Welcome {
                version: 1,
                roles: 1,
                features: 0,
                credits: 1,
                queue: 0,
                policy: Policy::DropOldest,
            })),
            "WELCOME",
        ),
        (
            good(Body::Tensor(Content {
                tensor: None,
                lost: 0,
                tag: 0,
                name: String::new(),
                meta: Vec::new(),
            })),
            "TENSOR",
        ),
        (
            good(Body::Request(Content {
                tensor: None,
                lost: 0,
                tag: 0,
                name: String::new(),
                meta: Vec::new(),
            })),
            "no requester",
        ),
        (
            Message {
                sequence: 1,
                refers: 0,
                body: Body::Ping,
            }
            .encode(),
            "sequence",
        ),
    ];
    for (bytes, why) in &garbage {
        let raw = Raw::welcome(&served.place.path, "e", role::SUBSCRIBER, 0);
        if raw.send(bytes, &[]).is_ok() {
            let (_, text) = refused(&raw);
            // WELCOME without an answer's number is refused for that.
            assert!(
                text.contains(why) || text.contains("refers"),
                "{why}: {text}"
            );
        }
    }
    for (bytes, _) in &garbage {
        let raw = Raw::connect(&served.place.path, "e");
        raw.send(bytes, &[]).unwrap();
        // A HELLO and a WELCOME that are none, and one that is.
        if bytes[..] != good(hello(1, 0)) {
            assert_eq!(refused(&raw).0, 2);
        }
    }
    served.still_serves();
    assert!(!served.endpoint.refusals().is_empty());
}

#[test]
fn clients_of_another_version_or_without_a_word() {
    let served = Served::new();
    let mut raw = Raw::connect(&served.place.path, "e");
    let Body::Hello(mut hello) = hello(1, 0) else {
        unreachable!()
    };
    (hello.lowest, hello.highest) = (2, 7);
    raw.say(0, Body::Hello(hello), &[]).unwrap();
    let (code, text) = refused(&raw);
    assert_eq!(code, 1);
    assert!(text.contains("2 to 7") && text.contains("only 1"), "{text}");

    let silent = Raw::connect(&served.place.path, "e");
    let before = Instant::now();
    assert!(silent.hear().is_none());
    let took = before.elapsed();
    assert!(
        (Duration::from_millis(150)..LONG).contains(&took),
        "{took:?}"
    );
    served.still_serves();
}

#[test]
fn clients_with_descriptors_that_are_none() {
    let served = Served::new();
    for (number, (fd, sharing, why)) in bad_descriptors(&served.place).into_iter().enumerate() {
        let mut raw = Raw::welcome(&served.place.path, "e", role::REQUESTER, 0);
        let body = Body::Request(content(4096, &[4096], sharing));
        raw.say(0, body, &[fd.as_fd()]).unwrap();
        let (code, text) = refused(&raw);
        assert_eq!(code, 3, "{number}: {text}");
        assert!(text.contains(why), "{number}: {why}: {text}");
    }
    served.still_serves();
    assert!(matches!(
        served.endpoint.next_request(SHORT),
        Err(Error::TimedOut { .. })
    ));
}

#[test]
fn clients_with_too_many_descriptors_or_too_few() {
    let served = Served::new();
    let fd = memfd(4096, true, ALL, MemfdFlags::empty()).unwrap();
    let before = descriptors("memfd:hostile");
    let flood: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); 253];
    for count in [0, 2, 3, 253] {
        let mut raw = Raw::welcome(&served.place.path, "e", role::REQUESTER, 0);
        let body = Body::Request(content(4096, &[4096], Sharing::Immutable));
        raw.say(0, body, &flood[..count]).unwrap();
        let (code, text) = refused(&raw);
        assert!(code == 2 && text.contains("descriptors"), "{count}: {text}");
    }
    // Where none belongs.
    for body in [Body::Ping, Body::Release(vec![1])] {
        let mut raw = Raw::welcome(&served.place.path, "e", role::REQUESTER, 0);
        raw.say(0, body, &[fd.as_fd()]).unwrap();
        assert_eq!(refused(&raw).0, 2);
    }
    // A message of nothing but descriptors.
    let raw = Raw::welcome(&served.place.path, "e", role::REQUESTER, 0);
    raw.send(&[], &flood[..1]).unwrap();
    assert_eq!(refused(&raw).0, 2);
    served.still_serves();
    eventually("all are closed", || descriptors("memfd:hostile") <= before);
}

#[test]
fn clients_that_flood_and_do_not_read() {
    let served = Served::new();
    let fd = memfd(4096, true, ALL, MemfdFlags::empty()).unwrap();
    for roles in [role::SUBSCRIBER, role::REQUESTER] {
        let mut raw = Raw::welcome(&served.place.path, "e", roles, 0);
        rustix::io::ioctl_fionbio(&raw.socket, true).unwrap();
        let until = Instant::now() + Duration::from_millis(500);
        let mut sent = 0;
        while Instant::now() < until {
            let result = match roles {
                role::SUBSCRIBER => raw.say(0, Body::Release(vec![9; MAX_RELEASES]), &[]),
                _ => raw.say(
                    0,
                    Body::Request(content(4096, &[64], Sharing::Immutable)),
                    &[fd.as_fd()],
                ),
            };
            match result {
                Ok(()) => sent += 1,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::TOOMANYREFS) => raw.sequence -= 1,
                // It had enough of it.
                Err(_) => break,
            }
            if sent % 500 == 0 {
                let before = Instant::now();
                let tensor = Tensor::copy_of(&[7_u8], &[1]).unwrap();
                served.endpoint.publish(&tensor).unwrap();
                served.good.recv(LONG).unwrap();
                assert!(before.elapsed() < Duration::from_secs(5));
            }
        }
        assert!(sent > 200, "{sent}");
        drop(raw);
    }
    served.still_serves();
    eventually("nothing is kept", || descriptors("memfd:hostile") <= 1);
}

#[test]
fn requests_of_clients_that_have_gone() {
    let served = Served::new();
    let fd = memfd(4096, true, ALL, MemfdFlags::empty()).unwrap();
    for _ in 0..50 {
        let mut raw = Raw::welcome(&served.place.path, "e", role::REQUESTER, 4);
        for _ in 0..3 {
            let body = Body::Request(content(4096, &[64], Sharing::Immutable));
            raw.say(0, body, &[fd.as_fd()]).unwrap();
        }
        let first = served.endpoint.next_request(LONG).unwrap();
        drop(raw);
        // Whoever notices first that it has gone, this thread or the endpoint's own.
        let _ = first.reply(Outgoing::empty());
        eventually("it is gone", || served.endpoint.peers().len() == 1);
        let next = served.endpoint.next_request(Duration::ZERO);
        assert!(matches!(next, Err(Error::TimedOut { .. })));
    }
    served.still_serves();
}

#[test]
fn clients_that_never_read_what_is_published() {
    let served = Served::new();
    let _deaf: Vec<_> = (0..20)
        .map(|_| Raw::welcome(&served.place.path, "e", role::SUBSCRIBER, 256))
        .collect();
    served.endpoint.wait_for_subscribers(21, LONG).unwrap();
    let tensor = Tensor::copy_of(&[3_u8; 64], &[64]).unwrap();
    for number in 0..500 {
        served
            .endpoint
            .publish(Outgoing::from(&tensor).tag(number))
            .unwrap();
        assert_eq!(served.good.recv(LONG).unwrap().tag, number);
    }
}
