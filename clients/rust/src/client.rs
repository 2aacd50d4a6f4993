//! The side that connects: subscribers and requesters.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::connection::{Connection, Event, RETRY, is_too_late, remote};
use crate::error::{Error, Result};
use crate::handshake::connect;
use crate::message::{Outgoing, Received};
use crate::socket::{deadline, is_full};
use crate::wire::{Body, Policy, Sharing, role};

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
    /// Whether a subscriber asks for a lane, so that a shared buffer that it has got before comes without a system
    /// call. It costs a page of memory on each side.
    pub lane: bool,
    /// The GPUs on which tensors may come: [`cuda::Gpu::all`](crate::cuda::Gpu::all), or some. Without any, what is on
    /// a GPU comes as a copy. With them there is no lane.
    #[cfg(feature = "cuda")]
    pub cuda: Vec<crate::cuda::Gpu>,
    /// A stream that waits for the kernels that write what comes, in place of the receiving thread. It may be used for
    /// one GPU only.
    #[cfg(feature = "cuda")]
    pub cuda_stream: Option<crate::cuda::Stream>,
    /// Whether events of other processes are used, so that nobody has to wait for a kernel before a tensor is handed
    /// over. They are files in the /dev/shm that both have: a peer that truncates one can end this process by SIGBUS.
    /// Turn them off where peers are not trusted. On by default.
    #[cfg(feature = "cuda")]
    pub cuda_events: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            credits: 0,
            queue: None,
            policy: Policy::DropOldest,
            timeout: Duration::from_secs(5),
            lane: true,
            #[cfg(feature = "cuda")]
            cuda: Vec::new(),
            #[cfg(feature = "cuda")]
            cuda_stream: None,
            #[cfg(feature = "cuda")]
            cuda_events: true,
        }
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
        let mut late = 0;
        loop {
            match self.connection.next(deadline, self.spin)? {
                Some(Event::Content(taken)) if taken.refers == 0 => {
                    return self.connection.received(*taken);
                }
                Some(event) if !is_too_late(deadline, &mut late) => {
                    self.connection.unwanted(event);
                }
                other => {
                    if let Some(event) = other {
                        self.connection.unwanted(event);
                    }
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
        connection.drain(deadline)?;
        let asked = self.ask(&question.into(), deadline, timeout)?;
        let mut late = 0;
        loop {
            match connection.next(deadline, Duration::ZERO)? {
                Some(Event::Content(taken)) if taken.refers == asked => {
                    return connection.received(*taken);
                }
                Some(Event::Failure(refers, failure)) if refers == asked => {
                    return Err(remote(failure));
                }
                Some(event) => {
                    connection.unwanted(event);
                    if is_too_late(deadline, &mut late) {
                        return Err(self.timed_out(timeout));
                    }
                }
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
                    self.connection.drain(deadline)?;
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
