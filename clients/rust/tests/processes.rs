//! The example programs against each other, killed at any time, and what is left of them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use isorun_channel::wire::{Body, role};
use isorun_channel::{Dtype, Error, Outgoing, Tensor, TensorMut};
use support::{LONG, Place, Program, Raw, SHORT, descriptors, eventually};

#[test]
fn producer_and_consumer() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    for more in [&[][..], &["--shared"]] {
        let consumer = Program::start("consumer", &[path, "e", "--count", "50"]);
        let mut arguments = vec![path, "e", "--count", "50", "--elements", "100000"];
        arguments.extend(more);
        let producer = Program::start("producer", &arguments);
        let lines = consumer.end();
        let want: Vec<_> = (0..50)
            .map(|step| format!("{step} step f32 [100000] first={step} last={step} lost=0"))
            .collect();
        assert_eq!(lines, want);
        assert_eq!(producer.end(), ["listening", "published 50"]);
    }
    assert_eq!(place.entries(), [""; 0]);
}

#[test]
fn requests_between_processes() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    let arguments = [
        path,
        "e",
        "--count",
        "0",
        "--subscribers",
        "0",
        "--serve",
        "30",
    ];
    let _producer = Program::start("producer", &arguments);
    let ask = |more: &[&str]| {
        let mut arguments = vec![path, "e", "--ask"];
        arguments.extend(more);
        Program::start("consumer", &arguments).end()
    };
    assert_eq!(
        ask(&["echo", "--elements", "3"]),
        ["7 echo f32 [3] first=42 last=42 lost=0"]
    );
    assert_eq!(ask(&["echo"]), ["7 echo none lost=0"]);
    assert_eq!(ask(&["zeros"]), ["0 zeros f64 [8] first=0 last=0 lost=0"]);
    let mut failing = Program::start("consumer", &[path, "e", "--ask", "fail"]);
    assert!(!failing.child.wait().unwrap().success());
}

#[test]
fn a_killed_producer() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    for round in 0..10 {
        let arguments = [path, "e", "--count", "100000", "--elements", "300000"];
        let mut producer = Program::start("producer", &arguments);
        assert_eq!(producer.line(), "listening");
        let subscriber = place.channel.subscribe("e").unwrap();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(subscriber.recv(LONG).unwrap().tensor.unwrap());
        }
        std::thread::sleep(Duration::from_millis(round));
        producer.kill();
        // What was sent still arrives; then it is the end.
        loop {
            match subscriber.recv(LONG) {
                Ok(received) => held.extend(received.tensor),
                Err(Error::Closed(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        // What is held stays what it was, without the one who made it.
        for (step, tensor) in held.iter().enumerate() {
            let values = tensor.as_slice::<f32>().unwrap();
            assert!(values.len() == 300_000 && values.iter().all(|&value| value == step as f32));
        }
        // Its names are stale: that is one clear error, and no reason not to listen.
        assert_eq!(place.entries(), [".e.lock", "e.sock"]);
        match place.channel.subscribe("e") {
            Err(Error::Missing(text)) => assert!(text.contains("stale"), "{text}"),
            other => panic!("{:?}", other.err()),
        }
    }
    let endpoint = place.channel.listen("e").unwrap();
    place.channel.subscribe("e").unwrap();
    drop(endpoint);
    assert_eq!(place.entries(), [""; 0]);
}

#[test]
fn a_killed_consumer() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    let endpoint = place.channel.listen("e").unwrap();
    let good = place.channel.subscribe("e").unwrap();
    let mut buffer = TensorMut::zeros(Dtype::U8, &[1 << 20])
        .unwrap()
        .share()
        .unwrap();
    for _ in 0..10 {
        let arguments = [path, "e", "--count", "100000", "--hold", "3", "--work", "1"];
        let mut consumer = Program::start("consumer", &arguments);
        endpoint.wait_for_subscribers(2, LONG).unwrap();
        let end = Instant::now() + SHORT;
        let mut number = 0;
        while Instant::now() < end {
            let tensor = Tensor::copy_of(&[number as u8; 5_000], &[5_000]).unwrap();
            endpoint
                .publish(Outgoing::from(&tensor).tag(number))
                .unwrap();
            assert_eq!(good.recv(LONG).unwrap().tag, number);
            number += 1;
        }
        endpoint.publish(&buffer).unwrap();
        drop(good.recv(LONG).unwrap());
        consumer.kill();
        // Its end releases what it held.
        endpoint.wait_until_free(&buffer, LONG).unwrap();
        buffer.as_mut_slice::<u8>().unwrap()[0] += 1;
        eventually("it is gone", || endpoint.subscribers() == 1);
    }
    eventually("nothing is kept", || descriptors("isorun-tensor") <= 4);
}

/// A consumer that is stopped, not killed: it holds what it has, and costs no more.
#[test]
fn a_stopped_consumer() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    let endpoint = place.channel.listen("e").unwrap();
    let consumer = Program::start("consumer", &[path, "e", "--count", "100000"]);
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let pid = rustix_pid(&consumer);
    signal(&pid, "STOP");
    for number in 0..1_000 {
        let tensor = Tensor::copy_of(&[1_u8; 4096], &[4096]).unwrap();
        endpoint
            .publish(Outgoing::from(&tensor).tag(number))
            .unwrap();
    }
    let peer = endpoint.peers()[0];
    assert!(
        peer.holds <= 4 && peer.queued <= 4 && peer.lost >= 990,
        "{peer:?}"
    );
    assert!(descriptors("isorun-tensor") < 100);
    signal(&pid, "CONT");
    eventually("it goes on", || endpoint.peers()[0].holds == 0);
}

fn rustix_pid(program: &Program) -> String {
    program.child.id().to_string()
}

fn signal(pid: &str, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), pid])
        .status();
    assert!(status.unwrap().success());
}

/// It fails if a tensor is copied anywhere on the way: 256 MiB take tens of milliseconds then.
#[test]
fn a_large_tensor_takes_as_long_as_a_small_one() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = place.channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let mut best = Vec::new();
    for size in [1 << 12, 1 << 28] {
        let tensor = match TensorMut::zeros(Dtype::U8, &[size]) {
            Ok(tensor) => tensor.freeze().unwrap(),
            Err(error) => {
                return support::skip(&format!("no memory for the large tensor: {error}"));
            }
        };
        let times = (0..50).map(|_| {
            let before = Instant::now();
            endpoint.publish(&tensor).unwrap();
            let received = subscriber.recv(LONG).unwrap().tensor.unwrap();
            assert_eq!(received.as_slice::<u8>().unwrap()[size as usize - 1], 0);
            before.elapsed()
        });
        best.push(times.min().unwrap());
    }
    assert!(
        best[1] < best[0] * 5 + Duration::from_micros(200),
        "{best:?}"
    );
    assert!(best[1] < Duration::from_millis(5), "{best:?}");
}

/// The same subscriber, killed again and again while it holds and releases, beside a raw one that lies about releases.
#[test]
fn releases_of_what_was_never_sent() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let mut raw = Raw::welcome(&place.path, "e", role::SUBSCRIBER, 1);
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let tensor = Tensor::copy_of(&[1_u8], &[1]).unwrap();
    raw.say(0, Body::Release(vec![1, 5, u64::MAX]), &[])
        .unwrap();
    assert_eq!(endpoint.publish(&tensor).unwrap().sent, 1);
    let sent = raw.hear().unwrap().sequence;
    // One credit, and a second release of the same message gives no second one.
    raw.say(0, Body::Release(vec![sent, sent]), &[]).unwrap();
    endpoint.wait_for_room(LONG).unwrap();
    let published = [
        endpoint.publish(&tensor).unwrap(),
        endpoint.publish(&tensor).unwrap(),
    ];
    assert_eq!((published[0].sent, published[1].lost), (1, 1));
    assert!(raw.send(&[0; 8], &[tensor_fd().as_fd()]).is_ok());
    eventually("it is turned away", || endpoint.peers().is_empty());
}

fn tensor_fd() -> std::fs::File {
    std::fs::File::open("/dev/null").unwrap()
}
