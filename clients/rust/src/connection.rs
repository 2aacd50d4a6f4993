//! A client's connection: what comes by the socket and by the lane, in its order, and what is released.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};

use crate::client::ConnectOptions;
#[cfg(feature = "cuda")]
use crate::device::{DeviceBlock, FEATURE_CUDA, Transport};
use crate::error::{Error, Result, io};
use crate::lane::{Found, Receiving};
use crate::memory::{Memory, identity};
use crate::message::Received;
use crate::socket::{self, Incoming, is_full};
use crate::tensor::{Lease, Release, Tensor};
use crate::wire::{
    Body, Content, Described, Failure, MAX_RELEASES, Message, Sharing, Welcome, code, feature,
};

/// How long releases that the other side has no room for are kept back before the next try.
pub(crate) const RETRY: Duration = Duration::from_millis(2);

/// Releases that may wait for an endpoint that sends and does not read. More than there are credits.
const MAX_DUE: usize = 4096;

/// Messages of no interest that are taken in one call after its deadline: what one looks for may be behind them, but
/// an endpoint that sends for ever must not keep a call from returning.
const LATE: usize = 64;

/// How often a spinning subscriber looks at its lane before it looks at its socket.
const LOOKS: usize = 64;

pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) endpoint: String,
    pub(crate) welcome: Welcome,
    state: Mutex<State>,
    #[cfg(feature = "cuda")]
    cuda: Vec<crate::cuda::Gpu>,
    #[cfg(feature = "cuda")]
    cuda_stream: Option<crate::cuda::Stream>,
    #[cfg(feature = "cuda")]
    cuda_events: bool,
    /// Tells this connection's allocations from those of others.
    #[cfg(feature = "cuda")]
    number: u64,
}

#[derive(Default)]
pub(crate) struct State {
    sent: u64,
    received: u64,
    /// Sequences to be released.
    due: Vec<u64>,
    /// Shared memory that was sent with requests and is not released yet.
    pub(crate) lent: HashMap<u64, Arc<Memory>>,
    /// Mappings of the last shared buffers: the next message with the same one needs none.
    kept: VecDeque<Arc<Memory>>,
    lane: Option<Receiving>,
    end: Option<String>,
}

/// What there was to read.
pub(crate) enum Event {
    Content(Box<Taken>),
    Failure(u64, Failure),
    Other,
}

pub(crate) struct Taken {
    sequence: u64,
    pub(crate) refers: u64,
    content: Content,
    memory: Option<Arc<Memory>>,
    /// How memory of a GPU came, and its descriptor.
    #[cfg(feature = "cuda")]
    gpu: Option<(Box<DeviceBlock>, Option<OwnedFd>)>,
}

/// The connection after the handshake; with the sequences of the last messages that were sent and received.
pub(crate) fn connected(
    socket: OwnedFd,
    endpoint: &str,
    welcome: Welcome,
    (sent, received): (u64, u64),
    options: &ConnectOptions,
) -> Result<Arc<Connection>> {
    #[cfg(not(feature = "cuda"))]
    let _ = options;
    #[cfg(feature = "cuda")]
    static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let mut state = State {
        sent,
        received,
        ..State::default()
    };
    if welcome.features & feature::LANE != 0 {
        state.open_lane(socket.as_fd(), welcome.credits)?;
    }
    Ok(Arc::new(Connection {
        socket,
        endpoint: endpoint.to_owned(),
        welcome,
        state: Mutex::new(state),
        #[cfg(feature = "cuda")]
        cuda: options.cuda.clone(),
        #[cfg(feature = "cuda")]
        cuda_stream: options.cuda_stream,
        #[cfg(feature = "cuda")]
        cuda_events: options.cuda_events,
        #[cfg(feature = "cuda")]
        number: NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
    }))
}

/// Whether a call that has got something of no interest must give up. `late` counts what came after the deadline.
pub(crate) fn is_too_late(deadline: Instant, late: &mut usize) -> bool {
    if Instant::now() < deadline {
        return false;
    }
    *late += 1;
    *late >= LATE
}

pub(crate) fn remote(failure: Failure) -> Error {
    Error::Remote {
        code: failure.code,
        text: failure.text,
    }
}

impl Connection {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self, state: &State) -> Option<Error> {
        let text = state.end.as_ref()?;
        Some(Error::Closed(format!("endpoint {}: {text}", self.endpoint)))
    }

    /// Takes one message, if there is one, and does what is to be done about it.
    pub(crate) fn take(&self) -> Result<Option<Event>> {
        let mut state = self.state();
        if let Some(error) = self.ended(&state) {
            return Err(error);
        }
        state.flush(self.socket.as_fd());
        let taken = match state.next(self.socket.as_fd()) {
            Ok(Incoming::Nothing) => return Ok(None),
            Ok(Incoming::End) => {
                state.end.get_or_insert_with(|| "it has ended".into());
                Err(Error::Closed(format!(
                    "endpoint {} has ended",
                    self.endpoint
                )))
            }
            Ok(Incoming::Message(message, descriptor)) => {
                state.handle(self.socket.as_fd(), &self.welcome, message, descriptor)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &taken {
            let code = match error {
                Error::Malformed(_) | Error::Layout(_) => Some(code::MALFORMED),
                Error::Descriptor(_) => Some(code::DESCRIPTOR),
                _ => None,
            };
            if let Some(code) = code {
                let failure = Failure {
                    code,
                    text: error.to_string(),
                    closes: true,
                };
                let _ = state.send(self.socket.as_fd(), 0, Body::Error(failure), None);
            }
            state.end.get_or_insert_with(|| error.to_string());
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
        taken.map(Some)
    }

    /// Waits for the next message; nothing after the deadline.
    pub(crate) fn next(&self, deadline: Instant, spin: Duration) -> Result<Option<Event>> {
        let mut spinning = None;
        loop {
            if let Some(event) = self.take()? {
                return Ok(Some(event));
            }
            let now = Instant::now();
            if now < *spinning.get_or_insert_with(|| socket::deadline(spin)) && now < deadline {
                self.state().spin();
                continue;
            }
            let soon = {
                let mut state = self.state();
                if state.lane.as_mut().is_some_and(|lane| !lane.sleep()) {
                    continue;
                }
                match state.due.is_empty() {
                    true => deadline,
                    false => deadline.min(now + RETRY),
                }
            };
            let woken = socket::wait(self.socket.as_fd(), soon);
            if let Some(lane) = &mut self.state().lane {
                lane.wake();
            }
            if !woken? && now >= deadline {
                return Ok(None);
            }
        }
    }

    /// Takes what has come already: releases, and answers that are too late.
    pub(crate) fn drain(self: &Arc<Self>, deadline: Instant) -> Result<()> {
        let mut late = 0;
        while let Some(event) = self.take()? {
            self.unwanted(event);
            if is_too_late(deadline, &mut late) {
                break;
            }
        }
        Ok(())
    }

    /// Releases what nobody waits for. Nothing of it is opened.
    pub(crate) fn unwanted(self: &Arc<Self>, event: Event) {
        let Event::Content(taken) = event else {
            return;
        };
        // A message without a tensor needs no release, or it has been given already.
        #[cfg(feature = "cuda")]
        let has_tensor = taken.memory.is_some() || taken.gpu.is_some();
        #[cfg(not(feature = "cuda"))]
        let has_tensor = taken.memory.is_some();
        let sequence = taken.sequence;
        // The mapping goes before its sender hears of it.
        drop(taken);
        if has_tensor {
            self.release(sequence);
        }
    }

    /// What the user gets. [`Error::Gpu`] if it is memory of a GPU that cannot be opened; the connection goes on.
    pub(crate) fn received(self: &Arc<Self>, taken: Taken) -> Result<Received> {
        #[cfg(feature = "cuda")]
        let mut taken = taken;
        #[cfg(feature = "cuda")]
        let (gpu, copied_from_gpu) = match taken.gpu.take() {
            Some((block, fd)) if block.transport != Transport::HostCopy => {
                (self.import(&mut taken, &block, fd)?, false)
            }
            other => (None, other.is_some()),
        };
        let Taken {
            sequence,
            content,
            memory,
            ..
        } = taken;
        let tensor = match (content.tensor, memory) {
            (Some(described), Some(memory)) => {
                let lease = Lease {
                    to: self.clone(),
                    sequence,
                };
                Some(Tensor::new(memory, described.layout, Some(Arc::new(lease))))
            }
            _ => None,
        };
        Ok(Received {
            tensor,
            #[cfg(feature = "cuda")]
            gpu,
            #[cfg(feature = "cuda")]
            copied_from_gpu,
            name: content.name,
            tag: content.tag,
            meta: content.meta,
            lost: content.lost,
        })
    }

    /// Opens memory of a GPU. If that fails the message is released.
    #[cfg(feature = "cuda")]
    fn import(
        self: &Arc<Self>,
        taken: &mut Taken,
        block: &DeviceBlock,
        fd: Option<OwnedFd>,
    ) -> Result<Option<crate::cuda::GpuTensor>> {
        let lease = Lease {
            to: self.clone(),
            sequence: taken.sequence,
        };
        let Some(described) = taken.content.tensor.take() else {
            return Ok(None);
        };
        if block.has_event && !self.cuda_events {
            return Err(Error::Gpu(
                "the tensor came with an event, and this client said that it takes none".into(),
            ));
        }
        let origin = crate::cuda::import::Origin {
            connection: self.number,
            block,
            fd,
            described: &described,
        };
        crate::cuda::import::import(&self.cuda, origin, lease, self.cuda_stream).map(Some)
    }
}

impl Release for Connection {
    fn release(&self, sequence: u64) {
        let mut state = self.state();
        if let Err(error) = state.owe(sequence) {
            state.end.get_or_insert_with(|| error.to_string());
            return;
        }
        state.flush(self.socket.as_fd());
    }

    #[cfg(feature = "cuda")]
    fn is_open(&self) -> bool {
        self.state().end.is_none() && socket::is_connected(self.socket.as_fd())
    }
}

impl State {
    /// Sends this side of a lane. The other one comes with the next message.
    fn open_lane(&mut self, socket: BorrowedFd<'_>, credits: u32) -> Result<()> {
        let mut lane = Receiving::new(credits)?;
        self.send(socket, 0, Body::Lane, lane.fd())
            .map_err(io("open a lane"))?;
        lane.sent();
        self.lane = Some(lane);
        Ok(())
    }

    /// Looks at the lane for about as long as a look at the socket takes.
    fn spin(&self) {
        let Some(lane) = &self.lane else {
            return std::hint::spin_loop();
        };
        for _ in 0..LOOKS {
            if lane.has_news() {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// The next message: from the lane or from the socket, in the order of their sequences.
    fn next(&mut self, socket: BorrowedFd<'_>) -> Result<Incoming> {
        let Some(lane) = &mut self.lane else {
            return socket::receive(socket, &mut self.received);
        };
        let expected = self.received.checked_add(1).ok_or_else(|| {
            Error::Malformed("after the greatest sequence there is no further message".into())
        })?;
        let mut later = match lane.take(expected)? {
            Found::Message(message) => {
                self.received = expected;
                return Ok(Incoming::Message(message, None));
            }
            Found::Later(sequence) => Some(sequence),
            Found::Nothing => None,
        };
        if lane.early.is_none() {
            let mut last = self.received;
            match socket::receive(socket, &mut last)? {
                Incoming::Message(message, descriptor) if last == expected => {
                    self.received = expected;
                    return Ok(Incoming::Message(message, descriptor));
                }
                Incoming::Message(message, descriptor) => {
                    lane.early = Some((message, descriptor));
                }
                other => {
                    // It wrote before it ended.
                    if matches!(other, Incoming::End)
                        && let Found::Message(message) = lane.take(expected)?
                    {
                        self.received = expected;
                        return Ok(Incoming::Message(message, None));
                    }
                    let Some(sequence) = later.filter(|_| matches!(other, Incoming::Nothing))
                    else {
                        return Ok(other);
                    };
                    return Err(missing(expected, sequence));
                }
            }
            // What comes before it was written before it was sent.
            if let Found::Message(message) = lane.take(expected)? {
                self.received = expected;
                return Ok(Incoming::Message(message, None));
            }
        }
        match lane.early.take() {
            Some((message, descriptor)) if message.sequence == expected => {
                self.received = expected;
                Ok(Incoming::Message(message, descriptor))
            }
            early => {
                later = early.map(|(message, _)| message.sequence).or(later);
                Err(missing(expected, later.unwrap_or(0)))
            }
        }
    }

    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        refers: u64,
        body: Body,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> rustix::io::Result<u64> {
        let message = Message {
            sequence: self.sent + 1,
            refers,
            body,
        };
        socket::send(socket, &message.encode(), descriptor)?;
        self.sent = message.sequence;
        Ok(self.sent)
    }

    /// Notes what is to be released; [`Error::Closed`] if too much of it waits already.
    fn owe(&mut self, sequence: u64) -> Result<()> {
        if self.due.len() >= MAX_DUE {
            return Err(Error::Closed(
                "the endpoint sends and does not read: it takes no releases".into(),
            ));
        }
        self.due.push(sequence);
        Ok(())
    }

    /// Sends what is to be released, as far as there is room.
    fn flush(&mut self, socket: BorrowedFd<'_>) {
        while !self.due.is_empty() {
            let count = self.due.len().min(MAX_RELEASES);
            let part = self.due[..count].to_vec();
            match self.send(socket, 0, Body::Release(part), None) {
                Ok(_) => drop(self.due.drain(..count)),
                Err(errno) if is_full(errno) => return,
                // The other side has gone, and with it whoever waits for this.
                Err(_) => self.due.clear(),
            }
        }
    }

    fn handle(
        &mut self,
        socket: BorrowedFd<'_>,
        welcome: &Welcome,
        message: Message,
        descriptor: Option<OwnedFd>,
    ) -> Result<Event> {
        let credits = welcome.credits;
        let (sequence, refers) = (message.sequence, message.refers);
        let is_tensor = matches!(message.body, Body::Tensor(_));
        match message.body {
            Body::Tensor(content) | Body::Reply(content) => {
                let memory = match (&content.tensor, descriptor) {
                    (Some(described), Some(fd)) => Some(self.memory(credits, described, fd)?),
                    // It came through the lane.
                    (Some(described), None) => {
                        let lane = self.lane.as_ref();
                        let lane = lane.ok_or_else(|| Error::Malformed("no descriptor".into()))?;
                        Some(lane.memory(described.memory, described.size)?)
                    }
                    _ => {
                        if is_tensor {
                            self.owe(sequence)?;
                        }
                        None
                    }
                };
                Ok(Event::Content(Box::new(Taken {
                    sequence,
                    refers,
                    content,
                    memory,
                    #[cfg(feature = "cuda")]
                    gpu: None,
                })))
            }
            #[cfg(feature = "cuda")]
            Body::Gpu(content, block) if welcome.features & FEATURE_CUDA != 0 => {
                let (memory, fd) = match (&content.tensor, descriptor) {
                    (Some(described), Some(fd)) if block.transport == Transport::HostCopy => {
                        (Some(self.memory(credits, described, fd)?), None)
                    }
                    (_, fd) => (None, fd),
                };
                Ok(Event::Content(Box::new(Taken {
                    sequence,
                    refers,
                    content,
                    memory,
                    gpu: Some((block, fd)),
                })))
            }
            Body::Release(sequences) => {
                sequences
                    .iter()
                    .for_each(|sequence| drop(self.lent.remove(sequence)));
                Ok(Event::Other)
            }
            Body::Error(failure) if failure.closes => Err(remote(failure)),
            Body::Error(failure) => Ok(Event::Failure(refers, failure)),
            Body::Ping => {
                let _ = self.send(socket, sequence, Body::Pong, None);
                Ok(Event::Other)
            }
            Body::Pong => Ok(Event::Other),
            Body::Wake if self.lane.is_some() => Ok(Event::Other),
            Body::Lane => match (&mut self.lane, descriptor) {
                (Some(lane), Some(fd)) => lane.opened(fd).map(|()| Event::Other),
                _ => Err(Error::Malformed("LANE without being asked".into())),
            },
            body => Err(Error::Malformed(format!(
                "{} from an endpoint",
                body.name()
            ))),
        }
    }

    fn memory(&mut self, credits: u32, described: &Described, fd: OwnedFd) -> Result<Arc<Memory>> {
        if described.sharing == Sharing::Immutable {
            return Memory::received(fd, Sharing::Immutable, described.size).map(Arc::new);
        }
        if described.memory != 0 {
            let lane = self.lane.as_mut().ok_or_else(|| {
                Error::Malformed(format!("memory {} without a lane", described.memory))
            })?;
            let memory = Arc::new(Memory::received(fd, Sharing::Shared, described.size)?);
            lane.keep(described.memory, &memory)?;
            return Ok(memory);
        }
        let seen = identity(fd.as_fd())?;
        if let Some(memory) = self.kept.iter().find(|kept| kept.identity() == seen) {
            // Sealed, and checked before: only the message can be wrong.
            return match memory.size() == described.size {
                true => Ok(memory.clone()),
                false => Err(Error::Descriptor(format!(
                    "it has {} bytes, the message says {}",
                    memory.size(),
                    described.size
                ))),
            };
        }
        let memory = Arc::new(Memory::received(fd, Sharing::Shared, described.size)?);
        if self.kept.len() >= credits as usize {
            self.kept.pop_front();
        }
        self.kept.push_back(memory.clone());
        Ok(memory)
    }
}

fn missing(expected: u64, found: u64) -> Error {
    Error::Malformed(format!(
        "sequence {found} has come, {expected} neither by the socket nor by the lane"
    ))
}
