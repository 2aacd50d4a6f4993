//! The side that connects: subscribers and requesters.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};

use crate::channel::{Channel, connect_to};
use crate::error::{Error, Result};
use crate::memory::{Memory, identity};
use crate::message::{Outgoing, Received};
use crate::socket::{self, Incoming, deadline, is_full};
use crate::tensor::{Lease, Release, Tensor};
use crate::wire::{
    Body, Content, DEFAULT_QUEUE, Described, Failure, Hello, MAX_CREDITS, MAX_RELEASES, Message,
    Policy, Sharing, VERSION, Welcome, code, role,
};

/// How long releases that the other side has no room for are kept back before the next try.
const RETRY: Duration = Duration::from_millis(2);

/// Releases that may wait for an endpoint that sends and does not read. More than there are credits.
const MAX_DUE: usize = 4096;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Tensors that it wants to hold at once, at most 256; 0 lets the endpoint say.
    pub credits: u32,
    /// Tensors that may wait for it at the endpoint, at most 256; nothing lets the endpoint say.
    pub queue: Option<u32>,
    /// What is dropped when they are more.
    pub policy: Policy,
    /// How long connecting may take.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            credits: 0,
            queue: None,
            policy: Policy::DropOldest,
            timeout: Duration::from_secs(5),
        }
    }
}

struct Connection {
    socket: OwnedFd,
    endpoint: String,
    welcome: Welcome,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sent: u64,
    received: u64,
    /// Sequences to be released.
    due: Vec<u64>,
    /// Shared memory that was sent with requests and is not released yet.
    lent: HashMap<u64, Arc<Memory>>,
    /// Mappings of the last shared buffers: the next message with the same one needs none.
    kept: VecDeque<Arc<Memory>>,
    end: Option<String>,
}

/// What there was to read.
enum Event {
    Content(Box<Taken>),
    Failure(u64, Failure),
    Other,
}

struct Taken {
    sequence: u64,
    refers: u64,
    content: Content,
    memory: Option<Arc<Memory>>,
}

fn connect(
    channel: &Channel,
    endpoint: &str,
    roles: u32,
    options: &ConnectOptions,
) -> Result<Arc<Connection>> {
    let deadline = deadline(options.timeout);
    let queue = options.queue.unwrap_or(DEFAULT_QUEUE);
    if options.credits > MAX_CREDITS || options.queue.is_some_and(|queue| queue > MAX_CREDITS) {
        return Err(Error::Layout(format!(
            "credits and queue are at most {MAX_CREDITS}"
        )));
    }
    let socket = connect_to(channel, endpoint, deadline)?;
    let hello = Message {
        sequence: 1,
        refers: 0,
        body: Body::Hello(Hello {
            lowest: VERSION,
            highest: VERSION,
            roles,
            features: 0,
            credits: options.credits,
            queue,
            policy: options.policy,
        }),
    };
    // If the other side has closed already, what it said is still to be read.
    let _ = socket::send(socket.as_fd(), &hello.encode(), None);
    let mut received = 0;
    loop {
        match socket::receive(socket.as_fd(), &mut received)? {
            Incoming::Message(message, _) => match message.body {
                Body::Welcome(welcome)
                    if !is_for(&welcome, roles, options) || message.refers != 1 =>
                {
                    return Err(Error::Malformed("it welcomes somebody else".into()));
                }
                Body::Welcome(welcome) => {
                    return Ok(Arc::new(Connection {
                        socket,
                        endpoint: endpoint.to_owned(),
                        welcome,
                        state: Mutex::new(State {
                            sent: 1,
                            received,
                            ..State::default()
                        }),
                    }));
                }
                Body::Error(failure) => return Err(remote(failure)),
                body => {
                    return Err(Error::Malformed(format!(
                        "{} instead of WELCOME",
                        body.name()
                    )));
                }
            },
            Incoming::End => {
                return Err(Error::Closed(format!(
                    "endpoint {endpoint} closed the connection without a word"
                )));
            }
            Incoming::Nothing => {
                if !socket::wait(socket.as_fd(), deadline)? {
                    return Err(Error::TimedOut {
                        waiting_for: format!("the welcome of endpoint {endpoint}"),
                        after: options.timeout,
                    });
                }
            }
        }
    }
}

/// Whether a welcome gives what was asked for, and no more.
fn is_for(welcome: &Welcome, roles: u32, options: &ConnectOptions) -> bool {
    welcome.version == VERSION
        && welcome.features == 0
        && welcome.roles == roles
        && (options.credits == 0 || welcome.credits <= options.credits)
        && options.queue.is_none_or(|queue| welcome.queue <= queue)
        && welcome.policy == options.policy
}

fn remote(failure: Failure) -> Error {
    Error::Remote {
        code: failure.code,
        text: failure.text,
    }
}

impl Connection {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, state: &State) -> Option<Error> {
        let text = state.end.as_ref()?;
        Some(Error::Closed(format!("endpoint {}: {text}", self.endpoint)))
    }

    /// Takes one message, if there is one, and does what is to be done about it.
    fn take(&self) -> Result<Option<Event>> {
        let mut state = self.state();
        if let Some(error) = self.ended(&state) {
            return Err(error);
        }
        state.flush(self.socket.as_fd());
        let taken = match socket::receive(self.socket.as_fd(), &mut state.received) {
            Ok(Incoming::Nothing) => return Ok(None),
            Ok(Incoming::End) => {
                state.end.get_or_insert_with(|| "it has ended".into());
                Err(Error::Closed(format!(
                    "endpoint {} has ended",
                    self.endpoint
                )))
            }
            Ok(Incoming::Message(message, descriptor)) => state.handle(
                self.socket.as_fd(),
                self.welcome.credits,
                message,
                descriptor,
            ),
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
    fn next(&self, deadline: Instant, spin: Duration) -> Result<Option<Event>> {
        let spinning = socket::deadline(spin);
        loop {
            if let Some(event) = self.take()? {
                return Ok(Some(event));
            }
            let now = Instant::now();
            if now < spinning && now < deadline {
                std::hint::spin_loop();
                continue;
            }
            let soon = match self.state().due.is_empty() {
                true => deadline,
                false => deadline.min(now + RETRY),
            };
            if !socket::wait(self.socket.as_fd(), soon)? && now >= deadline {
                return Ok(None);
            }
        }
    }

    fn received(self: &Arc<Self>, taken: Taken) -> Received {
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
        Received {
            tensor,
            name: content.name,
            tag: content.tag,
            meta: content.meta,
            lost: content.lost,
        }
    }
}

impl Release for Connection {
    fn release(&self, sequence: u64) {
        let mut state = self.state();
        if state.due.len() >= MAX_DUE {
            state
                .end
                .get_or_insert_with(|| "it sends and does not read".into());
            return;
        }
        state.due.push(sequence);
        state.flush(self.socket.as_fd());
    }
}

impl State {
    fn send(
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
        credits: u32,
        message: Message,
        descriptor: Option<OwnedFd>,
    ) -> Result<Event> {
        let (sequence, refers) = (message.sequence, message.refers);
        let is_tensor = matches!(message.body, Body::Tensor(_));
        match message.body {
            Body::Tensor(content) | Body::Reply(content) => {
                let memory = match (&content.tensor, descriptor) {
                    (Some(described), Some(fd)) => Some(self.memory(credits, described, fd)?),
                    _ => {
                        if is_tensor {
                            self.due.push(sequence);
                        }
                        None
                    }
                };
                Ok(Event::Content(Box::new(Taken {
                    sequence,
                    refers,
                    content,
                    memory,
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

/// Gets what an endpoint publishes.
///
/// It keeps the mappings of the last shared buffers, as many as it has credits, until it is dropped.
pub struct Subscriber {
    connection: Arc<Connection>,
    spin: Duration,
}

impl Subscriber {
    pub(crate) fn new(channel: &Channel, endpoint: &str, options: &ConnectOptions) -> Result<Self> {
        Ok(Self {
            connection: connect(channel, endpoint, role::SUBSCRIBER, options)?,
            spin: Duration::ZERO,
        })
    }

    /// Before it sleeps, each call of [`Subscriber::recv`] looks again and again for this long: a processor for
    /// a few microseconds less.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// The next tensor, or [`Error::TimedOut`].
    pub fn recv(&self, timeout: Duration) -> Result<Received> {
        let deadline = deadline(timeout);
        loop {
            match self.connection.next(deadline, self.spin)? {
                Some(Event::Content(taken)) if taken.refers == 0 => {
                    return Ok(self.connection.received(*taken));
                }
                Some(_) => {}
                None => {
                    return Err(Error::TimedOut {
                        waiting_for: format!("a tensor from endpoint {}", self.connection.endpoint),
                        after: timeout,
                    });
                }
            }
        }
    }

    /// How many tensors it may hold at once.
    pub fn credits(&self) -> u32 {
        self.connection.welcome.credits
    }
}

/// Asks an endpoint.
pub struct Requester {
    connection: Arc<Connection>,
    one_at_a_time: Mutex<()>,
}

impl Requester {
    pub(crate) fn new(channel: &Channel, endpoint: &str, options: &ConnectOptions) -> Result<Self> {
        Ok(Self {
            connection: connect(channel, endpoint, role::REQUESTER, options)?,
            one_at_a_time: Mutex::new(()),
        })
    }

    /// Asks and waits for the answer. [`Error::Remote`] is an answer, too; after [`Error::TimedOut`] one that comes
    /// late is dropped, and the next question can be asked.
    pub fn request(&self, question: impl Into<Outgoing>, timeout: Duration) -> Result<Received> {
        let deadline = deadline(timeout);
        let _turn = self
            .one_at_a_time
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let connection = &self.connection;
        // What has come since the last call: releases, and answers that are too late.
        while connection.take()?.is_some() {}
        let asked = self.ask(&question.into(), deadline, timeout)?;
        loop {
            match connection.next(deadline, Duration::ZERO)? {
                Some(Event::Content(taken)) => {
                    let refers = taken.refers;
                    // Dropped if it is not the answer, and so released.
                    let received = connection.received(*taken);
                    if refers == asked {
                        return Ok(received);
                    }
                }
                Some(Event::Failure(refers, failure)) if refers == asked => {
                    return Err(remote(failure));
                }
                Some(_) => {}
                None => return Err(self.timed_out(timeout)),
            }
        }
    }

    fn ask(&self, question: &Outgoing, deadline: Instant, timeout: Duration) -> Result<u64> {
        let content = question.content()?;
        loop {
            let mut state = self.connection.state();
            if let Some(error) = self.connection.ended(&state) {
                return Err(error);
            }
            let body = Body::Request(content.clone());
            let memory = question.memory();
            let descriptor = memory.map(|memory| memory.fd());
            match state.send(self.connection.socket.as_fd(), 0, body, descriptor) {
                Ok(sequence) => {
                    if let Some(memory) = memory
                        && memory.sharing() == Sharing::Shared
                    {
                        state.lent.insert(sequence, memory.clone());
                    }
                    return Ok(sequence);
                }
                Err(errno) if is_full(errno) && Instant::now() < deadline => {}
                Err(errno) if is_full(errno) => return Err(self.timed_out(timeout)),
                Err(errno) => {
                    drop(state);
                    // What the other side said before it closed tells more.
                    while self.connection.take()?.is_some() {}
                    return Err(Error::Closed(format!(
                        "endpoint {}: {errno}",
                        self.connection.endpoint
                    )));
                }
            }
            drop(state);
            std::thread::sleep(RETRY);
        }
    }

    fn timed_out(&self, after: Duration) -> Error {
        Error::TimedOut {
            waiting_for: format!("an answer of endpoint {}", self.connection.endpoint),
            after,
        }
    }
}
