//! Lanes: tensors in memory that a subscriber has already are told through shared memory, without a system call. The
//! protocol's section 8.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, Result};
use crate::memory::{Mapping, Memory, Unsealed, WORD, Writable};
use crate::wire::{Body, LOST_AT, MAX_CREDITS, MEMORY_AT, Message, SEQUENCE_AT, Sharing};

/// Words before the first slot: how many messages have been written, and zeros. A cache line.
const HEAD: usize = 8;
/// Words of a slot.
const SLOT: usize = 32;
/// The longest message that goes through a lane, in bytes.
const MAX_ENTRY: usize = SLOT * WORD;
/// Bytes of the client's side.
const PAGE: u64 = (HEAD * WORD) as u64;

fn slots(credits: u32) -> usize {
    credits.clamp(1, MAX_CREDITS).next_power_of_two() as usize
}

fn size(credits: u32) -> u64 {
    ((HEAD + slots(credits) * SLOT) * WORD) as u64
}

/// Memory that this side writes and the other one reads.
struct Side {
    words: Writable,
    /// Until the other side has been sent it.
    fd: Option<OwnedFd>,
}

impl Side {
    fn new(size: u64) -> Result<Self> {
        let (memory, words) = Unsealed::new(size)?.share()?;
        let fd = Some(memory.into_parts().0);
        Ok(Self { words, fd })
    }
}

/// Maps the other side's memory, once.
fn open(place: &mut Option<Mapping>, fd: OwnedFd, size: u64) -> Result<()> {
    if place.is_some() {
        return Err(Error::Malformed("a second LANE".into()));
    }
    let (_fd, mapping) = Memory::received(fd, Sharing::Shared, size)?.into_parts();
    *place = Some(mapping);
    Ok(())
}

/// The listener's end of a lane.
///
/// No message is overwritten before it has been read: each has to be released, and there are as many slots as credits.
pub(crate) struct Sending {
    side: Side,
    written: u64,
    slots: usize,
    /// The client's side, once it has come.
    page: Option<Mapping>,
    /// Serials of the memory that the client keeps, at its number less one.
    known: Vec<u64>,
    next: usize,
}

/// How a message with a tensor in this memory can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the lane; the number is 0 if it has no tensor.
    Lane(u16),
    /// Through the socket; the number that the memory gets, or 0.
    Socket(u16),
}

impl Sending {
    pub(crate) fn new(credits: u32) -> Result<Self> {
        Ok(Self {
            side: Side::new(size(credits))?,
            written: 0,
            slots: slots(credits),
            page: None,
            known: vec![0; credits.clamp(1, MAX_CREDITS) as usize],
            next: 0,
        })
    }

    /// This side's memory, to be sent.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.side.fd.as_ref().map(AsFd::as_fd)
    }

    /// It has been sent.
    pub(crate) fn sent(&mut self) {
        self.side.fd = None;
    }

    /// Takes the client's side.
    pub(crate) fn opened(&mut self, fd: OwnedFd) -> Result<()> {
        open(&mut self.page, fd, PAGE)
    }

    pub(crate) fn way(&self, length: usize, memory: Option<&Arc<Memory>>) -> Way {
        let Some(memory) = memory else {
            return match self.page.is_some() && length <= MAX_ENTRY {
                true => Way::Lane(0),
                false => Way::Socket(0),
            };
        };
        if self.page.is_none() || memory.sharing() == Sharing::Immutable {
            return Way::Socket(0);
        }
        let number = |at: usize| at as u16 + 1;
        match self.known.iter().position(|&one| one == memory.serial()) {
            Some(at) if length <= MAX_ENTRY => Way::Lane(number(at)),
            Some(at) => Way::Socket(number(at)),
            None => Way::Socket(number(self.next)),
        }
    }

    /// The client has been sent memory under a number.
    pub(crate) fn told(&mut self, number: u16, memory: &Memory) {
        let Some(at) = usize::from(number).checked_sub(1) else {
            return;
        };
        if self.known[at] != memory.serial() {
            self.known[at] = memory.serial();
            self.next = (at + 1) % self.known.len();
        }
    }

    /// Writes a message, which is not longer than `way` allows; true if the client sleeps and has to be woken.
    pub(crate) fn write(&mut self, bytes: &[u8], sequence: u64, lost: u64, number: u16) -> bool {
        let mut entry = [0_u8; MAX_ENTRY];
        entry[..bytes.len()].copy_from_slice(bytes);
        entry[SEQUENCE_AT..SEQUENCE_AT + 8].copy_from_slice(&sequence.to_le_bytes());
        entry[LOST_AT..LOST_AT + 8].copy_from_slice(&lost.to_le_bytes());
        entry[MEMORY_AT..MEMORY_AT + 2].copy_from_slice(&number.to_le_bytes());
        let first = HEAD + (self.written as usize % self.slots) * SLOT;
        let used = bytes.len().div_ceil(WORD);
        for (at, word) in entry.chunks_exact(WORD).take(used).enumerate() {
            let mut array = [0; WORD];
            array.copy_from_slice(word);
            self.side
                .words
                .set_word(first + at, u64::from_ne_bytes(array));
        }
        self.written += 1;
        // The message is there before it is counted.
        fence(Ordering::Release);
        self.side.words.set_word(0, self.written.to_le());
        // Counted before it is looked whether the client sleeps. The client does it the other way round: see `sleep`.
        fence(Ordering::SeqCst);
        let page = self.page.as_ref();
        page.and_then(|page| page.word(0)).is_some_and(|n| n != 0)
    }
}

/// What there is in a lane.
pub(crate) enum Found {
    Nothing,
    /// The message that was expected.
    Message(Message),
    /// One with a greater sequence: what comes before is in the socket.
    Later(u64),
}

/// The client's end of a lane.
pub(crate) struct Receiving {
    page: Side,
    sleeping: u64,
    /// The listener's side, once it has come.
    lane: Option<Mapping>,
    credits: u32,
    taken: u64,
    /// Memory by its number less one.
    kept: Vec<Option<Arc<Memory>>>,
    /// What came through the socket and has to wait for what is still in the lane.
    pub(crate) early: Option<(Message, Option<OwnedFd>)>,
}

impl Receiving {
    pub(crate) fn new(credits: u32) -> Result<Self> {
        Ok(Self {
            page: Side::new(PAGE)?,
            sleeping: 0,
            lane: None,
            credits,
            taken: 0,
            kept: vec![None; credits.clamp(1, MAX_CREDITS) as usize],
            early: None,
        })
    }

    /// This side's memory, to be sent.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.page.fd.as_ref().map(AsFd::as_fd)
    }

    /// It has been sent.
    pub(crate) fn sent(&mut self) {
        self.page.fd = None;
    }

    /// Takes the listener's side.
    pub(crate) fn opened(&mut self, fd: OwnedFd) -> Result<()> {
        open(&mut self.lane, fd, size(self.credits))
    }

    /// Whether something may have come.
    pub(crate) fn has_news(&self) -> bool {
        let written = self.lane.as_ref().and_then(|lane| lane.word(0));
        written.is_some_and(|written| u64::from_le(written) != self.taken)
    }

    /// The next message, if it is the one with this sequence.
    pub(crate) fn take(&mut self, sequence: u64) -> Result<Found> {
        let Some(lane) = self.lane.as_ref().filter(|_| self.has_news()) else {
            return Ok(Found::Nothing);
        };
        let slots = slots(self.credits);
        let written = u64::from_le(lane.word(0).unwrap_or(0));
        // What is counted is there.
        fence(Ordering::Acquire);
        if written.wrapping_sub(self.taken) > slots as u64 {
            return Err(Error::Malformed(format!(
                "{written} messages in a lane of which {} were taken, with {slots} slots",
                self.taken
            )));
        }
        // Copied first: a hostile listener may change it while it is looked at.
        let first = HEAD + (self.taken as usize % slots) * SLOT;
        let length = lane.word(first + 1).unwrap_or(0).to_ne_bytes();
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let mut entry = [0_u8; MAX_ENTRY];
        let bytes = entry
            .get_mut(..length)
            .ok_or_else(|| Error::Malformed(format!("a message of {length} bytes in a lane")))?;
        for (at, part) in bytes.chunks_mut(WORD).enumerate() {
            let word = lane.word(first + at).unwrap_or(0).to_ne_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
        let message = Message::decode(bytes).map_err(Error::Malformed)?;
        if !matches!(message.body, Body::Tensor(_)) {
            return Err(Error::Malformed(format!(
                "{} in a lane",
                message.body.name()
            )));
        }
        match message.sequence {
            found if found < sequence => Err(Error::Malformed(format!(
                "sequence {found} in a lane, expected {sequence}"
            ))),
            // The socket has what comes before.
            found if found > sequence => Ok(Found::Later(found)),
            _ => {
                self.taken += 1;
                Ok(Found::Message(message))
            }
        }
    }

    /// Memory that was sent before under this number.
    pub(crate) fn memory(&self, number: u16, size: u64) -> Result<Arc<Memory>> {
        let at = usize::from(number).checked_sub(1);
        let kept = at.and_then(|at| self.kept.get(at)?.as_ref());
        let memory = kept
            .ok_or_else(|| Error::Malformed(format!("memory {number}, which has not been sent")))?;
        match memory.size() == size {
            true => Ok(memory.clone()),
            false => Err(Error::Malformed(format!(
                "memory {number} has {} bytes, the message says {size}",
                memory.size()
            ))),
        }
    }

    /// Keeps memory under a number, in the place of what had it.
    pub(crate) fn keep(&mut self, number: u16, memory: &Arc<Memory>) -> Result<()> {
        let place = usize::from(number).checked_sub(1);
        let place = place.and_then(|at| self.kept.get_mut(at)).ok_or_else(|| {
            Error::Malformed(format!("memory {number} with {} credits", self.credits))
        })?;
        *place = Some(memory.clone());
        Ok(())
    }

    /// Says that a thread goes to sleep; false if it must not, because something has come.
    pub(crate) fn sleep(&mut self) -> bool {
        self.sleeping += 1;
        self.page.words.set_word(0, self.sleeping.to_le());
        // The listener writes first and looks then: one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.has_news() {
            self.wake();
            return false;
        }
        true
    }

    pub(crate) fn wake(&mut self) {
        self.sleeping = self.sleeping.saturating_sub(1);
        self.page.words.set_word(0, self.sleeping.to_le());
    }
}
