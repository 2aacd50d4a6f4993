//! The side that listens: publishes to subscribers, answers requesters.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::channel::{Channel, Listening};
use crate::error::{Error, Result, io};
use crate::memory::Memory;
use crate::message::{Outgoing, Received};
use crate::peer::{Answer, Gone, Offered, Peer, Publication, Spent};
use crate::service;
use crate::socket::deadline;
use crate::tensor::{Lease, Release, SharedTensor, Tensor};
use crate::wire::{Body, Content, Failure, MAX_CREDITS, Message, code, role};

/// How often something is looked at that may change without a call.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What an endpoint allows.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Clients at the same time, those in the handshake included; at most 1,024.
    pub max_peers: usize,
    /// Tensors that a subscriber may hold at once, and requests that a requester may have open, if it does not ask
    /// for fewer.
    pub credits: u32,
    /// The most credits that a client gets if it asks for more.
    pub max_credits: u32,
    /// Tensors that wait for a subscriber beyond its credits, if it does not ask for fewer.
    pub queue: u32,
    /// The longest queue that a subscriber gets if it asks for a longer one.
    pub max_queue: u32,
    /// Requests that wait for [`Endpoint::next_request`], of all clients together.
    pub max_requests: usize,
    /// How long a client may take to say hello.
    pub handshake: Duration,
    /// Mode of the socket. Who may come near it is the channel's directory's to say.
    pub mode: u32,
    /// Whether subscribers that ask for it get a lane: shared memory by which they hear of a shared buffer that they
    /// have got before. 256 bytes for each credit, at least a page, for each subscriber.
    pub lanes: bool,
    /// The GPUs whose memory is handed over: [`cuda::Gpu::all`](crate::cuda::Gpu::all), or some. Without any, tensors
    /// on GPUs are copied for every client.
    #[cfg(feature = "cuda")]
    pub cuda: Vec<crate::cuda::Gpu>,
    /// The largest copy, in bytes, that is made of a tensor on a GPU for clients that cannot open the memory; 0 for
    /// none. A subscriber that would need a larger one loses the tensor; a request is answered with an error. Any
    /// client can make an endpoint copy, so bound it where clients are not trusted. Unlimited by default.
    #[cfg(feature = "cuda")]
    pub max_copy: u64,
    /// As [`ConnectOptions::cuda_events`](crate::ConnectOptions::cuda_events). Without them publishing waits for what
    /// writes the tensor. On by default.
    #[cfg(feature = "cuda")]
    pub cuda_events: bool,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            max_peers: 128,
            credits: 4,
            max_credits: MAX_CREDITS,
            queue: 4,
            max_queue: MAX_CREDITS,
            max_requests: 256,
            handshake: Duration::from_secs(5),
            mode: 0o666,
            lanes: true,
            #[cfg(feature = "cuda")]
            cuda: Vec::new(),
            #[cfg(feature = "cuda")]
            max_copy: u64::MAX,
            #[cfg(feature = "cuda")]
            cuda_events: true,
        }
    }
}

/// A place in a channel where others find this process: `<channel>/<endpoint>.sock`.
///
/// A thread of its own accepts clients and takes what they send. Publishing happens in the caller's thread and
/// never waits for a client.
pub struct Endpoint {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Something has changed that somebody may wait for.
    pub(crate) changed: Condvar,
    /// Written to wake the thread up.
    pub(crate) wake: OwnedFd,
    pub(crate) listening: Listening,
    pub(crate) options: EndpointOptions,
    pub(crate) name: String,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) peers: BTreeMap<u64, Peer>,
    pub(crate) next_peer: u64,
    pub(crate) requests: VecDeque<Waiting>,
    pub(crate) refusals: VecDeque<String>,
    #[cfg(feature = "cuda")]
    pub(crate) copies: VecDeque<String>,
    pub(crate) closing: bool,
    /// What nobody needs any more. It is dropped after unlocking, because that can run code of the user's, or wait for
    /// a GPU.
    pub(crate) spent: Vec<Spent>,
}

/// The state, locked. What is spent then is dropped after it has been unlocked: fields go in their order.
pub(crate) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    spent: Vec<Spent>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.spent = std::mem::take(&mut self.state.spent);
    }
}

/// A request that nobody has taken yet.
pub(crate) struct Waiting {
    pub(crate) peer: u64,
    pub(crate) sequence: u64,
    pub(crate) content: Content,
    pub(crate) memory: Option<Arc<Memory>>,
}

/// How many subscribers got something published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// It is on its way.
    pub sent: usize,
    /// It waits until they release something.
    pub queued: usize,
    /// They are too slow: this one or an older one was dropped for them.
    pub lost: usize,
    /// Of all those: they get a copy, made in the host's memory, of a tensor on a GPU.
    pub copied: usize,
}

/// A client of an endpoint, as it is just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// Whether it gets what is published; else it is a requester.
    pub subscriber: bool,
    /// Tensors that it holds.
    pub holds: usize,
    /// Tensors that wait for it.
    pub queued: usize,
    /// Tensors that it has not got.
    pub lost: u64,
    /// Requests of it that are not answered.
    pub requests: u32,
}

impl Endpoint {
    pub(crate) fn new(channel: &Channel, name: &str, options: EndpointOptions) -> Result<Self> {
        if !(1..=1024).contains(&options.max_peers)
            || !(1..=MAX_CREDITS).contains(&options.credits)
            || !(options.credits..=MAX_CREDITS).contains(&options.max_credits)
            || !(options.queue..=MAX_CREDITS).contains(&options.max_queue)
        {
            return Err(Error::Layout(format!(
                "an endpoint has 1 to 1024 peers, 1 to {MAX_CREDITS} credits, a queue of 0 to {MAX_CREDITS}, and their defaults are not more than the most"
            )));
        }
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(io("make an eventfd"))?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake,
            listening: Listening::new(channel, name, options.mode)?,
            options,
            name: name.to_owned(),
        });
        let serving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("isorun-channel".into())
            .spawn(move || service::run(&serving))
            .map_err(io("start the thread of an endpoint"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hands something to everyone who subscribes just now. Never waits: who has no credits left gets it later or
    /// not at all, as its queue and policy say.
    pub fn publish(&self, what: impl Into<Outgoing>) -> Result<Published> {
        let what = what.into();
        #[cfg(feature = "cuda")]
        if what.gpu.is_some() {
            return crate::cuda::publish::publish(self, &what);
        }
        let (content, memory) = what.into_content()?;
        let message = Message {
            sequence: 1,
            refers: 0,
            body: Body::Tensor(content),
        };
        let publication = Arc::new(Publication {
            bytes: message.encode(),
            memory,
            #[cfg(feature = "cuda")]
            lent: None,
        });
        let mut published = Published::default();
        let mut gone = Vec::new();
        let mut state = self.shared.state();
        let State { peers, spent, .. } = &mut *state;
        for (&id, peer) in peers {
            if !peer.is_subscriber() {
                continue;
            }
            match peer.offer(&publication, spent) {
                Ok(Offered::Sent) => published.sent += 1,
                Ok(Offered::Queued) => published.queued += 1,
                Ok(Offered::Lost) => published.lost += 1,
                Err(Gone) => gone.push(id),
            }
        }
        let retry = state.peers.values().any(|peer| peer.blocked);
        for id in gone {
            state.remove(id);
        }
        drop(state);
        if retry {
            self.shared.wake();
        }
        Ok(published)
    }

    /// The next request, or [`Error::TimedOut`].
    pub fn next_request(&self, timeout: Duration) -> Result<Request> {
        let (mut state, found) = self.wait(timeout, |state| !state.requests.is_empty());
        let waiting = state.requests.pop_front();
        drop(state);
        let Some(waiting) = waiting.filter(|_| found) else {
            return Err(Error::TimedOut {
                waiting_for: format!("a request to endpoint {}", self.shared.name),
                after: timeout,
            });
        };
        Ok(Request::new(&self.shared, waiting))
    }

    /// How many subscribe just now.
    pub fn subscribers(&self) -> usize {
        self.shared.state().subscribers()
    }

    /// Waits until there are at least `count` subscribers, or [`Error::TimedOut`].
    pub fn wait_for_subscribers(&self, count: usize, timeout: Duration) -> Result<()> {
        match self.wait(timeout, |state| state.subscribers() >= count).1 {
            true => Ok(()),
            false => Err(Error::TimedOut {
                waiting_for: format!("{count} subscribers of endpoint {}", self.shared.name),
                after: timeout,
            }),
        }
    }

    /// Waits until what is published next would be sent to every subscriber at once: for those who must not lose
    /// anything. [`Error::TimedOut`] says that at least one is too slow.
    pub fn wait_for_room(&self, timeout: Duration) -> Result<()> {
        let room = |state: &State| {
            let mut subscribers = state.peers.values().filter(|peer| peer.is_subscriber());
            subscribers.all(Peer::has_room)
        };
        match self.wait(timeout, room).1 {
            true => Ok(()),
            false => Err(Error::TimedOut {
                waiting_for: format!("room at all subscribers of endpoint {}", self.shared.name),
                after: timeout,
            }),
        }
    }

    /// Waits until everyone to whom this endpoint sent a shared tensor has released it: then it can be written
    /// again.
    pub fn wait_until_free(&self, tensor: &SharedTensor, timeout: Duration) -> Result<()> {
        match self.wait(timeout, |_| tensor.is_free()).1 {
            true => Ok(()),
            false => Err(Error::TimedOut {
                waiting_for: "the release of a shared tensor".into(),
                after: timeout,
            }),
        }
    }

    fn wait(
        &self,
        timeout: Duration,
        until: impl Fn(&State) -> bool,
    ) -> (MutexGuard<'_, State>, bool) {
        let deadline = deadline(timeout);
        let mut state = self.shared.lock();
        loop {
            if until(&state) {
                return (state, true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (state, false);
            }
            // Looked at again even if nobody calls: what is waited for may happen at another endpoint.
            state = self
                .shared
                .changed
                .wait_timeout(state, left.min(LOOK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Everyone who is connected just now, those in the handshake excepted.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let state = self.shared.state();
        let ready = state.peers.values().filter_map(|peer| {
            Some(PeerInfo {
                subscriber: peer.welcome?.roles & role::SUBSCRIBER != 0,
                holds: peer.holds(),
                queued: peer.queued(),
                lost: peer.lost(),
                requests: peer.open,
            })
        });
        ready.collect()
    }

    /// Why clients were turned away: the last 16 reasons.
    pub fn refusals(&self) -> Vec<String> {
        self.shared.state().refusals.iter().cloned().collect()
    }

    /// Why tensors on GPUs were copied for clients, or for some of them: the last 16 reasons.
    #[cfg(feature = "cuda")]
    pub fn copy_reasons(&self) -> Vec<String> {
        self.shared.state().copies.iter().cloned().collect()
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Whoever is connected hears of it now, also if a request keeps the rest alive.
        let peers = std::mem::take(&mut self.shared.state().peers);
        drop(peers);
    }
}

impl State {
    /// Keeps reasons for copies, each once.
    #[cfg(feature = "cuda")]
    pub(crate) fn note_copies(&mut self, reasons: Vec<String>) {
        for reason in reasons {
            self.copies.retain(|known| *known != reason);
            self.copies.push_back(reason);
        }
        while self.copies.len() > 16 {
            self.copies.pop_front();
        }
    }

    /// A peer has gone: nobody waits for the answers to its requests any more.
    pub(crate) fn remove(&mut self, id: u64) {
        self.requests.retain(|waiting| waiting.peer != id);
        let peer = self.peers.remove(&id);
        self.spent
            .extend(peer.map(|peer| Spent::Peer(Box::new(peer))));
    }

    fn subscribers(&self) -> usize {
        self.peers
            .values()
            .filter(|peer| peer.is_subscriber())
            .count()
    }
}

impl Shared {
    pub(crate) fn state(&self) -> Locked<'_> {
        Locked {
            state: self.lock(),
            spent: Vec::new(),
        }
    }

    /// For who waits, and so drops nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        // It fails only if the thread has been woken 2^64 times already.
        let _ = rustix::io::write(self.wake.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Does something to a peer; it is removed if it has gone. False if it is not there (any more).
    fn with_peer(&self, id: u64, work: impl FnOnce(&mut Peer) -> Result<(), Gone>) -> bool {
        let mut state = self.state();
        let Some(peer) = state.peers.get_mut(&id) else {
            return false;
        };
        let alive = work(peer).is_ok();
        let retry = alive && peer.blocked;
        if !alive {
            state.remove(id);
        }
        drop(state);
        if retry {
            self.wake();
        }
        alive
    }
}

/// Releases the tensor of a request.
struct ToPeer {
    shared: Weak<Shared>,
    peer: u64,
}

impl Release for ToPeer {
    fn release(&self, sequence: u64) {
        if let Some(shared) = self.shared.upgrade() {
            shared.with_peer(self.peer, |peer| peer.release(sequence));
        }
    }

    #[cfg(feature = "cuda")]
    fn is_open(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_some_and(|shared| shared.state().peers.contains_key(&self.peer))
    }
}

/// A question that wants an answer. If it is dropped without one, its client is told so.
pub struct Request {
    /// What was asked.
    pub question: Received,
    shared: Weak<Shared>,
    peer: u64,
    sequence: u64,
    answered: bool,
    asked: Instant,
}

impl Request {
    fn new(shared: &Arc<Shared>, waiting: Waiting) -> Self {
        let Waiting {
            peer,
            sequence,
            content,
            memory,
        } = waiting;
        let tensor = match (content.tensor, memory) {
            (Some(described), Some(memory)) => {
                let to = Arc::new(ToPeer {
                    shared: Arc::downgrade(shared),
                    peer,
                });
                let lease = Arc::new(Lease { to, sequence });
                Some(Tensor::new(memory, described.layout, Some(lease)))
            }
            _ => None,
        };
        Self {
            question: Received {
                tensor,
                #[cfg(feature = "cuda")]
                gpu: None,
                #[cfg(feature = "cuda")]
                copied_from_gpu: false,
                name: content.name,
                tag: content.tag,
                meta: content.meta,
                lost: 0,
            },
            shared: Arc::downgrade(shared),
            peer,
            sequence,
            answered: false,
            asked: Instant::now(),
        }
    }

    /// How long ago it was taken.
    pub fn age(&self) -> Duration {
        self.asked.elapsed()
    }

    /// Answers it. [`Error::Closed`] says that its client has gone.
    pub fn reply(mut self, answer: impl Into<Outgoing>) -> Result<()> {
        let answer = answer.into();
        #[cfg(feature = "cuda")]
        if answer.gpu.is_some() {
            let Some(shared) = self.shared.upgrade() else {
                return Err(Error::Closed("the endpoint has gone".into()));
            };
            let made = crate::cuda::publish::answer(&shared, self.peer, self.sequence, &answer)?;
            drop(shared);
            return self.answer(made);
        }
        answer.content()?;
        self.answer(Answer::Reply(answer))
    }

    /// Answers with an error: at most 1,024 bytes of a sentence.
    pub fn fail(mut self, text: impl Into<String>) -> Result<()> {
        self.answer(failure(code::APPLICATION, text))
    }

    /// Answers that there is no such request.
    pub fn unknown(mut self) -> Result<()> {
        let text = format!("there is no request {:?}", self.question.name);
        self.answer(failure(code::NO_SUCH_REQUEST, text))
    }

    fn answer(&mut self, answer: Answer) -> Result<()> {
        self.answered = true;
        let shared = self.shared.upgrade();
        let sequence = self.sequence;
        match shared
            .is_some_and(|shared| shared.with_peer(self.peer, |peer| peer.answer(sequence, answer)))
        {
            true => Ok(()),
            false => Err(Error::Closed("it did not wait for its answer".into())),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.answer(failure(code::APPLICATION, "the request was not answered"));
        }
    }
}

pub(crate) fn failure(code: u16, text: impl Into<String>) -> Answer {
    Answer::Failure(Failure {
        code,
        text: text.into(),
        closes: false,
    })
}
