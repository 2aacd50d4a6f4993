//! The ways that are compared.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber as IceSubscriber;
use iceoryx2::prelude::*;
use isorun_channel::{
    Channel, Dtype, Endpoint, Outgoing, Received, SharedTensor, Subscriber, Tensor, TensorMut,
};

use crate::{Outcome, now};

/// `memcpy-*` are not hand-overs: the measure for a copy within one process.
pub const NAMES: [&str; 11] = [
    "isorun",
    "isorun-shared",
    "isorun-spin",
    "isorun-put",
    "iceoryx2-poll",
    "iceoryx2-event",
    "pipe",
    "socket",
    "file",
    "memcpy-new",
    "memcpy-warm",
];

const PATIENCE: Duration = Duration::from_secs(60);

pub trait Producer {
    /// The consumer has been started; this is its standard input.
    fn start(&mut self, _input: ChildStdin) -> Outcome<()> {
        Ok(())
    }

    fn hand_over(&mut self) -> Outcome<()>;
}

pub trait Consumer {
    /// Waits for the tensor, reads its first and last byte, and says when it was handed over.
    fn take(&mut self) -> Outcome<u64>;

    /// The time has been taken: what was held can go.
    fn done(&mut self) {}
}

fn data(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at >> 12) as u8 | 1).collect()
}

fn look(bytes: &[u8]) {
    std::hint::black_box((bytes[0], bytes[bytes.len() - 1]));
}

pub fn producer(way: &str, size: usize, directory: &Path) -> Outcome<Box<dyn Producer>> {
    let endpoint = |name: &str| Channel::at(directory)?.listen(name);
    Ok(match way {
        "isorun" => {
            let mut tensor = TensorMut::zeros(Dtype::U8, &[size as u64])?;
            tensor.bytes_mut().copy_from_slice(&data(size));
            Box::new(Published {
                endpoint: endpoint(way)?,
                what: What::Immutable(tensor.freeze()?),
            })
        }
        "isorun-shared" | "isorun-spin" => {
            let mut tensor = TensorMut::zeros(Dtype::U8, &[size as u64])?;
            tensor.bytes_mut().copy_from_slice(&data(size));
            Box::new(Published {
                endpoint: endpoint(way)?,
                what: What::Shared(tensor.share()?),
            })
        }
        "isorun-put" => Box::new(Published {
            endpoint: endpoint(way)?,
            what: What::Elsewhere(data(size)),
        }),
        "iceoryx2-poll" | "iceoryx2-event" => Box::new(Ice::new(way, size)?),
        "pipe" => Box::new(Copied {
            data: data(size),
            output: None,
        }),
        "socket" => Box::new(SocketProducer {
            listener: UnixListener::bind(directory.join("socket"))?,
            copied: Copied {
                data: data(size),
                output: None,
            },
            path: directory.join("socket"),
        }),
        "file" => Box::new(FileProducer {
            directory: directory.to_owned(),
            data: data(size),
            input: None,
        }),
        _ => return Err(format!("there is no way {way}").into()),
    })
}

pub fn consumer(way: &str, size: usize, directory: &Path) -> Outcome<Box<dyn Consumer>> {
    Ok(match way {
        "isorun" | "isorun-shared" | "isorun-spin" | "isorun-put" => {
            let mut subscriber = Channel::at(directory)?.subscribe(way)?;
            if way == "isorun-spin" {
                subscriber.set_spin(PATIENCE);
            }
            Box::new(ChannelConsumer {
                subscriber,
                held: None,
            })
        }
        "iceoryx2-poll" | "iceoryx2-event" => Box::new(IceConsumer::new(way)?),
        "pipe" => Box::new(CopiedConsumer {
            input: std::io::stdin(),
            buffer: vec![1; size],
        }),
        "socket" => Box::new(CopiedConsumer {
            input: UnixStream::connect(directory.join("socket"))?,
            buffer: vec![1; size],
        }),
        "file" => Box::new(FileConsumer {
            path: directory.join("tensor"),
            buffer: vec![1; size],
        }),
        _ => return Err(format!("there is no way {way}").into()),
    })
}

struct Published {
    endpoint: Endpoint,
    what: What,
}

enum What {
    Immutable(Tensor),
    Shared(SharedTensor),
    Elsewhere(Vec<u8>),
}

impl Producer for Published {
    fn start(&mut self, _input: ChildStdin) -> Outcome<()> {
        Ok(self.endpoint.wait_for_subscribers(1, PATIENCE)?)
    }

    fn hand_over(&mut self) -> Outcome<()> {
        self.endpoint.wait_for_room(PATIENCE)?;
        let begun = now();
        let outgoing = match &self.what {
            What::Immutable(tensor) => Outgoing::from(tensor),
            What::Shared(tensor) => Outgoing::from(tensor),
            What::Elsewhere(data) => Outgoing::from(&Tensor::copy_of(data, &[data.len() as u64])?),
        };
        match self.endpoint.publish(outgoing.tag(begun))?.sent {
            1 => Ok(()),
            _ => Err("it was not sent at once".into()),
        }
    }
}

struct ChannelConsumer {
    subscriber: Subscriber,
    held: Option<Received>,
}

impl Consumer for ChannelConsumer {
    fn take(&mut self) -> Outcome<u64> {
        let received = self.subscriber.recv(PATIENCE)?;
        let tensor = received.tensor.as_ref().ok_or("no tensor")?;
        match tensor.bytes() {
            Ok(bytes) => look(bytes),
            // A shared one is no slice: its ends are copied out.
            Err(_) => {
                for offset in [0, tensor.layout().bytes() - 1] {
                    let mut byte = [0];
                    tensor.read_at(offset, &mut byte)?;
                    std::hint::black_box(byte);
                }
            }
        }
        let tag = received.tag;
        self.held = Some(received);
        Ok(tag)
    }

    fn done(&mut self) {
        self.held = None;
    }
}

struct Ice {
    publisher: Publisher<ipc::Service, [u8], u64>,
    notifier: Option<Notifier<ipc::Service>>,
    size: usize,
    _node: Node<ipc::Service>,
}

fn ice_names(way: &str, parent: u32) -> Outcome<(ServiceName, ServiceName)> {
    let name = format!("isorun-bench-{parent}-{way}");
    Ok((
        name.as_str().try_into()?,
        format!("{name}-e").as_str().try_into()?,
    ))
}

impl Ice {
    fn new(way: &str, size: usize) -> Outcome<Self> {
        let (data_name, event_name) = ice_names(way, std::process::id())?;
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let service = node
            .service_builder(&data_name)
            .publish_subscribe::<[u8]>()
            .user_header::<u64>()
            .max_publishers(1)
            .max_subscribers(1)
            .history_size(0)
            .subscriber_max_buffer_size(1)
            .subscriber_max_borrowed_samples(1)
            .open_or_create()?;
        let publisher = service
            .publisher_builder()
            .initial_max_slice_len(size)
            .max_loaned_samples(1)
            .create()?;
        let event = node.service_builder(&event_name).event().open_or_create()?;
        let notifier = match way {
            "iceoryx2-event" => Some(event.notifier_builder().create()?),
            _ => None,
        };
        Ok(Self {
            publisher,
            notifier,
            size,
            _node: node,
        })
    }
}

impl Producer for Ice {
    fn hand_over(&mut self) -> Outcome<()> {
        let begun = now();
        let mut sample = self.publisher.loan_slice_uninit(self.size)?;
        *sample.user_header_mut() = begun;
        // SAFETY: shared memory that the kernel gave is initialised, and any byte is a u8. Its contents do not matter.
        let sample = unsafe { sample.assume_init() };
        sample.send()?;
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(())
    }
}

struct IceConsumer {
    subscriber: IceSubscriber<ipc::Service, [u8], u64>,
    listener: Option<Listener<ipc::Service>>,
    held: Option<iceoryx2::sample::Sample<ipc::Service, [u8], u64>>,
    _node: Node<ipc::Service>,
}

impl IceConsumer {
    fn new(way: &str) -> Outcome<Self> {
        let parent = std::os::unix::process::parent_id();
        let (data_name, event_name) = ice_names(way, parent)?;
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let service = node
            .service_builder(&data_name)
            .publish_subscribe::<[u8]>()
            .user_header::<u64>()
            .max_publishers(1)
            .max_subscribers(1)
            .history_size(0)
            .subscriber_max_buffer_size(1)
            .subscriber_max_borrowed_samples(1)
            .open_or_create()?;
        let subscriber = service.subscriber_builder().create()?;
        let event = node.service_builder(&event_name).event().open_or_create()?;
        let listener = match way {
            "iceoryx2-event" => Some(event.listener_builder().create()?),
            _ => None,
        };
        Ok(Self {
            subscriber,
            listener,
            held: None,
            _node: node,
        })
    }
}

impl Consumer for IceConsumer {
    fn take(&mut self) -> Outcome<u64> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                look(sample.payload());
                let begun = *sample.user_header();
                self.held = Some(sample);
                return Ok(begun);
            }
            if let Some(listener) = &self.listener {
                listener.timed_wait(|_| {}, PATIENCE)?;
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn done(&mut self) {
        self.held = None;
    }
}

/// Bytes through a pipe or a socket: the time first, then the data.
struct Copied {
    data: Vec<u8>,
    output: Option<Box<dyn Write>>,
}

impl Producer for Copied {
    fn start(&mut self, input: ChildStdin) -> Outcome<()> {
        self.output = Some(Box::new(input));
        Ok(())
    }

    fn hand_over(&mut self) -> Outcome<()> {
        let output = self.output.as_mut().ok_or("not started")?;
        output.write_all(&now().to_le_bytes())?;
        Ok(output.write_all(&self.data)?)
    }
}

struct CopiedConsumer<T> {
    input: T,
    buffer: Vec<u8>,
}

impl<T: Read> Consumer for CopiedConsumer<T> {
    fn take(&mut self) -> Outcome<u64> {
        let mut begun = [0; 8];
        self.input.read_exact(&mut begun)?;
        self.input.read_exact(&mut self.buffer)?;
        look(&self.buffer);
        Ok(u64::from_le_bytes(begun))
    }
}

struct SocketProducer {
    listener: UnixListener,
    copied: Copied,
    path: PathBuf,
}

impl Producer for SocketProducer {
    fn start(&mut self, _input: ChildStdin) -> Outcome<()> {
        self.copied.output = Some(Box::new(self.listener.accept()?.0));
        Ok(std::fs::remove_file(&self.path)?)
    }

    fn hand_over(&mut self) -> Outcome<()> {
        self.copied.hand_over()
    }
}

/// A file in a tmpfs that both have: written, renamed, told through a pipe, read.
struct FileProducer {
    directory: PathBuf,
    data: Vec<u8>,
    input: Option<ChildStdin>,
}

impl Producer for FileProducer {
    fn start(&mut self, input: ChildStdin) -> Outcome<()> {
        self.input = Some(input);
        Ok(())
    }

    fn hand_over(&mut self) -> Outcome<()> {
        let begun = now();
        let temporary = self.directory.join("tensor.tmp");
        File::create(&temporary)?.write_all(&self.data)?;
        std::fs::rename(temporary, self.directory.join("tensor"))?;
        let input = self.input.as_mut().ok_or("not started")?;
        Ok(input.write_all(&begun.to_le_bytes())?)
    }
}

struct FileConsumer {
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Consumer for FileConsumer {
    fn take(&mut self) -> Outcome<u64> {
        let mut begun = [0; 8];
        std::io::stdin().read_exact(&mut begun)?;
        File::open(&self.path)?.read_exact(&mut self.buffer)?;
        look(&self.buffer);
        Ok(u64::from_le_bytes(begun))
    }
}
