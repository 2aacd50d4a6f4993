//! How long it takes until another process has a tensor, by several ways.
//!
//!     channels-bench [--quick] [--ways a,b] [--most BYTES]
//!
//! Prints one JSON object a line: way, size, samples, median, best and 99th percentile in nanoseconds. The consumer is
//! this program again. A time begins when the producer hands over and ends when the consumer has read the first and the
//! last byte; both read CLOCK_MONOTONIC. The next hand-over waits until the consumer has dropped the tensor and told its
//! time, and 100 µs.

mod ways;

use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

pub type Outcome<T> = Result<T, Box<dyn Error>>;

const SIZES: [usize; 7] = [
    4 << 10,
    64 << 10,
    1 << 20,
    16 << 20,
    64 << 20,
    256 << 20,
    1 << 30,
];

/// Before each hand-over: the consumer has gone back to wait, and whoever else was woken has gone to sleep.
const SETTLE: Duration = Duration::from_micros(100);

/// Nanoseconds of a clock that all processes share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [consume, way, size, directory] = &arguments[..]
        && consume == "--consume"
    {
        return self::consume(way, size.parse()?, Path::new(directory));
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let (samples, time) = match arguments.iter().any(|argument| argument == "--quick") {
        true => (200, Duration::from_millis(400)),
        false => (2_000, Duration::from_secs(3)),
    };
    let most: usize = value("--most").map_or(Ok(usize::MAX), |text| text.parse())?;
    let wanted = value("--ways");
    let directory = Path::new("/dev/shm").join(format!("isotest-bench-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let mut result = Ok(());
    'all: for way in ways::NAMES {
        if wanted
            .as_ref()
            .is_some_and(|wanted| !wanted.split(',').any(|one| one == way))
        {
            continue;
        }
        for size in SIZES.into_iter().filter(|&size| size <= most) {
            let times = match way.starts_with("memcpy") {
                true => memcpy(way, size, samples, time),
                false => produce(way, size, &directory, samples, time),
            };
            match times {
                Ok(times) => report(way, size, times),
                Err(error) => {
                    result = Err(format!("{way}, {size} bytes: {error}").into());
                    break 'all;
                }
            }
        }
    }
    std::fs::remove_dir_all(&directory)?;
    result
}

fn report(way: &str, size: usize, mut times: Vec<u64>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        r#"{{"way":"{way}","size":{size},"samples":{},"median":{},"best":{},"p99":{}}}"#,
        times.len(),
        at(50),
        at(0),
        at(99)
    );
}

fn produce(
    way: &str,
    size: usize,
    directory: &Path,
    samples: usize,
    time: Duration,
) -> Outcome<Vec<u64>> {
    let producer = ways::producer(way, size, directory)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--consume", way, &size.to_string()])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let times = (|| {
        let mut output = child.stdout.take().ok_or("no pipe")?;
        let input = child.stdin.take().ok_or("no pipe")?;
        let mut told = [0; 8];
        let mut producer = producer;
        producer.start(input)?;
        output.read_exact(&mut told)?;
        let mut times = Vec::new();
        let begun = Instant::now();
        // The first ones fill caches and page tables.
        for sample in 0..samples + 5 {
            std::thread::sleep(SETTLE);
            producer.hand_over()?;
            output.read_exact(&mut told)?;
            if sample >= 5 {
                times.push(u64::from_le_bytes(told));
            }
            if begun.elapsed() > time && times.len() >= 3 {
                break;
            }
        }
        Ok(times)
    })();
    child.kill()?;
    child.wait()?;
    times
}

fn consume(way: &str, size: usize, directory: &Path) -> Outcome<()> {
    let mut consumer = ways::consumer(way, size, directory)?;
    let mut output = std::io::stdout().lock();
    output.write_all(&[0; 8])?;
    output.flush()?;
    loop {
        let begun = consumer.take()?;
        let took = now() - begun;
        consumer.done();
        output.write_all(&took.to_le_bytes())?;
        output.flush()?;
    }
}

/// The measure for a copy: into memory that is new each time, or that is there already.
fn memcpy(way: &str, size: usize, samples: usize, time: Duration) -> Outcome<Vec<u64>> {
    let source = vec![1_u8; size];
    let mut warm = vec![2_u8; size];
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < samples && (begun.elapsed() < time || times.len() < 3) {
        let before = now();
        match way {
            "memcpy-warm" => warm.copy_from_slice(&source),
            _ => drop(std::hint::black_box(source.clone())),
        }
        std::hint::black_box(&warm);
        times.push(now() - before);
    }
    Ok(times)
}
