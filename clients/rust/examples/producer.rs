//! Publishes tensors on an endpoint, and answers requests.
//!
//!     producer CHANNEL ENDPOINT [--count N] [--elements N] [--subscribers N] [--pause MS] [--shared] [--serve SECONDS]
//!
//! CHANNEL is a name or a directory. Waits for the subscribers, then publishes f32 tensors: number i has i in every
//! element, the tag i and the name `step`. With --shared it is one buffer, written again when it is free. With --serve
//! it answers requests for so long: `echo` with the question's tensor, `zeros` with 8 f64, `fail` with an error.

use std::error::Error;
use std::time::{Duration, Instant};

use isorun_channel::{Channel, Dtype, Endpoint, Outgoing, Request, TensorMut};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [channel, endpoint, ..] = &arguments[..] else {
        return Err("usage: producer CHANNEL ENDPOINT [options]".into());
    };
    let option = |name: &str, default: u64| -> Result<u64, Box<dyn Error>> {
        match arguments.iter().position(|argument| argument == name) {
            Some(at) => Ok(arguments.get(at + 1).ok_or("a value is missing")?.parse()?),
            None => Ok(default),
        }
    };
    let count = option("--count", 10)?;
    let elements = option("--elements", 1024)?;
    let pause = Duration::from_millis(option("--pause", 0)?);
    let shared = arguments.iter().any(|argument| argument == "--shared");

    let endpoint = open(channel)?.listen(endpoint)?;
    println!("listening");
    endpoint.wait_for_subscribers(option("--subscribers", 1)? as usize, PATIENCE)?;
    match shared {
        true => publish_shared(&endpoint, count, elements, pause)?,
        false => publish(&endpoint, count, elements, pause)?,
    }
    println!("published {count}");
    let until = Instant::now() + Duration::from_secs(option("--serve", 0)?);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match endpoint.next_request(left) {
            Ok(request) => answer(request)?,
            Err(isorun_channel::Error::TimedOut { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Subscribers that are slow get theirs before the endpoint goes.
    let until = Instant::now() + PATIENCE;
    while endpoint.peers().iter().any(|peer| peer.queued > 0) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn open(channel: &str) -> isorun_channel::Result<Channel> {
    match channel.contains('/') {
        true => Channel::at(channel),
        false => Channel::open(channel),
    }
}

fn publish(
    endpoint: &Endpoint,
    count: u64,
    elements: u64,
    pause: Duration,
) -> isorun_channel::Result<()> {
    for step in 0..count {
        let mut tensor = TensorMut::zeros(Dtype::F32, &[elements])?;
        tensor.as_mut_slice::<f32>()?.fill(step as f32);
        let tensor = tensor.freeze()?;
        endpoint.wait_for_room(PATIENCE)?;
        endpoint.publish(Outgoing::from(&tensor).name("step").tag(step))?;
        std::thread::sleep(pause);
    }
    Ok(())
}

fn publish_shared(
    endpoint: &Endpoint,
    count: u64,
    elements: u64,
    pause: Duration,
) -> isorun_channel::Result<()> {
    let mut buffer = TensorMut::zeros(Dtype::F32, &[elements])?.share()?;
    for step in 0..count {
        endpoint.wait_until_free(&buffer, PATIENCE)?;
        buffer.as_mut_slice::<f32>()?.fill(step as f32);
        endpoint.publish(Outgoing::from(&buffer).name("step").tag(step))?;
        std::thread::sleep(pause);
    }
    endpoint.wait_until_free(&buffer, PATIENCE)
}

fn answer(request: Request) -> Result<(), Box<dyn Error>> {
    let tag = request.question.tag;
    let meta = request.question.meta.clone();
    let answered = match (request.question.name.as_str(), &request.question.tensor) {
        ("echo", Some(tensor)) => {
            let echo = Outgoing::from(tensor).name("echo").tag(tag).meta(meta);
            request.reply(echo)
        }
        ("echo", None) => request.reply(Outgoing::empty().name("echo").tag(tag).meta(meta)),
        ("zeros", _) => {
            let zeros = TensorMut::zeros(Dtype::F64, &[8])?.freeze()?;
            request.reply(Outgoing::from(&zeros).name("zeros"))
        }
        ("fail", _) => request.fail("it was asked to fail"),
        _ => request.unknown(),
    };
    match answered {
        // Who asked may have gone: that is no failure of this program.
        Ok(()) | Err(isorun_channel::Error::Closed(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
