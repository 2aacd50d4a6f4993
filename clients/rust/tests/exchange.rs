//! Publish and subscribe, request and reply, within one process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use isorun_channel::{
    Channel, ConnectOptions, Dtype, Endpoint, EndpointOptions, Error, Layout, Outgoing, Policy,
    Published, Subscriber, Tensor, TensorMut,
};
use support::{LONG, Place, SHORT, descriptors, eventually};

fn subscribe(channel: &Channel, credits: u32, queue: u32, policy: Policy) -> Subscriber {
    let options = ConnectOptions {
        credits,
        queue: Some(queue),
        policy,
        ..ConnectOptions::default()
    };
    channel.subscribe_with("e", &options).unwrap()
}

fn one(number: u64) -> Outgoing {
    Outgoing::from(&Tensor::copy_of(&[number], &[1]).unwrap()).tag(number)
}

fn value(subscriber: &Subscriber) -> (u64, u64) {
    let received = subscriber.recv(LONG).unwrap();
    let values = received.tensor.unwrap().to_vec::<u64>().unwrap();
    assert_eq!(values, [received.tag]);
    (received.tag, received.lost)
}

#[test]
fn a_tensor_arrives_with_all_that_belongs_to_it() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = place.channel.subscribe("e").unwrap();
    assert_eq!(subscriber.credits(), 4);
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let tensor = Tensor::copy_of(&(0..24).collect::<Vec<i32>>(), &[2, 3, 4]).unwrap();
    let layout = Layout {
        shape: vec![3, 2],
        strides: vec![-4, 12],
        offset: 4 * 9,
        ..tensor.layout().clone()
    };
    let view = tensor.view(layout.clone()).unwrap();
    let outgoing = Outgoing::from(&view).name("größe").tag(77).meta(*b"\0x");
    let published = endpoint.publish(outgoing).unwrap();
    assert_eq!(
        (published.sent, published.queued, published.lost),
        (1, 0, 0)
    );
    let received = subscriber.recv(LONG).unwrap();
    assert_eq!(
        (received.name.as_str(), received.tag, received.lost),
        ("größe", 77, 0)
    );
    assert_eq!(received.meta, b"\0x");
    let got = received.tensor.unwrap();
    assert_eq!(got.layout(), &layout);
    assert_eq!(got.to_vec::<i32>().unwrap(), [9, 21, 5, 17, 1, 13]);
    // Not a copy: a change is impossible, so the pages are looked at.
    assert_eq!(inode_at(got.as_ptr()), inode_at(tensor.as_ptr()));
    assert_ne!(got.as_ptr(), view.as_ptr());
    endpoint.publish(Outgoing::empty().name("nothing")).unwrap();
    assert!(subscriber.recv(LONG).unwrap().tensor.is_none());
    assert!(matches!(
        subscriber.recv(SHORT),
        Err(Error::TimedOut { .. })
    ));
}

/// The file that is mapped at an address.
fn inode_at(address: *const u8) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (from, rest) = line.split_once('-').unwrap();
        let (to, _) = rest.split_once(' ').unwrap();
        let bounds = [from, to].map(|text| usize::from_str_radix(text, 16).unwrap());
        (bounds[0]..bounds[1]).contains(&(address as usize))
    });
    let fields: Vec<_> = line.unwrap().split_whitespace().collect();
    assert!(fields[5].starts_with("/memfd:isorun-tensor"), "{fields:?}");
    fields[4].to_owned()
}

#[test]
fn a_slow_subscriber_loses_and_is_told_and_the_others_get_all() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let oldest = subscribe(&place.channel, 2, 3, Policy::DropOldest);
    let newest = subscribe(&place.channel, 2, 3, Policy::DropNewest);
    let none = subscribe(&place.channel, 1, 0, Policy::DropOldest);
    let fast = subscribe(&place.channel, 4, 4, Policy::DropOldest);
    endpoint.wait_for_subscribers(4, LONG).unwrap();
    for number in 1..=10 {
        endpoint.publish(one(number)).unwrap();
        assert_eq!(value(&fast), (number, 0));
        // Its release is on its way: the next one would be queued without it, and that is as good.
    }
    let all = |subscriber: &Subscriber, count: usize| -> Vec<(u64, u64)> {
        (0..count).map(|_| value(subscriber)).collect()
    };
    assert_eq!(all(&oldest, 5), [(1, 0), (2, 0), (8, 5), (9, 5), (10, 5)]);
    assert_eq!(all(&newest, 5), [(1, 0), (2, 0), (3, 5), (4, 5), (5, 5)]);
    assert_eq!(all(&none, 1), [(1, 0)]);
    eventually("all is released", || {
        endpoint.peers().iter().all(|peer| peer.holds == 0)
    });
    endpoint.publish(one(11)).unwrap();
    assert_eq!(value(&oldest), (11, 5));
    assert_eq!(value(&newest), (11, 5));
    assert_eq!(value(&none), (11, 9));
    let lost: Vec<_> = endpoint.peers().iter().map(|peer| peer.lost).collect();
    assert_eq!(lost, [5, 5, 9, 0]);
}

#[test]
fn a_stopped_subscriber_costs_the_publisher_no_time() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let _stopped = subscribe(&place.channel, 256, 256, Policy::DropOldest);
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let tensor = Tensor::copy_of(&[1_u8; 4096], &[4096]).unwrap();
    let what = Outgoing::from(&tensor).meta(vec![0; 2048]);
    let mut sum = Published::default();
    let mut longest = Duration::ZERO;
    for _ in 0..2_000 {
        let before = Instant::now();
        let published = endpoint.publish(what.clone()).unwrap();
        longest = longest.max(before.elapsed());
        sum.sent += published.sent;
        sum.queued += published.queued;
        sum.lost += published.lost;
    }
    assert_eq!(sum.sent + sum.queued + sum.lost, 2_000);
    // Its socket holds fewer than its credits, and that is no reason to wait.
    assert!(sum.sent <= 256 && sum.lost >= 2_000 - 512, "{sum:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[test]
fn nothing_is_lost_by_a_publisher_that_waits() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = subscribe(&place.channel, 1, 0, Policy::DropOldest);
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let publisher = std::thread::spawn(move || {
        for number in 0..200 {
            endpoint.wait_for_room(LONG).unwrap();
            endpoint.publish(one(number)).unwrap();
        }
        endpoint.wait_for_room(LONG).unwrap();
        endpoint
    });
    for number in 0..200 {
        assert_eq!(value(&subscriber), (number, 0));
    }
    let endpoint = publisher.join().unwrap();
    let held = {
        endpoint.publish(one(7)).unwrap();
        subscriber.recv(LONG).unwrap()
    };
    assert!(matches!(
        endpoint.wait_for_room(SHORT),
        Err(Error::TimedOut { .. })
    ));
    drop(held);
    endpoint.wait_for_room(LONG).unwrap();
}

#[test]
fn a_shared_buffer_is_used_again_when_all_have_released_it() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let one = place.channel.subscribe("e").unwrap();
    let two = place.channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(2, LONG).unwrap();
    let mut buffer = TensorMut::zeros(Dtype::U64, &[512])
        .unwrap()
        .share()
        .unwrap();
    let mut addresses = Vec::new();
    for number in 0..20 {
        buffer.as_mut_slice::<u64>().unwrap().fill(number);
        endpoint.publish(&buffer).unwrap();
        let (first, second) = (one.recv(LONG).unwrap(), two.recv(LONG).unwrap());
        for received in [&first, &second] {
            let tensor = received.tensor.as_ref().unwrap();
            assert!(tensor.is_shared() && tensor.as_slice::<u64>().is_err());
            assert_eq!(tensor.to_vec::<u64>().unwrap(), [number; 512]);
        }
        addresses.push(first.tensor.as_ref().unwrap().as_ptr() as usize);
        assert!(matches!(buffer.as_mut_slice::<u64>(), Err(Error::InUse(_))));
        drop(first);
        assert!(matches!(
            endpoint.wait_until_free(&buffer, SHORT),
            Err(Error::TimedOut { .. })
        ));
        if number == 10 {
            // The end of a connection releases everything.
            drop((second, two));
            endpoint.wait_until_free(&buffer, LONG).unwrap();
            return assert!(addresses.iter().all(|&address| address == addresses[0]));
        }
        drop(second);
        endpoint.wait_until_free(&buffer, LONG).unwrap();
    }
}

#[test]
fn requests_are_answered_in_any_way_or_time_out() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let channel = place.channel.clone();
    let asking = std::thread::spawn(move || {
        let requester = channel.requester("e").unwrap();
        let tensor = Tensor::copy_of(&[1.5_f32, 2.5], &[2]).unwrap();
        let ask = |name: &str, timeout| {
            requester.request(Outgoing::from(&tensor).name(name).tag(3), timeout)
        };
        let double = ask("double", LONG).unwrap();
        assert_eq!(double.tensor.unwrap().to_vec::<f32>().unwrap(), [3.0, 5.0]);
        let remote = |result| match result {
            Err(Error::Remote { code, text }) => (code, text),
            other => panic!("{other:?}"),
        };
        assert_eq!(remote(ask("fail", LONG)), (7, "not today".into()));
        assert_eq!(remote(ask("what", LONG)).0, 6);
        assert_eq!(remote(ask("drop", LONG)).0, 7);
        assert!(matches!(ask("late", SHORT), Err(Error::TimedOut { .. })));
        assert!(ask("after", LONG).unwrap().tensor.is_none());
    });
    let next = |name: &str| {
        let request = endpoint.next_request(LONG).unwrap();
        assert_eq!(
            (request.question.name.as_str(), request.question.tag),
            (name, 3)
        );
        request
    };
    let request = next("double");
    let values = request
        .question
        .tensor
        .as_ref()
        .unwrap()
        .to_vec::<f32>()
        .unwrap();
    let doubled: Vec<_> = values.iter().map(|value| value * 2.0).collect();
    request
        .reply(&Tensor::copy_of(&doubled, &[2]).unwrap())
        .unwrap();
    next("fail").fail("not today").unwrap();
    next("what").unknown().unwrap();
    drop(next("drop"));
    let late = next("late");
    let after = next("after");
    // Too late for the one who asked, and not mistaken for the answer to the next question.
    late.reply(&Tensor::copy_of(&[9_u8], &[1]).unwrap())
        .unwrap();
    after.reply(Outgoing::empty()).unwrap();
    asking.join().unwrap();
    assert!(matches!(
        endpoint.next_request(SHORT),
        Err(Error::TimedOut { .. })
    ));
    assert!(endpoint.refusals().is_empty(), "{:?}", endpoint.refusals());
}

#[test]
fn an_endpoint_that_ends_is_told_to_all_at_once() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = place.channel.subscribe("e").unwrap();
    let requester = place.channel.requester("e").unwrap();
    let other = place.channel.requester("e").unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let asking = std::thread::spawn(move || requester.request(Outgoing::empty(), LONG));
    let request = endpoint.next_request(LONG).unwrap();
    assert_eq!(place.entries(), [".e.lock", "e.sock"]);
    drop(endpoint);
    assert_eq!(place.entries(), [""; 0]);
    assert!(matches!(subscriber.recv(LONG), Err(Error::Closed(_))));
    assert!(matches!(subscriber.recv(LONG), Err(Error::Closed(_))));
    assert!(matches!(asking.join().unwrap(), Err(Error::Closed(_))));
    assert!(matches!(
        other.request(Outgoing::empty(), LONG),
        Err(Error::Closed(_))
    ));
    assert!(matches!(
        request.reply(Outgoing::empty()),
        Err(Error::Closed(_))
    ));
    assert!(matches!(
        place.channel.subscribe("e"),
        Err(Error::Missing(_))
    ));
}

#[test]
fn an_endpoint_is_served_once() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let error = place.channel.listen("e").err().expect("refused");
    assert!(matches!(error, Error::InUse(_)), "{error}");
    assert_eq!(place.entries(), [".e.lock", "e.sock"]);
    place.channel.subscribe("e").unwrap();
    let mode = std::fs::metadata(place.path.join("e.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o666);
    drop(endpoint);
    place.channel.listen("e").unwrap();
    // Many at once: one of them serves, the others are told.
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let channel = place.channel.clone();
            std::thread::spawn(move || {
                let mut served = 0;
                for _ in 0..50 {
                    match channel.listen("race") {
                        Ok(endpoint) => {
                            served += 1;
                            channel.subscribe("race").unwrap();
                            drop(endpoint);
                        }
                        Err(Error::InUse(_)) => std::thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
                served
            })
        })
        .collect();
    let served: u32 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(served >= 8, "{served}");
    assert_eq!(place.entries(), [""; 0]);
}

#[test]
fn limits_of_an_endpoint() {
    let place = Place::new();
    let options = EndpointOptions {
        max_peers: 2,
        max_credits: 5,
        max_queue: 6,
        ..EndpointOptions::default()
    };
    let endpoint = place.channel.listen_with("e", options).unwrap();
    let one = subscribe(&place.channel, 100, 100, Policy::DropOldest);
    assert_eq!(one.credits(), 5);
    let two = place.channel.subscribe("e").unwrap();
    match place.channel.subscribe("e") {
        Err(Error::Remote { code: 4, text }) => assert!(text.contains("2 clients"), "{text}"),
        other => panic!("{:?}", other.err()),
    }
    drop(two);
    eventually("there is room again", || {
        place.channel.subscribe("e").is_ok()
    });
    for options in [
        EndpointOptions {
            max_peers: 0,
            ..EndpointOptions::default()
        },
        EndpointOptions {
            credits: 0,
            ..EndpointOptions::default()
        },
        EndpointOptions {
            queue: 257,
            ..EndpointOptions::default()
        },
    ] {
        assert!(place.channel.listen_with("f", options).is_err());
    }
    let long = Outgoing::empty().name("n".repeat(256));
    assert!(matches!(endpoint.publish(long), Err(Error::Name(_))));
    let long = Outgoing::empty().meta(vec![0; 2049]);
    assert!(matches!(endpoint.publish(long), Err(Error::Layout(_))));
    assert!(matches!(place.channel.listen("a/b"), Err(Error::Name(_))));
    assert!(matches!(
        place.channel.subscribe("../e"),
        Err(Error::Name(_))
    ));
}

#[test]
fn a_requester_that_asks_too_much_is_told_busy() {
    let place = Place::new();
    let options = EndpointOptions {
        max_requests: 2,
        ..EndpointOptions::default()
    };
    let endpoint = place.channel.listen_with("e", options).unwrap();
    let ask = || {
        let requester = place.channel.requester("e").unwrap();
        std::thread::spawn(move || requester.request(Outgoing::empty(), LONG))
    };
    let waiting = [ask(), ask()];
    eventually("two wait", || {
        endpoint
            .peers()
            .iter()
            .map(|peer| peer.requests)
            .sum::<u32>()
            == 2
    });
    let busy = ask().join().unwrap();
    assert!(
        matches!(busy, Err(Error::Remote { code: 4, .. })),
        "{busy:?}"
    );
    for _ in 0..2 {
        endpoint
            .next_request(LONG)
            .unwrap()
            .reply(Outgoing::empty())
            .unwrap();
    }
    for waiting in waiting {
        waiting.join().unwrap().unwrap();
    }
}

#[test]
fn a_buffer_of_two_endpoints_and_times_without_end() {
    let place = Place::new();
    let (one, two) = (
        place.channel.listen("one").unwrap(),
        place.channel.listen("two").unwrap(),
    );
    let subscriber = place.channel.subscribe("two").unwrap();
    two.wait_for_subscribers(1, Duration::MAX).unwrap();
    let mut buffer = TensorMut::zeros(Dtype::U8, &[1]).unwrap().share().unwrap();
    two.publish(&buffer).unwrap();
    let received = subscriber.recv(Duration::MAX).unwrap();
    let waiting = std::thread::spawn(move || {
        one.wait_until_free(&buffer, Duration::MAX).unwrap();
        buffer.as_mut_slice::<u8>().unwrap()[0] = 1;
    });
    std::thread::sleep(SHORT);
    assert!(!waiting.is_finished());
    drop(received);
    waiting.join().unwrap();
}

#[test]
fn a_path_of_any_length() {
    let place = Place::new();
    let deep = place.path.join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let channel = Channel::at(deep).unwrap();
    let endpoint: Endpoint = channel.listen("e").unwrap();
    let subscriber = channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    endpoint.publish(one(1)).unwrap();
    assert_eq!(value(&subscriber), (1, 0));
}

#[test]
fn tensors_are_closed_when_they_are_dropped() {
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = place.channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    // Others run beside this test in the same process: so many, that they do not matter.
    let mut most = 0;
    for number in 0..2_000 {
        endpoint.wait_for_room(LONG).unwrap();
        endpoint.publish(one(number)).unwrap();
        value(&subscriber);
        if number % 500 == 499 {
            most = most.max(descriptors("isorun-tensor"));
        }
    }
    assert!(most < 600, "{most} descriptors");
}
