//! Listeners that break every rule: a client refuses what they send, and names it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use isorun_channel::wire::{Body, Content, Message, Welcome, feature, role};
use isorun_channel::{Channel, ConnectOptions, Error, Policy, Sharing};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use support::bad::{ALL, bad_descriptors, content, memfd};
use support::{LONG, Place, SHORT, descriptors, eventually, send};

/// A listener that says what it likes.
struct Fake {
    place: Place,
    listener: OwnedFd,
}

impl Fake {
    fn new() -> Self {
        let place = Place::new();
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = SocketAddrUnix::new(place.path.join("e.sock")).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        Self { place, listener }
    }

    /// Accepts, takes HELLO, and welcomes.
    fn welcome(&self) -> OwnedFd {
        self.welcome_as(role::SUBSCRIBER, 0, 1)
    }

    fn welcome_as(&self, roles: u32, features: u64, sequence: u64) -> OwnedFd {
        let socket = rustix::net::accept(&self.listener).unwrap();
        let mut bytes = [0_u8; 4096];
        rustix::net::recv(&socket, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
        let welcome = Welcome {
            version: 1,
            roles,
            features,
            credits: 4,
            queue: 0,
            policy: Policy::DropOldest,
        };
        let message = Message {
            sequence,
            refers: 1,
            body: Body::Welcome(welcome),
        };
        send(socket.as_fd(), &message.encode(), &[]).unwrap();
        socket
    }

    /// What a subscriber makes of a message.
    fn try_on(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Error {
        let channel = self.place.channel.clone();
        std::thread::scope(|scope| {
            let subscriber = scope.spawn(move || {
                let subscriber = channel.subscribe("e").unwrap();
                let error = subscriber.recv(LONG).map(drop).expect_err("refused");
                // And it stays so.
                assert!(matches!(subscriber.recv(LONG), Err(Error::Closed(_))));
                error
            });
            let socket = self.welcome();
            send(socket.as_fd(), bytes, descriptors).unwrap();
            subscriber.join().unwrap()
        })
    }
}

fn tensor_message(content: Content) -> Vec<u8> {
    Message {
        sequence: 2,
        refers: 0,
        body: Body::Tensor(content),
    }
    .encode()
}

#[test]
fn listeners_with_descriptors_that_are_none() {
    let fake = Fake::new();
    let elsewhere = Place::new();
    for (number, (fd, sharing, why)) in bad_descriptors(&elsewhere).into_iter().enumerate() {
        let error = fake.try_on(
            &tensor_message(content(4096, &[4096], sharing)),
            &[fd.as_fd()],
        );
        assert!(matches!(error, Error::Descriptor(_)), "{number}: {error}");
        assert!(error.to_string().contains(why), "{number}: {why}: {error}");
    }
    let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    match memfd(2 << 20, false, ALL, huge) {
        Ok(fd) => {
            let error = fake.try_on(
                &tensor_message(content(2 << 20, &[64], Sharing::Immutable)),
                &[fd.as_fd()],
            );
            assert!(error.to_string().contains("ordinary pages"), "{error}");
        }
        Err(errno) => support::skip(&format!("a memfd of huge pages: {errno}")),
    }
    eventually("all are closed", || descriptors("memfd:hostile") == 0);
}

#[test]
fn listeners_with_layouts_that_reach_outside() {
    let fake = Fake::new();
    let fd = memfd(4096, true, ALL, MemfdFlags::empty()).unwrap();
    let good = tensor_message(content(4096, &[4096], Sharing::Immutable));
    // At which byte, what.
    let changes: &[(usize, &[u8])] = &[
        (48, &[1]),
        (48, &[0xff; 8]),
        (80, &[1, 0x10]),
        (80, &[0xff; 8]),
        (88, &[2]),
        (88, &[0xff; 8]),
        (32, &[12]),
        (32, &[99]),
        (34, &[2]),
        (34, &[33]),
        (56, &[0xff; 8]),
        (37, &[1]),
    ];
    for (at, bytes) in changes {
        let mut bad = good.clone();
        bad[*at..at + bytes.len()].copy_from_slice(bytes);
        let error = fake.try_on(&bad, &[fd.as_fd()]);
        assert!(
            matches!(error, Error::Malformed(_)),
            "{bytes:?} at {at}: {error}"
        );
    }
    for count in [0, 2, 253] {
        let error = fake.try_on(&good, &vec![fd.as_fd(); count]);
        assert!(matches!(error, Error::Malformed(_)), "{count}: {error}");
    }
    assert!(matches!(fake.try_on(&[0; 64], &[]), Error::Malformed(_)));
    assert!(matches!(
        fake.try_on(&vec![0; 9_000], &[]),
        Error::Malformed(_)
    ));
    let request = Message {
        sequence: 2,
        refers: 0,
        body: Body::Request(Content {
            tensor: None,
            lost: 0,
            tag: 0,
            name: String::new(),
            meta: Vec::new(),
        }),
    };
    assert!(matches!(
        fake.try_on(&request.encode(), &[]),
        Error::Malformed(_)
    ));
}

#[test]
fn a_shared_buffer_that_is_kept_is_still_checked() {
    let fake = Fake::new();
    let future = (ALL - SealFlags::WRITE) | SealFlags::FUTURE_WRITE;
    let fd = memfd(4096, true, future, MemfdFlags::empty()).unwrap();
    let channel = fake.place.channel.clone();
    std::thread::scope(|scope| {
        let subscriber = scope.spawn(move || {
            let subscriber = channel.subscribe("e").unwrap();
            let first = subscriber.recv(LONG).unwrap().tensor.unwrap();
            let second = subscriber.recv(LONG).unwrap().tensor.unwrap();
            assert_eq!(first.as_ptr(), second.as_ptr());
            let error = subscriber.recv(LONG).map(drop).expect_err("another size");
            assert!(matches!(error, Error::Descriptor(_)), "{error}");
        });
        let socket = fake.welcome();
        for (sequence, size) in [(2, 4096), (3, 4096), (4, 8192)] {
            let body = Body::Tensor(content(size, &[64], Sharing::Shared));
            let message = Message {
                sequence,
                refers: 0,
                body,
            };
            send(socket.as_fd(), &message.encode(), &[fd.as_fd()]).unwrap();
        }
        subscriber.join().unwrap();
    });
}

#[test]
fn listeners_that_welcome_somebody_else() {
    let fake = Fake::new();
    let good = Welcome {
        version: 1,
        roles: 1,
        features: 0,
        credits: 2,
        queue: 0,
        policy: Policy::DropOldest,
    };
    let wrong = [
        (Welcome { version: 2, ..good }, 1),
        (Welcome { roles: 2, ..good }, 1),
        (Welcome { roles: 3, ..good }, 1),
        (
            Welcome {
                features: 1,
                ..good
            },
            1,
        ),
        (Welcome { credits: 3, ..good }, 1),
        (Welcome { queue: 1, ..good }, 1),
        (good, 7),
        (good, 1),
    ];
    let last = wrong.len() - 1;
    for (number, (welcome, refers)) in wrong.into_iter().enumerate() {
        let channel = fake.place.channel.clone();
        std::thread::scope(|scope| {
            let subscriber = scope.spawn(move || {
                let options = ConnectOptions {
                    credits: 2,
                    queue: Some(0),
                    ..ConnectOptions::default()
                };
                channel.subscribe_with("e", &options).map(drop)
            });
            let socket = rustix::net::accept(&fake.listener).unwrap();
            let message = Message {
                sequence: 1,
                refers,
                body: Body::Welcome(welcome),
            };
            send(socket.as_fd(), &message.encode(), &[]).unwrap();
            match subscriber.join().unwrap() {
                Ok(()) => assert_eq!(number, last),
                Err(error) => assert!(matches!(error, Error::Malformed(_)), "{number}: {error}"),
            }
        });
    }
}

#[test]
fn listeners_without_a_word() {
    let fake = Fake::new();
    let options = ConnectOptions {
        timeout: SHORT,
        ..ConnectOptions::default()
    };
    let before = Instant::now();
    let error = fake
        .place
        .channel
        .subscribe_with("e", &options)
        .err()
        .unwrap();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    // A backlog that is full is waited for no longer, either.
    let waiting: Vec<_> = (0..12)
        .map(|_| {
            fake.place
                .channel
                .subscribe_with("e", &options)
                .err()
                .unwrap()
        })
        .collect();
    assert!(
        waiting
            .iter()
            .all(|error| matches!(error, Error::TimedOut { .. } | Error::InUse(_)))
    );
    assert!(before.elapsed() < Duration::from_secs(10));
}

#[test]
fn sockets_that_are_none() {
    let place = Place::new();
    let is_missing = |channel: &Channel| match channel.subscribe("e").err() {
        Some(Error::Missing(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(is_missing(&place.channel).contains("not there"));
    let socket = place.path.join("e.sock");
    std::fs::write(&socket, b"x").unwrap();
    assert!(is_missing(&place.channel).contains("no socket"));
    std::fs::remove_file(&socket).unwrap();
    // A link to somebody else's socket is not followed.
    let other = Place::new();
    let _endpoint = other.channel.listen("e").unwrap();
    std::os::unix::fs::symlink(other.path.join("e.sock"), &socket).unwrap();
    let error = place.channel.subscribe("e").map(drop).expect_err("a link");
    assert!(matches!(error, Error::Missing(_)), "{error}");
    // And it is replaced by who listens.
    let _endpoint = place.channel.listen("e").unwrap();
    assert!(!std::fs::symlink_metadata(&socket).unwrap().is_symlink());
    // A stream socket.
    let _listener = std::os::unix::net::UnixListener::bind(place.path.join("s.sock")).unwrap();
    assert!(place.channel.subscribe("s").is_err());
    // A lock that is a link, or a fifo.
    std::os::unix::fs::symlink("/nonexistent", place.path.join(".l.lock")).unwrap();
    assert!(place.channel.listen("l").is_err());
    assert!(std::fs::symlink_metadata("/nonexistent").is_err());
}

/// A requester at a listener that says what it likes; what the listener gives comes back.
fn asked<T: Send>(
    fake: &Fake,
    act: impl FnOnce(&OwnedFd) -> T + Send,
    ask: impl FnOnce(isorun_channel::Requester),
) -> T {
    let channel = fake.place.channel.clone();
    std::thread::scope(|scope| {
        let listener = scope.spawn(move || act(&fake.welcome_as(role::REQUESTER, 0, 1)));
        ask(channel.requester("e").unwrap());
        listener.join().unwrap()
    })
}

fn hear(socket: &OwnedFd) -> Message {
    let mut bytes = [0_u8; 4096];
    let (_, length) =
        rustix::net::recv(socket, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
    Message::decode(&bytes[..length]).unwrap()
}

#[test]
fn an_answer_that_is_too_late_is_released() {
    let fake = Fake::new();
    let (late, sent) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let said = asked(
        &fake,
        |socket| {
            let first = hear(socket);
            late.wait();
            let fd = memfd(4096, true, ALL, MemfdFlags::empty()).unwrap();
            let reply = Message {
                sequence: 2,
                refers: first.sequence,
                body: Body::Reply(content(4096, &[4096], Sharing::Immutable)),
            };
            send(socket.as_fd(), &reply.encode(), &[fd.as_fd()]).unwrap();
            sent.wait();
            hear(socket).body
        },
        |requester| {
            let nothing = isorun_channel::Outgoing::empty;
            let error = requester.request(nothing(), SHORT).err().unwrap();
            assert!(matches!(error, Error::TimedOut { .. }), "{error}");
            late.wait();
            sent.wait();
            let _ = requester.request(nothing(), SHORT);
        },
    );
    assert_eq!(said, Body::Release(vec![2]));
}

#[test]
fn a_flood_keeps_no_call_from_its_deadline() {
    let fake = Fake::new();
    let channel = fake.place.channel.clone();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let socket = fake.welcome();
            for sequence in 2.. {
                let pong = Message {
                    sequence,
                    refers: 1,
                    body: Body::Pong,
                };
                if send(socket.as_fd(), &pong.encode(), &[]).is_err() {
                    return;
                }
            }
        });
        let subscriber = channel.subscribe("e").unwrap();
        let before = Instant::now();
        let error = subscriber.recv(SHORT).map(drop).expect_err("nothing");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert!(before.elapsed() < LONG);
        drop(subscriber);
        flood.join().unwrap();
    });
}

#[test]
fn a_listener_that_takes_no_releases_is_left() {
    let fake = Fake::new();
    let channel = fake.place.channel.clone();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let socket = fake.welcome();
            for sequence in 2..20_000 {
                let empty = Content {
                    tensor: None,
                    ..content(1, &[1], Sharing::Immutable)
                };
                let message = Message {
                    sequence,
                    refers: 0,
                    body: Body::Tensor(empty),
                };
                if send(socket.as_fd(), &message.encode(), &[]).is_err() {
                    return sequence;
                }
            }
            0
        });
        let subscriber = channel.subscribe("e").unwrap();
        let error = loop {
            if let Err(error) = subscriber.recv(LONG) {
                break error;
            }
        };
        assert!(error.to_string().contains("does not read"), "{error}");
        let at = flood.join().unwrap();
        assert!(at > 4096, "it was left after {at}");
    });
}

#[test]
fn the_greatest_sequence_is_the_last_one() {
    let fake = Fake::new();
    let channel = fake.place.channel.clone();
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let socket = fake.welcome_as(role::SUBSCRIBER, feature::LANE, u64::MAX);
            // Open until the other side has seen it.
            while let Ok((_, length)) = rustix::net::recv(
                &socket,
                &mut [0_u8; 4096][..],
                rustix::net::RecvFlags::empty(),
            ) && length > 0
            {}
        });
        let subscriber = channel.subscribe("e").unwrap();
        let error = subscriber.recv(SHORT).map(drop).expect_err("malformed");
        assert!(matches!(error, Error::Malformed(_)), "{error}");
        listener.join().unwrap();
    });
}
