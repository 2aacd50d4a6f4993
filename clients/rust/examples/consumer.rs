//! Subscribes to an endpoint and prints a line for each tensor, or asks it.
//!
//!     consumer CHANNEL ENDPOINT [--count N] [--timeout MS] [--hold N] [--work MS]
//!     consumer CHANNEL ENDPOINT --ask NAME [--elements N]
//!
//! CHANNEL is a name or a directory. The endpoint may come later than the consumer: it is tried until the time-out.
//! A line: tag, name, dtype, shape, first and last element, how many were lost so far. --hold keeps so many tensors.

use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant};

use isorun_channel::{Channel, Outgoing, Received, Tensor, TensorMut};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [channel, endpoint, ..] = &arguments[..] else {
        return Err("usage: consumer CHANNEL ENDPOINT [options]".into());
    };
    let text = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let number = |name: &str, default: u64| match text(name) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    let timeout = Duration::from_millis(number("--timeout", 10_000)?);
    let channel = match channel.contains('/') {
        true => Channel::at(channel)?,
        false => Channel::open(channel)?,
    };
    if let Some(name) = text("--ask") {
        let requester = patiently(timeout, || channel.requester(endpoint))?;
        let elements = number("--elements", 0)?;
        let question = match elements {
            0 => Outgoing::empty(),
            _ => {
                let mut tensor = TensorMut::zeros(isorun_channel::Dtype::F32, &[elements])?;
                tensor.as_mut_slice::<f32>()?.fill(42.0);
                Outgoing::from(&tensor.freeze()?)
            }
        };
        let answer = requester.request(question.name(name).tag(7).meta(*b"meta"), timeout)?;
        println!("{}", line(&answer)?);
        return Ok(());
    }
    let subscriber = patiently(timeout, || channel.subscribe(endpoint))?;
    let (hold, work) = (number("--hold", 0)? as usize, number("--work", 0)?);
    let mut held: VecDeque<Tensor> = VecDeque::new();
    for _ in 0..number("--count", 10)? {
        let received = subscriber.recv(timeout)?;
        println!("{}", line(&received)?);
        held.extend(received.tensor);
        while held.len() > hold {
            held.pop_front();
        }
        std::thread::sleep(Duration::from_millis(work));
    }
    Ok(())
}

fn patiently<T>(
    timeout: Duration,
    connect: impl Fn() -> isorun_channel::Result<T>,
) -> isorun_channel::Result<T> {
    let until = Instant::now() + timeout;
    loop {
        match connect() {
            Err(isorun_channel::Error::Missing(_)) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn line(received: &Received) -> Result<String, Box<dyn Error>> {
    let Received {
        name, tag, lost, ..
    } = received;
    let Some(tensor) = &received.tensor else {
        return Ok(format!("{tag} {name} none lost={lost}"));
    };
    let mut bytes = vec![0; tensor.layout().bytes() as usize];
    tensor.read_into(&mut bytes)?;
    let size = tensor.dtype().size() as usize;
    let ends = match bytes.len() {
        0 => String::new(),
        length => format!(
            " first={} last={}",
            element(tensor, &bytes[..size]),
            element(tensor, &bytes[length - size..])
        ),
    };
    let (dtype, shape) = (tensor.dtype().name(), tensor.shape());
    Ok(format!("{tag} {name} {dtype} {shape:?}{ends} lost={lost}"))
}

/// f32 and f64 as numbers, others as bytes.
fn element(tensor: &Tensor, bytes: &[u8]) -> String {
    match (tensor.dtype().name(), bytes) {
        ("f32", &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]).to_string(),
        ("f64", &[a, b, c, d, e, f, g, h]) => {
            f64::from_ne_bytes([a, b, c, d, e, f, g, h]).to_string()
        }
        _ => format!("{bytes:02x?}"),
    }
}
