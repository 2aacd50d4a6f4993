//! Tensors of a GPU from one process to another, for tests and measurements (feature `cuda`).
//!
//! gpu devices
//! gpu produce CHANNEL ENDPOINT [--kind KIND] [--bytes N] [--count N] [--subscribers N] [--stream] [--serve]
//!             [--hold] [--free] [--measure] [--max-copy BYTES] [--no-events]
//! gpu consume CHANNEL ENDPOINT [--count N] [--no-gpu] [--stream] [--hold] [--ask] [--no-events]
//!
//! The producer fills each tensor with its number, and the consumer looks whether every byte is that. `--kind` is a
//! transport's name, or `best`. `--hold`: after each tensor it waits for a line. `--free`: the producer frees memory
//! that others have open, as no program should. `--same`: the same memory
//! each time. `--keep`: the consumer lets go of nothing before the end. `--measure`: how long a hand-over takes, there and back.

use std::error::Error;
use std::io::{BufRead, stdin};
use std::time::{Duration, Instant};

use isorun_channel::cuda::{Gpu, GpuMemory, GpuTensor, Stream, Transport};
use isorun_channel::{
    Channel, ConnectOptions, Dtype, Endpoint, EndpointOptions, Layout, Outgoing, Received,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
const LONG: Duration = Duration::from_secs(30);

struct Arguments(Vec<String>);

impl Arguments {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument == name)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn number(&self, name: &str, otherwise: u64) -> Outcome<u64> {
        match self.value(name) {
            Some(text) => Ok(text
                .parse()
                .map_err(|_| format!("{name} {text}: not a number"))?),
            None => Ok(otherwise),
        }
    }

    fn position(&self, index: usize) -> Outcome<&str> {
        let text = self.0.get(index).map(String::as_str);
        Ok(text.ok_or(
            "usage: gpu devices | produce CHANNEL ENDPOINT ... | consume CHANNEL ENDPOINT ...",
        )?)
    }
}

fn main() {
    let arguments = Arguments(std::env::args().skip(1).collect());
    let done = match arguments.0.first().map(String::as_str) {
        Some("devices") => devices(),
        Some("produce") => produce(&arguments),
        Some("consume") => consume(&arguments),
        _ => Err(
            "usage: gpu devices | produce CHANNEL ENDPOINT ... | consume CHANNEL ENDPOINT ..."
                .into(),
        ),
    };
    if let Err(error) = done {
        println!("error: {error}");
        std::process::exit(1);
    }
}

fn devices() -> Outcome {
    for gpu in Gpu::all()? {
        println!(
            "{} {} {} driver {}",
            gpu.ordinal(),
            gpu.uuid_text(),
            gpu.name(),
            gpu.driver_version()
        );
        for transport in Transport::ALL {
            match gpu.can(transport) {
                Ok(()) => println!("  {}: yes", transport.name()),
                Err(why) => println!("  {}: no: {why}", transport.name()),
            }
        }
    }
    Ok(())
}

fn pause() -> Outcome {
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    Ok(())
}

fn allocate(gpu: &Gpu, kind: &str, bytes: u64) -> Outcome<GpuMemory> {
    if kind == "best" {
        return Ok(GpuMemory::new(gpu, bytes)?);
    }
    let transport = Transport::ALL
        .into_iter()
        .find(|transport| transport.name() == kind)
        .ok_or_else(|| format!("--kind {kind}: no transport's name"))?;
    Ok(GpuMemory::of_kind(gpu, bytes, transport)?)
}

fn produce(arguments: &Arguments) -> Outcome {
    let gpus = Gpu::all()?;
    let gpu = gpus.first().ok_or("there is no GPU")?.clone();
    let channel = Channel::at(arguments.position(1)?)?;
    let options = EndpointOptions {
        cuda: gpus,
        max_copy: arguments.number("--max-copy", u64::MAX)?,
        cuda_events: !arguments.has("--no-events"),
        ..EndpointOptions::default()
    };
    let endpoint = channel.listen_with(arguments.position(2)?, options)?;
    println!("listening");
    let bytes = arguments.number("--bytes", 1 << 20)?;
    let kind = arguments.value("--kind").unwrap_or("best");
    let layout = Layout::contiguous(Dtype::U8, &[bytes]).map_err(isorun_channel::Error::Layout)?;
    let stream = match arguments.has("--stream") {
        true => gpu.stream()?,
        false => Stream::DEFAULT,
    };
    if arguments.has("--serve") {
        let tensor = GpuTensor::new(allocate(&gpu, kind, bytes)?, layout)?;
        gpu.fill(&tensor, 42, stream)?;
        for _ in 0..arguments.number("--count", 1)? {
            let request = endpoint.next_request(LONG)?;
            request.reply(Outgoing::gpu(&tensor, stream).name("answer"))?;
        }
        // An answer is not counted as held: until whoever asked has gone.
        let end = Instant::now() + LONG;
        while !endpoint.peers().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("answered");
        return Ok(());
    }
    let subscribers = arguments.number("--subscribers", 1)?;
    endpoint.wait_for_subscribers(subscribers as usize, LONG)?;
    if arguments.has("--measure") {
        return measure(
            &gpu,
            &endpoint,
            &allocate(&gpu, kind, bytes)?.into_tensor(layout)?,
        );
    }
    if arguments.has("--same") {
        return same(&gpu, &endpoint, arguments, kind, layout);
    }
    for number in 0..arguments.number("--count", 1)? {
        let memory = allocate(&gpu, kind, bytes)?;
        let (tensor, owner) = match arguments.has("--free") {
            // As if a framework's: nothing but its word keeps the memory.
            true => {
                let tensor =
                    GpuTensor::foreign(&gpu, memory.pointer(), layout.clone(), Box::new(()))?;
                (tensor, Some(memory))
            }
            false => (memory.into_tensor(layout.clone())?, None),
        };
        gpu.fill(&tensor, number as u8, stream)?;
        endpoint.wait_for_room(LONG)?;
        let outgoing = Outgoing::gpu(&tensor, stream).name("step").tag(number);
        let published = endpoint.publish(outgoing)?;
        println!("published {number} copied={}", published.copied);
        for reason in endpoint.copy_reasons() {
            println!("because {reason}");
        }
        drop(tensor);
        if arguments.has("--hold") {
            pause()?;
        }
        drop(owner);
        if arguments.has("--free") {
            println!("freed");
            pause()?;
        }
    }
    until_released(&endpoint)?;
    println!("done");
    Ok(())
}

/// Parts of one allocation, one after the other.
fn same(
    gpu: &Gpu,
    endpoint: &Endpoint,
    arguments: &Arguments,
    kind: &str,
    layout: Layout,
) -> Outcome {
    let count = arguments.number("--count", 1)?;
    let part = layout.bytes();
    let memory = allocate(gpu, kind, part * count)?;
    let pointer = memory.pointer();
    let memory = std::sync::Arc::new(memory);
    for number in 0..count {
        let tensor = GpuTensor::foreign(
            gpu,
            pointer + number * part,
            layout.clone(),
            Box::new(memory.clone()),
        )?;
        gpu.fill(&tensor, number as u8, Stream::DEFAULT)?;
        let outgoing = Outgoing::from(&tensor).name("step").tag(number);
        println!(
            "published {number} copied={}",
            endpoint.publish(outgoing)?.copied
        );
    }
    drop(memory);
    until_released(endpoint)?;
    println!("done");
    Ok(())
}

/// Until nobody has anything any more.
fn until_released(endpoint: &Endpoint) -> Outcome {
    let end = Instant::now() + LONG;
    while endpoint.peers().iter().any(|peer| peer.holds > 0) {
        if Instant::now() > end {
            return Err("it is still held".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn measure(gpu: &Gpu, endpoint: &Endpoint, tensor: &GpuTensor) -> Outcome {
    gpu.fill(tensor, 0, Stream::DEFAULT)?;
    gpu.wait_for(Stream::DEFAULT, LONG)?;
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut copied = 0;
    while times.len() < 50 && (times.len() < 3 || begun.elapsed() < Duration::from_secs(10)) {
        let start = Instant::now();
        copied += endpoint
            .publish(Outgoing::from(tensor).name("measure"))?
            .copied;
        while endpoint.peers().iter().any(|peer| peer.holds > 0) {
            if start.elapsed() > LONG {
                return Err("it is still held".into());
            }
            std::hint::spin_loop();
        }
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "measured bytes={} times={} copied={copied} min_us={} median_us={}",
        tensor.layout().bytes(),
        times.len(),
        times[0].as_micros(),
        times[times.len() / 2].as_micros()
    );
    endpoint.publish(Outgoing::empty().name("end"))?;
    until_released(endpoint)
}

fn consume(arguments: &Arguments) -> Outcome {
    let gpus = match arguments.has("--no-gpu") {
        true => Vec::new(),
        false => Gpu::all()?,
    };
    let channel = Channel::at(arguments.position(1)?)?;
    let stream = match (arguments.has("--stream"), gpus.first()) {
        (true, Some(gpu)) => Some(gpu.stream()?),
        _ => None,
    };
    let options = ConnectOptions {
        cuda: gpus,
        cuda_stream: stream,
        cuda_events: !arguments.has("--no-events"),
        ..ConnectOptions::default()
    };
    let endpoint = arguments.position(2)?;
    let end = Instant::now() + LONG;
    if arguments.has("--ask") {
        let requester = retry(end, || channel.requester_with(endpoint, &options))?;
        let answer = requester.request(Outgoing::empty(), LONG)?;
        println!("{}", look(&answer)?);
        return Ok(());
    }
    let subscriber = retry(end, || channel.subscribe_with(endpoint, &options))?;
    println!("subscribed");
    let mut kept = Vec::new();
    for _ in 0..arguments.number("--count", 1)? {
        let received = match subscriber.recv(LONG) {
            Ok(received) => received,
            Err(error @ isorun_channel::Error::Gpu(_)) => {
                // This tensor was not to be had; the connection goes on.
                println!("refused: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match received.name.as_str() {
            "end" => return Ok(()),
            "measure" => upload(&received)?,
            _ => println!("{}", look(&received)?),
        }
        while arguments.has("--hold") {
            let mut line = String::new();
            stdin().lock().read_line(&mut line)?;
            if line.trim() != "look" {
                break;
            }
            match look(&received) {
                Ok(text) => println!("{text}"),
                Err(error) => println!("refused: {error}"),
            }
        }
        if arguments.has("--keep") {
            kept.push(received);
            println!("open {}", isorun_channel::cuda::open_allocations());
        }
    }
    drop(kept);
    println!("open {}", isorun_channel::cuda::open_allocations());
    println!("done");
    Ok(())
}

fn retry<T>(end: Instant, mut what: impl FnMut() -> isorun_channel::Result<T>) -> Outcome<T> {
    loop {
        match what() {
            Err(isorun_channel::Error::Missing(_)) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return Ok(other?),
        }
    }
}

/// What came, after every byte was looked at.
fn look(received: &Received) -> Outcome<String> {
    let (host, way) = match (&received.gpu, &received.tensor) {
        (Some(tensor), _) => (
            tensor.to_host()?,
            tensor.came_by().map_or("none", Transport::name),
        ),
        (None, Some(tensor)) => (tensor.clone(), "host"),
        (None, None) => return Err("there is no tensor".into()),
    };
    let bytes = host.bytes()?;
    let first = *bytes.first().ok_or("the tensor is empty")?;
    let same = bytes.iter().all(|&byte| byte == first);
    Ok(format!(
        "{} tag={} way={way} copied={} bytes={} value={first} same={same}",
        received.name,
        received.tag,
        received.copied_from_gpu,
        bytes.len()
    ))
}

/// For measurements of the copy: the tensor is to be on the GPU again.
fn upload(received: &Received) -> Outcome {
    if let (None, Some(host)) = (&received.gpu, &received.tensor)
        && let Ok(gpu) = Gpu::open(0)
    {
        let bytes = host.bytes()?;
        GpuMemory::new(&gpu, bytes.len() as u64)?.write(0, bytes)?;
    }
    Ok(())
}
