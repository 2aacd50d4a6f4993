//! Two sides that are killed at any time, and keep what they say: the load of integration/engines/channels.
//!
//!     traffic produce CHANNEL ENDPOINT [--mib N]
//!     traffic consume CHANNEL ENDPOINT --log FILE [--seconds S]
//!
//! CHANNEL is a name or a directory. The producer publishes tensors of N MiB (100) until it is killed; every third one
//! it also puts into the channel by the name of the endpoint. With each goes the sum of its words.
//!
//! The consumer adds them up again. It appends a line to FILE for each: `tensor STEP`, `named STEP`; `gone` when the
//! endpoint ends, and then it waits for the next one. A wrong sum ends it with the status 3, S seconds (60) without a
//! tensor with 4.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use isorun_channel::{
    Channel, ConnectOptions, Dtype, Error as Failure, Named, Outgoing, Policy, Subscriber, Tensor,
    TensorMut,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [side, channel, endpoint, ..] = &arguments[..] else {
        return Err("usage: traffic produce|consume CHANNEL ENDPOINT [options]".into());
    };
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let channel = match channel.contains('/') {
        true => Channel::at(channel)?,
        false => Channel::open(channel)?,
    };
    match side.as_str() {
        "produce" => {
            let mib = option("--mib").map_or(Ok(100), |text| text.parse())?;
            produce(&channel, endpoint, mib)
        }
        "consume" => {
            let path = option("--log").ok_or("the consumer needs --log FILE")?;
            let seconds = option("--seconds").map_or(Ok(60), |text| text.parse())?;
            let log = OpenOptions::new().append(true).create(true).open(path)?;
            consume(&channel, endpoint, log, Duration::from_secs(seconds))
        }
        other => Err(format!("{other:?} is neither produce nor consume").into()),
    }
}

/// The word at a place of a tensor: another one at each place, in each tensor and for each producer.
fn word(salt: u64, place: usize) -> u64 {
    (place as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Depends on where each word is, too.
fn sum(words: impl Iterator<Item = u64>) -> u64 {
    words.enumerate().fold(0, |sum, (place, word)| {
        sum.wrapping_add(word ^ (place as u64).rotate_left(32))
    })
}

fn produce(channel: &Channel, name: &str, mib: u64) -> Result<(), Box<dyn Error>> {
    let endpoint = channel.listen(name)?;
    for step in 0.. {
        endpoint.wait_for_subscribers(1, PATIENCE)?;
        let mut tensor = TensorMut::zeros(Dtype::U64, &[mib << 17])?;
        let salt = (u64::from(std::process::id()) << 32) + step;
        let words = tensor.as_mut_slice::<u64>()?;
        for (place, into) in words.iter_mut().enumerate() {
            *into = word(salt, place);
        }
        let sum = sum(words.iter().copied());
        let tensor = tensor.freeze()?;
        endpoint.wait_for_room(PATIENCE)?;
        if step % 3 == 2 {
            let sum = Tensor::copy_of(&[sum], &[1])?;
            channel.put(name, &[("tensor", &tensor), ("sum", &sum)])?;
        }
        endpoint.publish(
            Outgoing::from(&tensor)
                .name("step")
                .tag(step)
                .meta(sum.to_le_bytes()),
        )?;
    }
    Ok(())
}

fn consume(
    channel: &Channel,
    name: &str,
    mut log: File,
    patience: Duration,
) -> Result<(), Box<dyn Error>> {
    let options = ConnectOptions {
        credits: 1,
        queue: Some(1),
        policy: Policy::DropOldest,
        ..ConnectOptions::default()
    };
    let mut last = Instant::now();
    loop {
        match channel.subscribe_with(name, &options) {
            Ok(subscriber) => {
                while let Some(step) = one(&subscriber, patience)? {
                    last = Instant::now();
                    writeln!(log, "tensor {step}")?;
                    if step % 3 == 2 {
                        named(&channel.read(name)?)?;
                        writeln!(log, "named {step}")?;
                    }
                }
                writeln!(log, "gone")?;
            }
            // Not there yet, or its listener was killed just now.
            Err(Failure::Missing(_) | Failure::Closed(_)) if last.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) if last.elapsed() < patience => return Err(error.into()),
            Err(error) => {
                eprintln!("nothing for {patience:?}: {error}");
                std::process::exit(4);
            }
        }
    }
}

/// The step of the next tensor; none where the endpoint has gone.
fn one(subscriber: &Subscriber, patience: Duration) -> Result<Option<u64>, Box<dyn Error>> {
    let received = match subscriber.recv(patience) {
        Err(Failure::Closed(_)) => return Ok(None),
        other => other?,
    };
    let tensor = received.tensor.ok_or("a message without a tensor")?;
    let sent = u64::from_le_bytes(received.meta[..].try_into()?);
    let step = received.tag;
    same(sum(tensor.as_slice::<u64>()?.iter().copied()), sent, step);
    Ok(Some(step))
}

/// The tensor with its name in the channel: whole, whoever is killed while it is written.
fn named(file: &Named) -> Result<(), Box<dyn Error>> {
    let (tensor, sent) = (file.get("tensor")?, file.get("sum")?);
    let (tensor, sent) = (tensor.ok_or("no tensor")?, sent.ok_or("no sum")?);
    let words = tensor.bytes.as_chunks::<8>().0.iter();
    let sent = u64::from_le_bytes(sent.bytes.try_into()?);
    same(sum(words.map(|word| u64::from_le_bytes(*word))), sent, 0);
    Ok(())
}

fn same(seen: u64, sent: u64, step: u64) {
    if seen != sent {
        eprintln!("step {step}: the sum is {seen:016x}, and the producer has {sent:016x}");
        std::process::exit(3);
    }
}
