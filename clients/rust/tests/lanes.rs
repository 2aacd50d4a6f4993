//! Lanes: shared buffers that come without a system call, and what both sides make of bad ones.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use isorun_channel::wire::{Body, Content, Failure, Hello, Message, Welcome, feature};
use isorun_channel::{
    ConnectOptions, Dtype, EndpointOptions, Error, Outgoing, Policy, SharedTensor, Sharing, Tensor,
    TensorMut,
};
use memmap2::MmapMut;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use support::bad::{ALL, content, memfd};
use support::{LONG, Place, Raw, SHORT, eventually, send};

const SHARED: SealFlags = ALL
    .difference(SealFlags::WRITE)
    .union(SealFlags::FUTURE_WRITE);
/// Of a lane with 4 credits.
const LANE: u64 = 64 + 4 * 256;

fn shared(value: u64) -> SharedTensor {
    let mut tensor = TensorMut::zeros(Dtype::U64, &[64]).unwrap();
    tensor.as_mut_slice::<u64>().unwrap().fill(value);
    tensor.share().unwrap()
}

fn asks_for_a_lane() -> Body {
    Body::Hello(Hello {
        lowest: 1,
        highest: 1,
        roles: 1,
        features: feature::LANE | 1 << 40,
        credits: 4,
        queue: 0,
        policy: Policy::DropOldest,
    })
}

/// The next message with its descriptor.
fn hear(socket: &OwnedFd) -> (Message, Option<OwnedFd>) {
    let mut bytes = [0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fd = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    (Message::decode(&bytes[..received.bytes]).unwrap(), fd)
}

/// Memory for one side: still to be sealed, and its mapping for writing.
fn side(size: u64) -> (OwnedFd, MmapMut) {
    let fd = memfd(size, true, SealFlags::empty(), MemfdFlags::empty()).unwrap();
    rustix::io::pwrite(&fd, &vec![0; size as usize], 0).unwrap();
    // SAFETY: the memory is not shrunk by anybody.
    #[allow(unsafe_code)]
    let map = unsafe { MmapMut::map_mut(&fd) }.unwrap();
    rustix::fs::fcntl_add_seals(&fd, SHARED).unwrap();
    (fd, map)
}

#[test]
fn a_buffer_that_is_known_comes_through_the_lane() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let mut raw = Raw::connect(&place.path, "e");
    raw.say(0, asks_for_a_lane(), &[]).unwrap();
    let Body::Welcome(welcome) = hear(&raw.socket).0.body else {
        panic!("no welcome")
    };
    assert_eq!(welcome.features, feature::LANE);
    let (message, lane) = hear(&raw.socket);
    assert_eq!((message.body, message.sequence), (Body::Lane, 2));
    let lane = File::from(lane.unwrap());
    assert_eq!(lane.metadata().unwrap().len(), LANE);
    let (page, mut asleep) = side(64);
    raw.say(0, Body::Lane, &[page.as_fd()]).unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    // Taken in the order in which it comes: a REQUEST that is refused would end it, so ask with PING.
    raw.say(0, Body::Ping, &[]).unwrap();
    assert_eq!(hear(&raw.socket).0.body, Body::Pong);

    let buffer = shared(7);
    let written = || {
        let mut word = [0; 8];
        lane.read_exact_at(&mut word, 0).unwrap();
        u64::from_le_bytes(word)
    };
    // For the first time: by the socket, with a number and the descriptor.
    endpoint.publish(Outgoing::from(&buffer).tag(1)).unwrap();
    let (message, fd) = hear(&raw.socket);
    let Body::Tensor(first) = message.body else {
        panic!("no tensor")
    };
    assert_eq!((message.sequence, first.tag), (4, 1));
    assert_eq!(first.tensor.unwrap().memory, 1);
    assert!(fd.is_some());
    assert_eq!(written(), 0);
    // Again: in the lane, and nothing in the socket.
    endpoint.publish(Outgoing::from(&buffer).tag(2)).unwrap();
    assert_eq!(written(), 1);
    let mut entry = [0; 256];
    lane.read_exact_at(&mut entry, 64).unwrap();
    let length = u32::from_le_bytes(entry[8..12].try_into().unwrap()) as usize;
    let message = Message::decode(&entry[..length]).unwrap();
    let Body::Tensor(second) = message.body else {
        panic!("no tensor")
    };
    assert_eq!((message.sequence, second.tag), (5, 2));
    assert_eq!(second.tensor.unwrap().memory, 1);
    let nothing = rustix::net::recv(&raw.socket, &mut entry[..], RecvFlags::DONTWAIT);
    assert_eq!(nothing.map(|_| ()), Err(rustix::io::Errno::AGAIN));
    // Asleep: in the lane, and WAKE.
    asleep[0] = 1;
    endpoint.publish(Outgoing::empty().tag(3)).unwrap();
    assert_eq!(written(), 2);
    let (message, fd) = hear(&raw.socket);
    assert_eq!((message.body, message.sequence), (Body::Wake, 7));
    assert!(fd.is_none());
    // What is too long for a slot, and what cannot be shared, comes by the socket.
    asleep[0] = 0;
    endpoint
        .publish(Outgoing::from(&buffer).meta(vec![1; 300]))
        .unwrap();
    assert!(matches!(hear(&raw.socket).0.body, Body::Tensor(_)));
    assert_eq!(written(), 2);
    // Credits hold here, too: four are out.
    let published = endpoint.publish(Outgoing::from(&buffer)).unwrap();
    assert_eq!((published.sent, published.lost), (0, 1));
    raw.say(0, Body::Release(vec![4, 5, 6, 8]), &[]).unwrap();
    endpoint.wait_until_free(&buffer, LONG).unwrap();
    // And it hears at once of the end, though nothing was sent to it.
    drop(raw);
    eventually("it is gone", || endpoint.subscribers() == 0);
}

#[test]
fn who_does_not_ask_gets_none() {
    let place = Place::new();
    let options = EndpointOptions {
        lanes: false,
        ..EndpointOptions::default()
    };
    for (name, options, lane) in [
        ("a", options, true),
        ("b", EndpointOptions::default(), false),
    ] {
        let endpoint = place.channel.listen_with(name, options).unwrap();
        let asks = ConnectOptions {
            lane,
            ..ConnectOptions::default()
        };
        let subscriber = place.channel.subscribe_with(name, &asks).unwrap();
        endpoint.wait_for_subscribers(1, LONG).unwrap();
        let buffer = shared(3);
        for tag in 0..10 {
            endpoint.wait_for_room(LONG).unwrap();
            endpoint.publish(Outgoing::from(&buffer).tag(tag)).unwrap();
            let received = subscriber.recv(LONG).unwrap();
            assert_eq!(received.tag, tag);
            assert_eq!(received.tensor.unwrap().to_vec::<u64>().unwrap(), [3; 64]);
        }
    }
}

/// Buffers, more than there are credits, immutable tensors, none at all, long messages: in order, with the right
/// contents, to one that spins and to one that sleeps.
#[test]
fn the_order_is_kept_whatever_way_it_goes() {
    for (spin, pause) in [(0, 0), (0, 60), (1, 60), (20, 0), (20_000, 10)] {
        let place = Place::new();
        let endpoint = place.channel.listen("e").unwrap();
        let options = ConnectOptions {
            credits: 3,
            queue: Some(2),
            ..ConnectOptions::default()
        };
        let mut subscriber = place.channel.subscribe_with("e", &options).unwrap();
        subscriber.set_spin(Duration::from_micros(spin));
        endpoint.wait_for_subscribers(1, LONG).unwrap();
        let count = 3_000_u64;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(spin + pause);
                for tag in 0..count {
                    let received = subscriber.recv(LONG).unwrap();
                    assert_eq!((received.tag, received.lost), (tag, 0));
                    match received.tensor {
                        Some(tensor) => assert_eq!(
                            tensor.to_vec::<u64>().unwrap(),
                            [u64::from(received.meta[0]); 64],
                            "{tag}"
                        ),
                        None => assert!(!received.meta.is_empty()),
                    }
                    if random.u8(..) < 8 {
                        std::thread::sleep(Duration::from_micros(random.u64(0..200)));
                    }
                }
            });
            let buffers: Vec<_> = (0..5).map(shared).collect();
            let mut random = fastrand::Rng::with_seed(5 + pause);
            for tag in 0..count {
                endpoint.wait_for_room(LONG).unwrap();
                let number = random.u8(0..5);
                let outgoing = match random.u8(0..8) {
                    0 => Outgoing::from(&Tensor::copy_of(&[u64::from(number); 64], &[64]).unwrap()),
                    1 => Outgoing::empty(),
                    _ => Outgoing::from(&buffers[usize::from(number)]),
                };
                let long = match tag % 16 {
                    15 if random.bool() => 400,
                    _ => 1,
                };
                let meta = vec![number; long];
                endpoint.publish(outgoing.tag(tag).meta(meta)).unwrap();
                if pause > 0 && random.u8(..) < 16 {
                    std::thread::sleep(Duration::from_micros(random.u64(0..pause * 2)));
                }
            }
        });
    }
}

/// Two threads sleep at the same subscriber: neither takes the other's waking away.
#[test]
fn two_threads_of_one_subscriber() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = place.channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let buffer = shared(1);
    let count = 2_000_u64;
    let got = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while got.load(std::sync::atomic::Ordering::SeqCst) < count {
                    match subscriber.recv(Duration::from_millis(500)) {
                        Ok(_) => got.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
                        Err(Error::TimedOut { .. }) => {
                            let seen = got.load(std::sync::atomic::Ordering::SeqCst);
                            assert!(seen >= count - 1, "asleep after {seen}");
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    };
                }
            });
        }
        for tag in 0..count {
            endpoint.wait_for_room(LONG).unwrap();
            endpoint.publish(Outgoing::from(&buffer).tag(tag)).unwrap();
        }
    });
}

#[test]
fn a_listener_that_dies_is_heard_of_in_a_lane_too() {
    for spin in [Duration::ZERO, LONG] {
        let place = Place::new();
        let endpoint = place.channel.listen("e").unwrap();
        let mut subscriber = place.channel.subscribe("e").unwrap();
        subscriber.set_spin(spin);
        endpoint.wait_for_subscribers(1, LONG).unwrap();
        let buffer = shared(1);
        for tag in 0..3 {
            endpoint.publish(Outgoing::from(&buffer).tag(tag)).unwrap();
        }
        drop(endpoint);
        // What was written before is still to be had.
        for tag in 0..3 {
            assert_eq!(subscriber.recv(LONG).unwrap().tag, tag);
        }
        let error = subscriber.recv(LONG).map(drop).expect_err("the end");
        assert!(matches!(error, Error::Closed(_)), "{error}");
    }
}

/// A listener with a lane that does what it likes.
struct Fake {
    place: Place,
    listener: OwnedFd,
}

impl Fake {
    fn new() -> Self {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let place = Place::new();
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let address = SocketAddrUnix::new(place.path.join("e.sock")).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        Self { place, listener }
    }

    /// What a subscriber makes of what this listener does after WELCOME.
    fn try_on(&self, act: impl FnOnce(&OwnedFd)) -> Error {
        let channel = self.place.channel.clone();
        std::thread::scope(|scope| {
            let subscriber = scope.spawn(move || {
                let options = ConnectOptions {
                    credits: 4,
                    ..ConnectOptions::default()
                };
                let mut subscriber = channel.subscribe_with("e", &options).unwrap();
                subscriber.set_spin(SHORT);
                loop {
                    match subscriber.recv(LONG) {
                        Ok(_) => {}
                        Err(error) => {
                            assert!(matches!(subscriber.recv(LONG), Err(Error::Closed(_))));
                            return error;
                        }
                    }
                }
            });
            let socket = rustix::net::accept(&self.listener).unwrap();
            let (hello, _) = hear(&socket);
            let Body::Hello(hello) = hello.body else {
                panic!("no HELLO")
            };
            assert_eq!(hello.features, feature::LANE);
            let welcome = Body::Welcome(Welcome {
                version: 1,
                roles: 1,
                features: feature::LANE,
                credits: 4,
                queue: 0,
                policy: Policy::DropOldest,
            });
            say(&socket, 1, 1, welcome, &[]);
            let (lane, page) = hear(&socket);
            assert_eq!(lane.body, Body::Lane);
            assert_eq!(File::from(page.unwrap()).metadata().unwrap().len(), 64);
            act(&socket);
            subscriber.join().unwrap()
        })
    }
}

fn say(socket: &OwnedFd, sequence: u64, refers: u64, body: Body, descriptors: &[BorrowedFd<'_>]) {
    let message = Message {
        sequence,
        refers,
        body,
    };
    send(socket.as_fd(), &message.encode(), descriptors).unwrap();
}

fn numbered(memory: u16, size: u64) -> Content {
    let mut content = content(size, &[64], Sharing::Shared);
    content.tensor.as_mut().unwrap().memory = memory;
    content
}

/// Writes an entry, and counts it.
fn write(lane: &mut MmapMut, slot: usize, bytes: &[u8], count: u64) {
    lane[64 + slot * 256..][..bytes.len()].copy_from_slice(bytes);
    lane[..8].copy_from_slice(&count.to_le_bytes());
}

fn entry(sequence: u64, body: Body) -> Vec<u8> {
    Message {
        sequence,
        refers: 0,
        body,
    }
    .encode()
}

#[test]
fn lanes_that_are_none() {
    let fake = Fake::new();
    let none = MemfdFlags::empty();
    let bad = [
        (memfd(LANE, true, SHARED, none).unwrap(), ""),
        (memfd(LANE - 1, true, SHARED, none).unwrap(), "bytes"),
        (memfd(1 << 20, true, SHARED, none).unwrap(), "bytes"),
        (memfd(LANE, false, SHARED, none).unwrap(), "allocated"),
        (memfd(LANE, true, SealFlags::SEAL, none).unwrap(), "seals"),
        (File::open("/dev/zero").unwrap().into(), "regular"),
    ];
    for (fd, why) in bad.iter().filter(|(_, why)| !why.is_empty()) {
        let error = fake.try_on(|socket| say(socket, 2, 0, Body::Lane, &[fd.as_fd()]));
        assert!(matches!(error, Error::Descriptor(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    // All ones: many more messages than there are slots.
    let error = fake.try_on(|socket| say(socket, 2, 0, Body::Lane, &[bad[0].0.as_fd()]));
    assert!(error.to_string().contains("4 slots"), "{error}");
    let error = fake.try_on(|socket| {
        let (fd, _map) = side(LANE);
        say(socket, 2, 0, Body::Lane, &[fd.as_fd()]);
        say(socket, 3, 0, Body::Lane, &[fd.as_fd()]);
    });
    assert!(error.to_string().contains("second LANE"), "{error}");
}

#[test]
fn entries_that_break_a_rule() {
    let fake = Fake::new();
    let empty = || content(4096, &[64], Sharing::Immutable);
    let nothing = Content {
        tensor: None,
        ..empty()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![0xff; 256], "bytes in a lane"),
        (vec![0; 256], "header"),
        (entry(3, Body::Ping), "PING in a lane"),
        (
            entry(2, Body::Tensor(nothing.clone())),
            "sequence 2 in a lane",
        ),
        (entry(9, Body::Tensor(nothing)), "neither by the socket"),
        (entry(3, Body::Tensor(empty())), "memory 0"),
        (
            entry(3, Body::Tensor(numbered(1, 4096))),
            "has not been sent",
        ),
        (
            entry(3, Body::Tensor(numbered(5, 4096))),
            "has not been sent",
        ),
    ];
    for (bytes, why) in cases {
        let error = fake.try_on(|socket| {
            let (fd, mut lane) = side(LANE);
            say(socket, 2, 0, Body::Lane, &[fd.as_fd()]);
            std::thread::sleep(Duration::from_millis(5));
            write(&mut lane, 0, &bytes, 1);
            std::thread::sleep(Duration::from_millis(300));
        });
        assert!(matches!(error, Error::Malformed(_)), "{why}: {error}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    // Known, and of another size; a number beyond the credits; a gap in the socket.
    let memory = memfd(4096, true, SHARED, MemfdFlags::empty()).unwrap();
    let error = fake.try_on(|socket| {
        let (fd, mut lane) = side(LANE);
        say(socket, 2, 0, Body::Lane, &[fd.as_fd()]);
        say(
            socket,
            3,
            0,
            Body::Tensor(numbered(2, 4096)),
            &[memory.as_fd()],
        );
        write(&mut lane, 0, &entry(4, Body::Tensor(numbered(2, 4096))), 1);
        write(&mut lane, 1, &entry(5, Body::Tensor(numbered(2, 8192))), 2);
        std::thread::sleep(Duration::from_millis(300));
    });
    assert!(error.to_string().contains("says 8192"), "{error}");
    let error = fake.try_on(|socket| {
        say(
            socket,
            2,
            0,
            Body::Tensor(numbered(5, 4096)),
            &[memory.as_fd()],
        );
    });
    assert!(error.to_string().contains("4 credits"), "{error}");
    let error = fake.try_on(|socket| say(socket, 3, 0, Body::Wake, &[]));
    assert!(error.to_string().contains("sequence 3"), "{error}");
}

#[test]
fn clients_with_pages_that_are_none() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let refused = |raw: &Raw| loop {
        match raw.hear().expect("a reason").body {
            Body::Error(Failure { text, .. }) => return text,
            Body::Welcome(_) | Body::Lane => {}
            body => panic!("{body:?}"),
        }
    };
    let none = MemfdFlags::empty();
    for (fd, why) in [
        (memfd(63, true, SHARED, none).unwrap(), "63 bytes"),
        (memfd(64, false, SHARED, none).unwrap(), "allocated"),
        (memfd(64, true, SealFlags::SEAL, none).unwrap(), "seals"),
    ] {
        let mut raw = Raw::connect(&place.path, "e");
        raw.say(0, asks_for_a_lane(), &[]).unwrap();
        raw.say(0, Body::Lane, &[fd.as_fd()]).unwrap();
        let text = refused(&raw);
        assert!(text.contains(why), "{why}: {text}");
    }
    let good = memfd(64, true, SHARED, none).unwrap();
    let mut twice = Raw::connect(&place.path, "e");
    twice.say(0, asks_for_a_lane(), &[]).unwrap();
    twice.say(0, Body::Lane, &[good.as_fd()]).unwrap();
    twice.say(0, Body::Lane, &[good.as_fd()]).unwrap();
    assert!(refused(&twice).contains("second LANE"));
    let mut unasked = Raw::welcome(&place.path, "e", 1, 4);
    unasked.say(0, Body::Lane, &[good.as_fd()]).unwrap();
    assert!(refused(&unasked).contains("without being asked"));
    let mut wake = Raw::welcome(&place.path, "e", 1, 4);
    wake.say(0, Body::Wake, &[]).unwrap();
    assert!(refused(&wake).contains("WAKE from a client"));
    eventually("all are gone", || endpoint.peers().is_empty());
}
