//! Feeds changed messages and safetensors files to the parsers.
//!
//!     fuzz [--seconds N] [--seed N]
//!
//! Half of the time each. Everything follows from the seed but how far it gets in the time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use fastrand::Rng;
use isorun_channel::device::{DeviceBlock, DeviceEntry, Devices, Transport};
use isorun_channel::wire::{
    Body, Content, Described, Failure, Hello, MAX_META, MAX_RELEASES, Message, Welcome,
};
use isorun_channel::{ByteOrder, Dtype, Layout, Named, Policy, Sharing};

/// How many inputs were taken and refused.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Taken.
    pub accepted: u64,
    /// Refused with a reason.
    pub refused: u64,
}

#[allow(dead_code)]
fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
    };
    let (seconds, seed) = (option("--seconds", 10), option("--seed", 1));
    let half = Duration::from_millis(seconds * 500);
    for (name, counts) in [
        ("messages", messages(seed, half)),
        ("safetensors", safetensors(seed, half)),
    ] {
        let Counts { accepted, refused } = counts;
        println!(
            "{name}: {} inputs in {half:?} from seed {seed}: {accepted} accepted, {refused} refused, no failure",
            accepted + refused
        );
    }
}

/// Messages: what is accepted must be the same when it is written again, and lie inside its memory.
pub fn messages(seed: u64, time: Duration) -> Counts {
    let mut random = Rng::with_seed(seed);
    let mut counts = Counts::default();
    let until = Instant::now() + time;
    while Instant::now() < until {
        for _ in 0..100 {
            let mut bytes = message(&mut random).encode();
            for _ in 0..random.usize(0..4) {
                change(&mut random, &mut bytes);
            }
            // The length is checked first: mostly it agrees, so that the rest is reached.
            if bytes.len() >= 12 && random.u8(0..8) > 0 {
                let length = (bytes.len() as u32).to_le_bytes();
                bytes[8..12].copy_from_slice(&length);
            }
            match Message::decode(&bytes) {
                Ok(message) => {
                    counts.accepted += 1;
                    accepted(&message, &bytes, &mut random);
                }
                Err(reason) => {
                    counts.refused += 1;
                    assert!(!reason.is_empty() && reason.len() < 2_000, "{reason}");
                }
            }
        }
    }
    counts
}

fn accepted(message: &Message, bytes: &[u8], random: &mut Rng) {
    match &message.body {
        // Control characters are replaced while it is read.
        Body::Error(failure) => assert!(!failure.text.contains(char::is_control)),
        _ => assert_eq!(message.encode(), bytes, "{message:?}"),
    }
    let (Body::Tensor(content) | Body::Request(content) | Body::Reply(content)) = &message.body
    else {
        return;
    };
    let Some(Described { layout, size, .. }) = &content.tensor else {
        return;
    };
    // Elements at random, and the corners.
    if layout.elements() == 0 {
        return;
    }
    for round in 0..8 {
        let mut at = i128::from(layout.offset);
        for (&length, &stride) in layout.shape.iter().zip(&layout.strides) {
            let index = match round {
                0 => 0,
                1 => length - 1,
                2 if stride < 0 => length - 1,
                2 => 0,
                3 if stride > 0 => length - 1,
                3 => 0,
                _ => random.u64(0..length),
            };
            at += i128::from(index) * i128::from(stride) * i128::from(layout.dtype.size());
        }
        let end = at + i128::from(layout.dtype.size());
        assert!(at >= 0 && end <= i128::from(*size), "{layout:?} in {size}");
    }
    assert!(layout.bytes() <= 1 << 47);
    layout.is_contiguous();
}

/// A message that is mostly right.
fn message(random: &mut Rng) -> Message {
    let kind = random.u8(0..16);
    let (credits, queue) = (random.u32(0..300), random.u32(0..300));
    let policy = match random.bool() {
        true => Policy::DropOldest,
        false => Policy::DropNewest,
    };
    let roles = random.u32(0..5);
    let features = random.u64(..);
    let body = match kind {
        0 => Body::Hello(Hello {
            lowest: random.u16(0..3),
            highest: random.u16(0..5),
            roles,
            features,
            credits,
            queue,
            policy,
        }),
        1 => Body::Welcome(Welcome {
            version: random.u16(0..3),
            roles,
            features,
            credits,
            queue,
            policy,
        }),
        2 => {
            let count = random.usize(0..MAX_RELEASES + 2);
            Body::Release((0..count).map(|_| number(random)).collect())
        }
        3 => Body::Error(Failure {
            code: random.u16(0..9),
            text: text(random, 40),
            closes: random.bool(),
        }),
        4 => Body::Ping,
        5 => Body::Pong,
        6 => Body::Request(content(random)),
        7 => Body::Reply(content(random)),
        8 => Body::Lane,
        9 => Body::Wake,
        10 => Body::Devices(devices(random)),
        11 => Body::Gpu(content(random), Box::new(block(random))),
        _ => Body::Tensor(content(random)),
    };
    let answers = matches!(body, Body::Welcome(_) | Body::Reply(_) | Body::Pong);
    Message {
        sequence: random.u64(..).max(1),
        refers: match answers {
            true => random.u64(..),
            false => 0,
        },
        body,
    }
}

fn devices(random: &mut Rng) -> Devices {
    let count = random.usize(0..66);
    let entry = |random: &mut Rng| DeviceEntry {
        uuid: [random.u8(..); 16],
        mig: random.bool(),
    };
    Devices {
        pid: random.u32(..),
        transports: random.u32(0..33),
        driver: random.u32(..),
        events: random.bool(),
        probe: [random.u8(..); 64],
        list: (0..count).map(|_| entry(random)).collect(),
    }
}

fn block(random: &mut Rng) -> DeviceBlock {
    let bytes = |random: &mut Rng| match random.bool() {
        true => [0; 64],
        false => [random.u8(..); 64],
    };
    DeviceBlock {
        transport: match random.u8(0..5) {
            0 => Transport::HostCopy,
            1 => Transport::Legacy,
            2 => Transport::Pool,
            3 => Transport::Fabric,
            _ => Transport::VmmFd,
        },
        has_event: random.bool(),
        pid: random.u32(..),
        uuid: [random.u8(..); 16],
        allocation: random.u64(0..3),
        handle: bytes(random),
        event: bytes(random),
    }
}

fn content(random: &mut Rng) -> Content {
    let ndim = match random.u8(0..10) {
        0 => random.usize(0..34),
        _ => random.usize(0..5),
    };
    let mut dimension = |small: std::ops::Range<i64>| match random.u8(0..8) {
        0 => number(random) as i64,
        _ => random.i64(small),
    };
    let shape = (0..ndim).map(|_| dimension(0..6) as u64).collect();
    let strides = (0..ndim).map(|_| dimension(-9..30)).collect();
    let dtype = Dtype::from_code(random.u16(1..22)).expect("codes 1 to 21");
    let tensor = (random.u8(0..5) > 0).then(|| Described {
        layout: Layout {
            dtype,
            shape,
            strides,
            offset: match random.u8(0..6) {
                0 => number(random),
                _ => random.u64(0..64) * dtype.part(),
            },
            byte_order: match dtype.part() {
                1 => ByteOrder::Little,
                _ if random.bool() => ByteOrder::Big,
                _ => ByteOrder::Little,
            },
        },
        sharing: match random.bool() {
            true => Sharing::Shared,
            false => Sharing::Immutable,
        },
        memory: random.u16(0..300) * u16::from(random.u8(0..3) == 0),
        size: match random.u8(0..6) {
            0 => number(random),
            _ => random.u64(1..5_000),
        },
    });
    let meta = random.usize(0..MAX_META + 20);
    Content {
        tensor,
        lost: match random.bool() {
            true => 0,
            false => random.u64(..),
        },
        tag: random.u64(..),
        name: text(random, 120),
        meta: match random.bool() {
            true => Vec::new(),
            false => vec![random.u8(..); meta],
        },
    }
}

fn text(random: &mut Rng, most: usize) -> String {
    let length = random.usize(0..most);
    (0..length)
        .map(|_| match random.u8(0..20) {
            0 => 'ü',
            1 => '\u{1b}',
            _ => random.alphanumeric(),
        })
        .collect()
}

/// A number where mistakes are made.
fn number(random: &mut Rng) -> u64 {
    let around = [
        0,
        1,
        64,
        4096,
        1 << 31,
        1 << 32,
        1 << 45,
        1 << 47,
        1 << 62,
        1 << 63,
        u64::MAX,
    ];
    let base = around[random.usize(0..around.len())];
    base.wrapping_add(random.u64(0..5)).wrapping_sub(2)
}

/// One small change.
fn change(random: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = random.usize(0..bytes.len());
    match random.u8(0..6) {
        0 => bytes[at] ^= 1 << random.u8(0..8),
        1 => bytes[at] = random.u8(..),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.u8(..)),
        4 => {
            let value = number(random).to_le_bytes();
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        _ => {
            let from = random.usize(0..bytes.len());
            let length = random.usize(0..32).min(bytes.len() - at.max(from));
            bytes.copy_within(from..from + length, at);
        }
    }
}

/// safetensors files: what is accepted can be read to the last byte.
pub fn safetensors(seed: u64, time: Duration) -> Counts {
    let mut random = Rng::with_seed(seed);
    let mut counts = Counts::default();
    let until = Instant::now() + time;
    while Instant::now() < until {
        for _ in 0..20 {
            let mut bytes = file(&mut random);
            for _ in 0..random.usize(0..3) {
                change(&mut random, &mut bytes);
            }
            let length = bytes.len();
            match Named::from_bytes(bytes) {
                Ok(named) => {
                    counts.accepted += 1;
                    let mut sum = 0;
                    for name in named.names() {
                        if let Ok(Some(view)) = named.get(&name) {
                            let elements: usize = view.shape.iter().product();
                            assert_eq!(
                                elements as u64 * view.dtype.size(),
                                view.bytes.len() as u64
                            );
                            sum += view.bytes.len();
                        }
                    }
                    assert!(sum < length);
                }
                Err(reason) => {
                    counts.refused += 1;
                    assert!(!reason.to_string().is_empty());
                }
            }
        }
    }
    counts
}

fn file(random: &mut Rng) -> Vec<u8> {
    let dtypes = [
        ("U8", 1),
        ("F32", 4),
        ("BF16", 2),
        ("F64", 8),
        ("F8_E5M2", 1),
        ("X", 1),
    ];
    let mut header = String::from("{");
    if random.bool() {
        header.push_str(r#""__metadata__":{"format":"pt"},"#);
    }
    let mut at = 0_u64;
    for tensor in 0..random.usize(0..4) {
        let known = dtypes.len() - usize::from(random.u8(0..5) > 0);
        let (dtype, size) = dtypes[random.usize(0..known)];
        let mut shape: Vec<u64> = (0..random.usize(0..4)).map(|_| random.u64(0..5)).collect();
        let mut end = at.wrapping_add(shape.iter().product::<u64>() * size);
        match random.u8(0..30) {
            0 => end = number(random),
            1 => at = number(random),
            2 => shape.push(number(random)),
            3 => {
                // Right in itself, and more than there can be.
                end = number(random);
                shape = vec![end.wrapping_sub(at) / size];
            }
            _ => {}
        }
        if tensor > 0 {
            header.push(',');
        }
        header.push_str(&format!(
            r#""t{tensor}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    }
    header.push('}');
    if header.contains(",}") {
        header = header.replace(",}", "}");
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    let data = at.min(2_000) as usize;
    bytes.resize(bytes.len() + data, 7);
    bytes
}
