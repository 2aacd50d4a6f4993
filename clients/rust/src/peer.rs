//! One client of an endpoint: what it may have, what it has, what waits for it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

#[cfg(feature = "cuda")]
use crate::cuda::publish::{Lent, PeerDevices};
use crate::lane::{Sending, Way};
use crate::memory::Memory;
use crate::message::Outgoing;
use crate::socket::{self, is_full};
use crate::wire::{
    Body, Failure, LOST_AT, MAX_RELEASES, MEMORY_AT, Message, Policy, SEQUENCE_AT, Sharing,
    Welcome, role,
};

/// Answers with shared memory that a peer may have without releasing them.
const MAX_LENT: usize = 65_536;

/// Answers and releases that may wait for a peer that sends and does not read. More than anyone can have open.
const MAX_WAITING: usize = 4096;

/// A peer that has gone, or must go.
pub(crate) struct Gone;

pub(crate) struct Peer {
    pub(crate) socket: Arc<OwnedFd>,
    /// Nothing before the handshake; then its end is `deadline`.
    pub(crate) welcome: Option<Welcome>,
    pub(crate) deadline: Instant,
    /// If it was agreed upon.
    pub(crate) lane: Option<Sending>,
    pub(crate) received: u64,
    sent: u64,
    /// TENSOR messages that it has not released, and their memory if it is shared.
    outstanding: HashMap<u64, Option<Kept>>,
    /// Shared memory of answers.
    lent: HashMap<u64, Kept>,
    /// How many of those are memory of GPUs.
    lent_gpu: usize,
    /// What it has said about its GPUs.
    #[cfg(feature = "cuda")]
    pub(crate) devices: Option<Arc<PeerDevices>>,
    queue: VecDeque<Arc<Publication>>,
    answers: VecDeque<(u64, Answer)>,
    /// Requests that are not answered.
    pub(crate) open: u32,
    due: Vec<u64>,
    lost: u64,
    /// Something could not be sent that should have been.
    pub(crate) blocked: bool,
    /// A WAKE among it.
    owes_wake: bool,
}

/// What is published, as bytes: sequence and lost are filled in for each peer.
pub(crate) struct Publication {
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: Option<Arc<Memory>>,
    #[cfg(feature = "cuda")]
    pub(crate) lent: Option<Arc<Lent>>,
}

/// What must stay until it is released. Nobody looks at it.
#[allow(dead_code)]
pub(crate) enum Kept {
    Memory(Arc<Memory>),
    #[cfg(feature = "cuda")]
    Lent(Arc<Lent>),
}

/// What nobody needs any more, and nobody looks at: see [`State`](crate::endpoint::State).
#[allow(dead_code)]
pub(crate) enum Spent {
    Kept(Kept),
    Publication(Arc<Publication>),
    Peer(Box<Peer>),
}

impl Kept {
    /// Whether it is memory of a GPU.
    fn is_gpu(&self) -> bool {
        #[cfg(feature = "cuda")]
        return matches!(self, Self::Lent(_));
        #[cfg(not(feature = "cuda"))]
        false
    }
}

impl Publication {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(feature = "cuda")]
        if let Some(lent) = &self.lent {
            return lent.fd();
        }
        self.memory.as_ref().map(|memory| memory.fd())
    }

    fn kept(&self) -> Option<Kept> {
        #[cfg(feature = "cuda")]
        if let Some(lent) = &self.lent {
            return Some(Kept::Lent(lent.clone()));
        }
        let memory = self.memory.as_ref()?;
        (memory.sharing() == Sharing::Shared).then(|| Kept::Memory(memory.clone()))
    }
}

pub(crate) enum Answer {
    Reply(Outgoing),
    Failure(Failure),
    /// A message that is ready but for its sequence.
    #[cfg(feature = "cuda")]
    Made(Arc<Publication>),
}

impl Answer {
    /// Whether it is memory of a GPU.
    fn is_gpu(&self) -> bool {
        #[cfg(feature = "cuda")]
        return matches!(self, Self::Made(publication) if publication.lent.is_some());
        #[cfg(not(feature = "cuda"))]
        false
    }
}

/// What became of something published.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    Sent,
    Queued,
    /// It, or an older one, was dropped.
    Lost,
}

impl Peer {
    pub(crate) fn new(socket: OwnedFd, deadline: Instant) -> Self {
        Self {
            socket: Arc::new(socket),
            welcome: None,
            deadline,
            lane: None,
            received: 0,
            sent: 0,
            outstanding: HashMap::new(),
            lent: HashMap::new(),
            lent_gpu: 0,
            #[cfg(feature = "cuda")]
            devices: None,
            queue: VecDeque::new(),
            answers: VecDeque::new(),
            open: 0,
            due: Vec::new(),
            lost: 0,
            blocked: false,
            owes_wake: false,
        }
    }

    pub(crate) fn is_subscriber(&self) -> bool {
        // One that has yet to say which GPUs it has is not ready.
        #[cfg(feature = "cuda")]
        if self
            .welcome
            .is_some_and(|welcome| welcome.features & crate::device::FEATURE_CUDA != 0)
            && self.devices.is_none()
        {
            return false;
        }
        self.welcome
            .is_some_and(|welcome| welcome.roles & role::SUBSCRIBER != 0)
    }

    pub(crate) fn holds(&self) -> usize {
        self.outstanding.len()
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether the next thing published would be sent at once.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.is_empty()
            && self
                .welcome
                .is_some_and(|welcome| self.outstanding.len() < welcome.credits as usize)
    }

    /// Whether it would be sent what is published next, or would have it waiting.
    #[cfg(feature = "cuda")]
    pub(crate) fn would_take(&self) -> bool {
        let Some(welcome) = self.welcome else {
            return false;
        };
        let limit = welcome.queue as usize;
        self.has_room()
            || self.queue.len() < limit
            || (welcome.policy == Policy::DropOldest && limit > 0)
    }

    /// It does not get what is published.
    #[cfg(feature = "cuda")]
    pub(crate) fn lose(&mut self) {
        self.lost += 1;
    }

    /// Whether it has as many requests open as it may. An answer in a GPU's memory, which pins an allocation, is one
    /// until it is released.
    pub(crate) fn asks_too_much(&self, credits: u32) -> bool {
        let waiting = self.answers.iter().filter(|(_, answer)| answer.is_gpu());
        self.open as usize + self.lent_gpu + waiting.count() >= credits as usize
    }

    /// Sends one message that is not a tensor's.
    pub(crate) fn send(&mut self, refers: u64, body: Body) -> rustix::io::Result<()> {
        let message = Message {
            sequence: self.sent + 1,
            refers,
            body,
        };
        socket::send(self.socket.as_fd(), &message.encode(), None)?;
        self.sent = message.sequence;
        Ok(())
    }

    /// Sends this side of the lane, if there is one.
    pub(crate) fn send_lane(&mut self) -> rustix::io::Result<()> {
        let Some(lane) = &mut self.lane else {
            return Ok(());
        };
        let message = Message {
            sequence: self.sent + 1,
            refers: 0,
            body: Body::Lane,
        };
        socket::send(self.socket.as_fd(), &message.encode(), lane.fd())?;
        lane.sent();
        self.sent = message.sequence;
        Ok(())
    }

    /// Sends what was published, or keeps it, or drops something: never waits.
    pub(crate) fn offer(
        &mut self,
        publication: &Arc<Publication>,
        spent: &mut Vec<Spent>,
    ) -> Result<Offered, Gone> {
        let Some(welcome) = self.welcome else {
            return Ok(Offered::Lost);
        };
        if self.has_room() && self.send_tensor(publication)? {
            return Ok(Offered::Sent);
        }
        if self.queue.len() < welcome.queue as usize {
            self.queue.push_back(publication.clone());
            return Ok(Offered::Queued);
        }
        self.lost += 1;
        if welcome.policy == Policy::DropOldest
            && let Some(oldest) = self.queue.pop_front()
        {
            spent.push(Spent::Publication(oldest));
            self.queue.push_back(publication.clone());
        }
        Ok(Offered::Lost)
    }

    /// False if there is no room in the socket.
    fn send_tensor(&mut self, publication: &Publication) -> Result<bool, Gone> {
        let sequence = self.sent + 1;
        let memory = publication.memory.as_ref();
        let number = match (&mut self.lane, publication.bytes.len()) {
            (None, _) => 0,
            (Some(lane), length) => match lane.way(length, memory) {
                Way::Socket(number) => number,
                Way::Lane(number) => {
                    let asleep = lane.write(&publication.bytes, sequence, self.lost, number);
                    self.sent = sequence;
                    self.outstanding.insert(sequence, publication.kept());
                    self.owes_wake |= asleep;
                    self.wake()?;
                    return Ok(true);
                }
            },
        };
        let mut bytes = publication.bytes.clone();
        bytes[MEMORY_AT..MEMORY_AT + 2].copy_from_slice(&number.to_le_bytes());
        bytes[SEQUENCE_AT..SEQUENCE_AT + 8].copy_from_slice(&sequence.to_le_bytes());
        bytes[LOST_AT..LOST_AT + 8].copy_from_slice(&self.lost.to_le_bytes());
        if !self.put(&bytes, publication.descriptor())? {
            return Ok(false);
        }
        self.sent = sequence;
        if let (Some(lane), Some(memory)) = (&mut self.lane, memory) {
            lane.told(number, memory);
        }
        self.outstanding.insert(sequence, publication.kept());
        Ok(true)
    }

    /// Sends a packet; false if there is no room for it, and it has to be tried again.
    fn put(&mut self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<bool, Gone> {
        match socket::send(self.socket.as_fd(), bytes, descriptor) {
            Ok(()) => Ok(true),
            Err(errno) if is_full(errno) => {
                self.blocked = true;
                Ok(false)
            }
            Err(_) => Err(Gone),
        }
    }

    /// Wakes the client, if it is owed.
    fn wake(&mut self) -> Result<(), Gone> {
        if !self.owes_wake {
            return Ok(());
        }
        match self.send(0, Body::Wake) {
            // Full, so it has something to read, and is awake.
            Ok(()) | Err(Errno::AGAIN) => self.owes_wake = false,
            // Nothing of the socket's: it may be empty, and the client asleep.
            Err(errno) if is_full(errno) => self.blocked = true,
            Err(_) => return Err(Gone),
        }
        Ok(())
    }

    /// Sends what waits, as far as there are credits and room.
    pub(crate) fn pump(&mut self) -> Result<(), Gone> {
        self.blocked = false;
        self.wake()?;
        while !self.due.is_empty() {
            let count = self.due.len().min(MAX_RELEASES);
            let part = self.due[..count].to_vec();
            match self.send(0, Body::Release(part)) {
                Ok(()) => drop(self.due.drain(..count)),
                Err(errno) if is_full(errno) => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(_) => return Err(Gone),
            }
        }
        while let Some((refers, answer)) = self.answers.pop_front() {
            if !self.send_answer(refers, &answer)? {
                self.answers.push_front((refers, answer));
                return Ok(());
            }
        }
        let credits = self.welcome.map_or(0, |welcome| welcome.credits as usize);
        while self.outstanding.len() < credits {
            let Some(publication) = self.queue.pop_front() else {
                break;
            };
            if !self.send_tensor(&publication)? {
                self.queue.push_front(publication);
                break;
            }
        }
        Ok(())
    }

    /// Answers a request; what does not fit now is sent later.
    pub(crate) fn answer(&mut self, refers: u64, answer: Answer) -> Result<(), Gone> {
        self.open = self.open.saturating_sub(1);
        self.refuse(refers, answer)
    }

    /// The same for a request that was never taken.
    pub(crate) fn refuse(&mut self, refers: u64, answer: Answer) -> Result<(), Gone> {
        if self.answers.len() >= MAX_WAITING {
            return Err(Gone);
        }
        self.answers.push_back((refers, answer));
        self.pump()
    }

    fn send_answer(&mut self, refers: u64, answer: &Answer) -> Result<bool, Gone> {
        #[cfg(feature = "cuda")]
        if let Answer::Made(publication) = answer {
            return self.send_made(publication);
        }
        let (body, memory) = match answer {
            Answer::Failure(failure) => (Body::Error(failure.clone()), None),
            #[cfg(feature = "cuda")]
            Answer::Made(_) => return Err(Gone),
            // Its limits were checked when it was made.
            Answer::Reply(outgoing) => match outgoing.content() {
                Ok(content) => (Body::Reply(content), outgoing.memory()),
                Err(_) => return Err(Gone),
            },
        };
        let message = Message {
            sequence: self.sent + 1,
            refers,
            body,
        };
        let descriptor = memory.map(|memory| memory.fd());
        if !self.put(&message.encode(), descriptor)? {
            return Ok(false);
        }
        self.sent = message.sequence;
        if let Some(memory) = memory
            && memory.sharing() == Sharing::Shared
        {
            if self.lent.len() >= MAX_LENT {
                return Err(Gone);
            }
            self.lent.insert(self.sent, Kept::Memory(memory.clone()));
        }
        Ok(true)
    }

    /// The same for an answer that is ready.
    #[cfg(feature = "cuda")]
    fn send_made(&mut self, publication: &Publication) -> Result<bool, Gone> {
        let mut bytes = publication.bytes.clone();
        let sequence = self.sent + 1;
        bytes[SEQUENCE_AT..SEQUENCE_AT + 8].copy_from_slice(&sequence.to_le_bytes());
        if !self.put(&bytes, publication.descriptor())? {
            return Ok(false);
        }
        self.sent = sequence;
        if let Some(kept) = publication.kept() {
            if self.lent.len() >= MAX_LENT {
                return Err(Gone);
            }
            self.lent_gpu += usize::from(kept.is_gpu());
            self.lent.insert(sequence, kept);
        }
        Ok(true)
    }

    /// It has released messages of ours.
    pub(crate) fn released(
        &mut self,
        sequences: &[u64],
        spent: &mut Vec<Spent>,
    ) -> Result<(), Gone> {
        for sequence in sequences {
            let published = self.outstanding.remove(sequence).flatten();
            spent.extend(published.map(Spent::Kept));
            if let Some(kept) = self.lent.remove(sequence) {
                self.lent_gpu -= usize::from(kept.is_gpu());
                spent.push(Spent::Kept(kept));
            }
        }
        self.pump()
    }

    /// We have released a message of its.
    pub(crate) fn release(&mut self, sequence: u64) -> Result<(), Gone> {
        if self.due.len() >= MAX_WAITING {
            return Err(Gone);
        }
        self.due.push(sequence);
        self.pump()
    }
}
