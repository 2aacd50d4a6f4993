//! Tensors of GPUs between processes, with a stand-in for libcuda (tests/standin-libcuda): every transport, and what
//! goes wrong with each. Nothing here says how a real GPU behaves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use isorun_channel::device::{DeviceBlock, DeviceEntry, Devices, FEATURE_CUDA, Transport};
use isorun_channel::wire::{Body, Content, Described, Hello, Message, Policy, Sharing, role};
use isorun_channel::{Dtype, Error, Layout};
use support::{LONG, Place};

/// A directory with the stand-in, once for each set of symbols that it lacks.
fn standin(without: &[&str]) -> PathBuf {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = LOCK.lock().unwrap();
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("standin-libcuda");
    let directory = root.join(match without {
        [] => "whole".to_owned(),
        some => some.join("-"),
    });
    static BUILT: OnceLock<std::sync::Mutex<Vec<PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Default::default).lock().unwrap();
    if !built.contains(&directory) {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/standin-libcuda/build");
        let status = Command::new(build).arg(&directory).args(without).status();
        assert!(status.unwrap().success(), "the stand-in (needs gcc)");
        built.push(directory.clone());
    }
    directory
}

/// A channel, and a "GPU" that its processes share.
struct Gpus {
    place: Place,
    gpu: PathBuf,
}

impl Gpus {
    fn new() -> Self {
        let place = Place::new();
        let gpu = place.path.with_extension("gpu");
        std::fs::create_dir_all(gpu.join("shm")).unwrap();
        Self { place, gpu }
    }

    fn command(&self, what: &str) -> Command {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().unwrap().parent().unwrap();
        let mut command = Command::new(program.join("examples/gpu"));
        command
            .arg(what)
            .arg(&self.place.path)
            .arg("e")
            .env("LD_LIBRARY_PATH", standin(&[]))
            .env("ISORUN_STANDIN_CUDA", &self.gpu)
            .env("ISORUN_STANDIN_SHM", self.gpu.join("shm"));
        command
    }

    fn start(&self, what: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let mut command = self.command(what);
        command.args(arguments).envs(variables.iter().copied());
        Running::new(command)
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.gpu);
    }
}

struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn new(mut command: Command) -> Self {
        // What hangs ends: no line within this time is a failure of the test.
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The other lines, and whether it ended well.
    fn end(mut self) -> (Vec<String>, bool) {
        let lines = (&mut self.output).lines().map(Result::unwrap).collect();
        let well = self.child.wait().unwrap().success();
        (lines, well)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a consumer and a producer say, each with its own variables.
fn exchange(
    gpus: &Gpus,
    kind: &str,
    more: &[&str],
    producers: &[(&str, &str)],
    consumers: &[(&str, &str)],
) -> (Vec<String>, Vec<String>) {
    let mut arguments = vec!["--kind", kind, "--count", "3", "--bytes", "3000000"];
    arguments.extend(more);
    let producer = gpus.start("produce", &arguments, producers);
    let mut arguments = vec!["--count", "3"];
    arguments.extend(more.iter().filter(|word| **word == "--stream"));
    let consumer = gpus.start("consume", &arguments, consumers);
    let (consumed, well) = consumer.end();
    assert!(well, "{consumed:?}");
    let (produced, well) = producer.end();
    assert!(well, "{produced:?}");
    (produced, consumed)
}

fn steps(way: &str, copied: bool) -> Vec<String> {
    let mut lines = vec!["subscribed".to_owned()];
    lines.extend((0..3).map(|n| {
        format!("step tag={n} way={way} copied={copied} bytes=3000000 value={n} same=true")
    }));
    lines.extend(["open 0".to_owned(), "done".to_owned()]);
    lines
}

#[test]
fn each_transport_hands_over_the_memory_itself() {
    for kind in ["vmm-fd", "legacy", "pool", "fabric"] {
        let gpus = Gpus::new();
        let imex = [("ISORUN_STANDIN_IMEX", "1")];
        let (produced, consumed) = exchange(&gpus, kind, &[], &imex, &imex);
        assert_eq!(consumed, steps(kind, false));
        assert_eq!(produced[1], "published 0 copied=0", "{kind}");
        assert!(produced.iter().all(|line| !line.contains("because")));
    }
}

#[test]
fn nobody_reads_before_the_kernel_has_finished() {
    // Each kernel takes 150 ms on a stream that nothing waits for by itself. With events and without them.
    let slow = ("ISORUN_STANDIN_DELAY_MS", "150");
    for (kind, events) in [("vmm-fd", true), ("legacy", true), ("vmm-fd", false)] {
        let gpus = Gpus::new();
        let other = gpus.gpu.join("other-shm");
        std::fs::create_dir(&other).unwrap();
        let mut consumers = vec![slow];
        if !events {
            consumers.push(("ISORUN_STANDIN_SHM", other.to_str().unwrap()));
        }
        let (_, consumed) = exchange(&gpus, kind, &["--stream"], &[slow], &consumers);
        assert_eq!(consumed, steps(kind, false), "{kind}, events {events}");
        let (_, consumed) = exchange(&gpus, kind, &[], &[slow], &consumers);
        assert_eq!(consumed, steps(kind, false), "{kind}, events {events}");
    }
}

#[test]
fn whoever_cannot_take_it_gets_a_copy_and_both_are_told() {
    let old = standin(&["cuMemImportFromShareableHandle"]);
    let old = old.to_str().unwrap();
    let none = ("ISORUN_STANDIN_CUDA", "/nonexistent");
    // Kind, the consumer's variables, the reason.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case<'_>] = &[
        (
            "vmm-fd",
            &[("ISORUN_STANDIN_UUIDS", "b")],
            "the other side uses GPU-",
        ),
        (
            "legacy",
            &[("ISORUN_STANDIN_UUIDS", "b")],
            "the other side uses GPU-",
        ),
        (
            "vmm-fd",
            &[("LD_LIBRARY_PATH", old)],
            "the other side cannot open vmm-fd memory",
        ),
        (
            "legacy",
            &[("ISORUN_STANDIN_MIG", "1")],
            "the other side cannot open legacy memory",
        ),
    ];
    for (kind, consumers, reason) in cases {
        let gpus = Gpus::new();
        let (produced, consumed) = exchange(&gpus, kind, &[], &[], consumers);
        assert_eq!(consumed, steps("host", true), "{reason}");
        assert_eq!(produced[1], "published 0 copied=1");
        assert!(produced[2].contains(reason), "{}", produced[2]);
    }
    // The producer's own memory cannot be shared: legacy handles on MIG.
    let gpus = Gpus::new();
    let mig = [("ISORUN_STANDIN_MIG", "1")];
    let (produced, consumed) = exchange(&gpus, "legacy", &[], &mig, &mig);
    assert_eq!(consumed, steps("host", true));
    assert!(produced[2].contains("MIG"), "{}", produced[2]);
    // No GPU at all, and a client that never heard of GPUs: the same copy.
    let gpus = Gpus::new();
    let producer = gpus.start("produce", &["--bytes", "3000000", "--count", "3"], &[]);
    let consumer = gpus.start("consume", &["--count", "3", "--no-gpu"], &[none]);
    assert_eq!(consumer.end().0, steps("host", false));
    assert!(producer.end().0[2].contains("takes no memory of GPUs"));
}

#[test]
fn an_instance_of_mig_is_shared_with_itself() {
    let gpus = Gpus::new();
    let mig = [("ISORUN_STANDIN_MIG", "1")];
    let (_, consumed) = exchange(&gpus, "vmm-fd", &[], &mig, &mig);
    assert_eq!(consumed, steps("vmm-fd", false));
}

#[test]
fn an_allocation_is_opened_once() {
    for kind in ["vmm-fd", "legacy", "pool"] {
        let gpus = Gpus::new();
        let arguments = ["--kind", kind, "--same", "--count", "4", "--bytes", "70000"];
        let producer = gpus.start("produce", &arguments, &[]);
        let consumer = gpus.start("consume", &["--keep", "--count", "4"], &[]);
        let (lines, well) = consumer.end();
        assert!(well, "{lines:?}");
        let mut want = vec!["subscribed".to_owned()];
        for n in 0..4 {
            want.push(format!(
                "step tag={n} way={kind} copied=false bytes=70000 value={n} same=true"
            ));
            want.push("open 1".to_owned());
        }
        want.extend(["open 0".to_owned(), "done".to_owned()]);
        assert_eq!(lines, want);
        assert_eq!(producer.end().0.last().unwrap(), "done");
    }
}

#[test]
fn equal_pids() {
    // As two PID 1 of two containers: the driver takes the handle for the process's own.
    let gpus = Gpus::new();
    let one = [("ISORUN_STANDIN_PID", "1")];
    let producer = gpus.start("produce", &["--kind", "legacy"], &one);
    let (lines, well) = gpus.start("consume", &[], &one).end();
    assert!(well && lines[1].starts_with("refused: "), "{lines:?}");
    assert!(
        lines[1].contains("CUDA_ERROR_INVALID_CONTEXT (201)"),
        "{lines:?}"
    );
    // It was released all the same.
    assert_eq!(producer.end().0.last().unwrap(), "done");
    // The descriptor does not mind.
    let (_, consumed) = exchange(&gpus, "vmm-fd", &[], &one, &one);
    assert_eq!(consumed, steps("vmm-fd", false));
}

#[test]
fn equal_pids_in_namespaces_are_seen_before_the_driver_is_asked() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return support::skip("pid namespaces need root");
    }
    let gpus = Gpus::new();
    let in_namespace = |what: &str, arguments: &[&str]| {
        let inner = gpus.command(what);
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(arguments)
            .envs(
                inner
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        Running::new(command)
    };
    let producer = in_namespace(
        "produce",
        &["--kind", "legacy", "--bytes", "3000000", "--count", "3"],
    );
    let consumer = in_namespace("consume", &["--count", "3"]);
    assert_eq!(consumer.end().0, steps("host", true));
    let lines = producer.end().0;
    assert!(
        lines[2].contains("both processes have the pid 1"),
        "{lines:?}"
    );
}

#[test]
fn a_missing_or_old_driver_is_named() {
    let gpus = Gpus::new();
    let run = |directory: &Path, gpu: &Path| {
        let mut command = gpus.command("devices");
        command
            .env("LD_LIBRARY_PATH", directory)
            .env("ISORUN_STANDIN_CUDA", gpu);
        let (lines, well) = Running::new(command).end();
        (lines.join("\n"), well)
    };
    let (said, well) = run(&gpus.place.path, &gpus.gpu);
    // On a machine with a driver of its own that one is found.
    if well || !said.contains("libcuda.so.1") {
        support::skip("there is a libcuda on this machine: a missing one was not tried");
    }
    let (said, well) = run(&standin(&[]), Path::new("/nonexistent"));
    assert!(
        !well && said.contains("cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        "{said}"
    );
    let (said, well) = run(&standin(&["cuEventQuery"]), &gpus.gpu);
    assert!(
        !well && said.contains("the driver lacks cuEventQuery"),
        "{said}"
    );
    let older = ["cuMemCreate", "cuMemPoolExportPointer"];
    let (said, well) = run(&standin(&older), &gpus.gpu);
    assert!(well, "{said}");
    assert!(
        said.contains("vmm-fd: no: the driver lacks cuMemCreate"),
        "{said}"
    );
    assert!(
        said.contains("pool: no: the driver lacks cuMemPoolExportPointer"),
        "{said}"
    );
    assert!(said.contains("legacy: yes"), "{said}");
    assert!(said.contains("fabric: no: "), "{said}");
    // What is left is used.
    let old = standin(&older);
    let old = [("LD_LIBRARY_PATH", old.to_str().unwrap())];
    let (_, consumed) = exchange(&gpus, "best", &[], &old, &old);
    assert_eq!(consumed, steps("legacy", false));
}

#[test]
fn a_producer_that_dies() {
    for kind in ["vmm-fd", "legacy", "pool"] {
        let gpus = Gpus::new();
        let mut producer = gpus.start("produce", &["--kind", kind, "--hold"], &[]);
        let mut consumer = gpus.start("consume", &["--count", "2", "--hold"], &[]);
        assert_eq!(producer.line(), "listening");
        assert_eq!(consumer.line(), "subscribed");
        assert!(consumer.line().contains("value=0 same=true"));
        producer.kill();
        consumer.tell("look");
        let said = consumer.line();
        match kind {
            // The descriptor keeps the memory.
            "vmm-fd" => assert!(said.contains("value=0 same=true"), "{said}"),
            _ => assert!(
                said.contains(&format!("the owner of the {kind} memory has gone")),
                "{said}"
            ),
        }
        consumer.tell("");
        let (lines, well) = consumer.end();
        assert!(
            !well && lines[0].contains("the other side has gone"),
            "{lines:?}"
        );
    }
}

#[test]
fn a_consumer_that_dies_gives_back_what_it_held() {
    for kind in ["vmm-fd", "legacy", "pool"] {
        let gpus = Gpus::new();
        let producer = gpus.start("produce", &["--kind", kind], &[]);
        let mut consumer = gpus.start("consume", &["--hold"], &[]);
        assert_eq!(consumer.line(), "subscribed");
        assert!(consumer.line().contains("value=0"));
        consumer.kill();
        // It waits until nobody holds anything.
        assert_eq!(producer.end().0.last().unwrap(), "done", "{kind}");
    }
}

#[test]
fn memory_freed_under_a_reader() {
    let gpus = Gpus::new();
    let mut producer = gpus.start("produce", &["--kind", "legacy", "--free", "--hold"], &[]);
    let mut consumer = gpus.start("consume", &["--hold"], &[]);
    assert_eq!(consumer.line(), "subscribed");
    assert!(consumer.line().contains("value=0"));
    producer.tell("");
    while producer.line() != "freed" {}
    consumer.tell("look");
    let said = consumer.line();
    assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{said}");
    // Memory of cuMemCreate is kept by whoever has it open.
    let gpus = Gpus::new();
    let mut producer = gpus.start("produce", &["--kind", "vmm-fd", "--free", "--hold"], &[]);
    let mut consumer = gpus.start("consume", &["--hold"], &[]);
    assert_eq!(consumer.line(), "subscribed");
    assert!(consumer.line().contains("value=0"));
    producer.tell("");
    while producer.line() != "freed" {}
    consumer.tell("look");
    assert!(consumer.line().contains("value=0 same=true"));
}

#[test]
fn an_answer_is_a_tensor_of_a_gpu_too() {
    for (more, want) in [
        (
            &[][..],
            "answer tag=0 way=vmm-fd copied=false bytes=1048576 value=42 same=true",
        ),
        (
            &["--no-gpu"][..],
            "answer tag=0 way=host copied=false bytes=1048576 value=42 same=true",
        ),
    ] {
        let gpus = Gpus::new();
        let producer = gpus.start("produce", &["--serve"], &[]);
        let mut arguments = vec!["--ask"];
        arguments.extend(more);
        assert_eq!(gpus.start("consume", &arguments, &[]).end().0, [want]);
        assert_eq!(producer.end().0.last().unwrap(), "answered");
    }
}

#[test]
fn a_copy_that_cannot_be_made_is_lost_by_those_who_need_it() {
    let gpus = Gpus::new();
    let arguments = "--subscribers 2 --count 3 --bytes 3000000 --max-copy 0";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let producer = gpus.start("produce", &arguments, &[]);
    let path = gpus.place.path.join("e.sock");
    support::eventually("it listens", || path.exists());
    // Knows nothing of GPUs.
    let raw = support::Raw::welcome(&gpus.place.path, "e", role::SUBSCRIBER, 4);
    let consumed = gpus.start("consume", &["--count", "3"], &[]).end().0;
    assert_eq!(consumed, steps("vmm-fd", false));
    let lines = producer.end().0;
    assert!(lines.contains(&"published 2 copied=0".to_owned()));
    let reason = lines.iter().find(|line| line.contains("max_copy"));
    assert!(reason.is_some(), "{lines:?}");
    assert!(raw.hear().is_none(), "it got a copy");
}

#[test]
fn without_events_the_kernel_is_waited_for() {
    let gpus = Gpus::new();
    let slow = [("ISORUN_STANDIN_DELAY_MS", "100")];
    for (producer_says, consumer_says) in [("--no-events", ""), ("", "--no-events")] {
        let produced: Vec<_> = ["--count", "3", "--bytes", "3000000", producer_says].into();
        let producer = gpus.start("produce", &produced, &slow);
        let consumed = gpus.start("consume", &["--count", "3", consumer_says], &slow);
        assert_eq!(consumed.end().0, steps("vmm-fd", false));
        assert_eq!(producer.end().0.last().unwrap(), "done");
    }
}

#[test]
fn a_requester_that_releases_nothing_gets_no_more() {
    let gpus = Gpus::new();
    let producer = gpus.start("produce", &["--serve", "--count", "3"], &[]);
    let path = gpus.place.path.join("e.sock");
    support::eventually("it listens", || path.exists());
    let mut raw = support::Raw::connect(&gpus.place.path, "e");
    let hello = Hello {
        lowest: 1,
        highest: 1,
        roles: role::REQUESTER,
        features: FEATURE_CUDA,
        credits: 2,
        queue: 0,
        policy: Policy::DropOldest,
    };
    raw.say(0, Body::Hello(hello), &[]).unwrap();
    assert!(matches!(raw.hear().unwrap().body, Body::Welcome(_)));
    let devices = Devices {
        pid: 5,
        transports: Transport::VmmFd.bit(),
        driver: 1,
        events: false,
        probe: [0; 64],
        list: vec![DeviceEntry {
            uuid: *b"STAND-IN FOR GPa",
            mig: false,
        }],
    };
    raw.say(0, Body::Devices(devices), &[]).unwrap();
    assert!(matches!(raw.hear().unwrap().body, Body::Devices(_)));
    let mut ask = |release: Option<u64>| {
        if let Some(sequence) = release {
            raw.say(0, Body::Release(vec![sequence]), &[]).unwrap();
        }
        let nothing = Content {
            tensor: None,
            lost: 0,
            tag: 0,
            name: String::new(),
            meta: Vec::new(),
        };
        raw.say(0, Body::Request(nothing), &[]).unwrap();
        raw.hear().unwrap()
    };
    let first = ask(None);
    assert!(matches!(first.body, Body::Gpu(..)), "{first:?}");
    let second = ask(None);
    assert!(matches!(second.body, Body::Gpu(..)), "{second:?}");
    let third = ask(None);
    assert!(
        matches!(&third.body, Body::Error(failure) if !failure.closes && failure.text.contains("too many")),
        "{third:?}"
    );
    let fourth = ask(Some(first.sequence));
    assert!(matches!(fourth.body, Body::Gpu(..)), "{fourth:?}");
    drop(raw);
    assert_eq!(producer.end().0.last().unwrap(), "answered");
}

/// An endpoint that says about its memory what it likes, to a consumer.
fn lies(gpus: &Gpus, block: &DeviceBlock, size: u64, fd: Option<std::os::fd::OwnedFd>) -> String {
    lies_to(gpus, &[], block, size, fd)
}

fn lies_to(
    gpus: &Gpus,
    arguments: &[&str],
    block: &DeviceBlock,
    size: u64,
    fd: Option<std::os::fd::OwnedFd>,
) -> String {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let path = gpus.place.path.join("e.sock");
    let _ = std::fs::remove_file(&path);
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 4).unwrap();
    let consumer = gpus.start("consume", arguments, &[]);
    let socket = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
    let mut raw = support::Raw {
        socket,
        sequence: 0,
    };
    let hello = raw.hear().unwrap();
    let Body::Hello(hello) = hello.body else {
        panic!("{hello:?}")
    };
    assert_eq!(hello.features & FEATURE_CUDA, FEATURE_CUDA);
    raw.say(
        1,
        Body::Welcome(isorun_channel::wire::Welcome {
            version: 1,
            roles: role::SUBSCRIBER,
            features: FEATURE_CUDA,
            credits: 4,
            queue: 4,
            policy: Policy::DropOldest,
        }),
        &[],
    )
    .unwrap();
    let theirs = raw.hear().unwrap();
    let Body::Devices(theirs) = theirs.body else {
        panic!("{theirs:?}")
    };
    let events = !arguments.contains(&"--no-events");
    assert_eq!((theirs.events, theirs.probe != [0; 64]), (events, events));
    raw.say(2, Body::Devices(theirs), &[]).unwrap();
    let content = Content {
        tensor: Some(Described {
            layout: Layout::contiguous(Dtype::U8, &[size]).unwrap(),
            sharing: Sharing::Shared,
            size,
            memory: 0,
        }),
        lost: 0,
        tag: 0,
        name: "lie".into(),
        meta: Vec::new(),
    };
    let descriptors: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    raw.say(0, Body::Gpu(content, Box::new(block.clone())), &descriptors)
        .unwrap();
    let (lines, well) = consumer.end();
    assert!(well, "{lines:?}");
    lines[1].clone()
}

#[test]
fn lies_about_memory() {
    let gpus = Gpus::new();
    let uuid = *b"STAND-IN FOR GPa";
    let block = DeviceBlock {
        transport: Transport::VmmFd,
        has_event: false,
        pid: 77,
        uuid,
        allocation: 1,
        handle: [0; 64],
        event: [0; 64],
    };
    let file = |size: u64| -> std::os::fd::OwnedFd {
        let fd = rustix::fs::memfd_create(c"lie", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        fd
    };
    // A descriptor that is no memory of a GPU, and memory that is smaller than its message says.
    let said = lies(
        &gpus,
        &block,
        4096,
        Some(std::fs::File::open("/dev/null").unwrap().into()),
    );
    assert!(
        said.contains("cannot open vmm-fd memory of process 77"),
        "{said}"
    );
    let said = lies(&gpus, &block, 8 << 20, Some(file(2 << 20)));
    assert!(
        said.contains("cuMemMap: CUDA_ERROR_INVALID_VALUE (1)"),
        "{said}"
    );
    // A handle that nobody made, one of a dead process, another GPU, an event that is none.
    let handle = DeviceBlock {
        transport: Transport::Legacy,
        handle: [1; 64],
        ..block.clone()
    };
    let said = lies(&gpus, &handle, 4096, None);
    assert!(
        said.contains("cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE (1)"),
        "{said}"
    );
    let mut dead = [0; 64];
    dead[..4].copy_from_slice(b"SIPC");
    dead[4..8].copy_from_slice(&77_u32.to_le_bytes());
    dead[8..14].copy_from_slice(b"orphan");
    dead[56] = b'a';
    std::fs::write(gpus.gpu.join("orphan"), [0; 4096]).unwrap();
    let said = lies(
        &gpus,
        &DeviceBlock {
            handle: dead,
            ..handle.clone()
        },
        4096,
        None,
    );
    assert!(said.contains("CUDA_ERROR_INVALID_HANDLE (400)"), "{said}");
    assert!(
        said.contains("may have ended or freed the memory"),
        "{said}"
    );
    let said = lies(
        &gpus,
        &DeviceBlock {
            uuid: [9; 16],
            ..handle.clone()
        },
        4096,
        None,
    );
    assert!(said.contains("the tensor is on GPU-09090909-"), "{said}");
    let event = DeviceBlock {
        has_event: true,
        event: [3; 64],
        ..handle
    };
    let said = lies(&gpus, &event, 4096, None);
    assert!(
        said.contains("cannot open the event of process 77"),
        "{said}"
    );
    // Who takes no events does not try one.
    let said = lies_to(&gpus, &["--no-events"], &event, 4096, None);
    assert!(said.contains("said that it takes none"), "{said}");
}

#[test]
fn a_client_that_says_nothing_of_its_gpus_gets_no_tensor() {
    let gpus = Gpus::new();
    let producer = gpus.start("produce", &["--subscribers", "2"], &[]);
    let path = gpus.place.path.join("e.sock");
    support::eventually("it listens", || path.exists());
    let mut raw = support::Raw::connect(&gpus.place.path, "e");
    raw.say(
        0,
        Body::Hello(Hello {
            lowest: 1,
            highest: 1,
            roles: role::SUBSCRIBER,
            features: FEATURE_CUDA,
            credits: 4,
            queue: 4,
            policy: Policy::DropOldest,
        }),
        &[],
    )
    .unwrap();
    let Some(Message {
        body: Body::Welcome(welcome),
        ..
    }) = raw.hear()
    else {
        panic!()
    };
    assert_eq!(welcome.features, FEATURE_CUDA);
    let consumer = gpus.start("consume", &[], &[]);
    std::thread::sleep(Duration::from_millis(300));
    // Now it is the second one; a GPU that it has not is no reason to refuse it.
    raw.say(
        0,
        Body::Devices(Devices {
            pid: 5,
            transports: Transport::VmmFd.bit(),
            driver: 1,
            events: false,
            probe: [0; 64],
            list: vec![DeviceEntry {
                uuid: [1; 16],
                mig: false,
            }],
        }),
        &[],
    )
    .unwrap();
    assert!(matches!(raw.hear().unwrap().body, Body::Devices(_)));
    let message = raw.hear().unwrap();
    let Body::Gpu(_, block) = message.body else {
        panic!("{message:?}")
    };
    assert_eq!(block.transport, Transport::HostCopy);
    assert!(consumer.end().0[1].contains("way=vmm-fd"));
    drop(raw);
    assert_eq!(producer.end().0.last().unwrap(), "done");
}

#[test]
fn without_the_library_nothing_else_is_lost() {
    // This very process has no stand-in: host tensors go as ever, and the GPU's absence is one sentence.
    match isorun_channel::cuda::Gpu::count() {
        Err(Error::Gpu(text)) => assert!(
            text.contains("libcuda.so.1") || text.contains("cuInit"),
            "{text}"
        ),
        Ok(_) => support::skip("there is a GPU"),
        Err(error) => panic!("{error}"),
    }
    let place = Place::new();
    let endpoint = place.channel.listen("e").unwrap();
    let subscriber = place.channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(1, LONG).unwrap();
    let tensor = isorun_channel::Tensor::copy_of(&[1_u8, 2], &[2]).unwrap();
    assert_eq!(endpoint.publish(&tensor).unwrap().copied, 0);
    let received = subscriber.recv(LONG).unwrap();
    assert!(received.gpu.is_none() && received.tensor.is_some() && !received.copied_from_gpu);
}
