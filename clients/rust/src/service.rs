//! The thread of an endpoint: accepts, welcomes, takes requests and releases, sends what had to wait.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

#[cfg(feature = "cuda")]
use crate::device::FEATURE_CUDA;
use crate::endpoint::{Shared, State, Waiting, failure};
use crate::error::Error;
use crate::lane::Sending;
use crate::memory::Memory;
use crate::peer::Peer;
use crate::socket::{self, Incoming, deadline, timespec};
use crate::wire::{
    Body, DEFAULT_QUEUE, Failure, Hello, MAX_CREDITS, Message, VERSION, Welcome, code, feature,
    role,
};

/// How soon something is tried again that had no room.
const RETRY: Duration = Duration::from_millis(2);
/// How long nobody is accepted after there was no descriptor left for it.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages that are taken from a peer before it is the next one's turn.
const TURN: usize = 64;
/// Reasons that are kept.
const REFUSALS: usize = 16;

/// Serves until the endpoint closes.
pub(crate) fn run(shared: &Shared) {
    let mut accept_from = Instant::now();
    loop {
        let (ids, sockets, look) = {
            let state = shared.state();
            if state.closing {
                return;
            }
            watched(&state)
        };
        let now = Instant::now();
        let accepting = now >= accept_from;
        let mut until = look.unwrap_or(now + Duration::from_secs(3600));
        if !accepting {
            until = until.min(accept_from);
        }
        let mut fds = vec![PollFd::new(&shared.wake, PollFlags::IN)];
        let interest = match accepting {
            true => PollFlags::IN,
            false => PollFlags::empty(),
        };
        fds.push(PollFd::new(&shared.listening.socket, interest));
        fds.extend(
            sockets
                .iter()
                .map(|socket| PollFd::new(socket, PollFlags::IN)),
        );
        let left = timespec(until.saturating_duration_since(now));
        if poll(&mut fds, Some(&left)).is_err_and(|errno| errno != Errno::INTR) {
            // Not enough memory for the list, as far as anyone knows.
            std::thread::sleep(PAUSE);
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8][..]);
        }
        let mut state = shared.state();
        if ready[1] && !accept(shared, &mut state) {
            accept_from = Instant::now() + PAUSE;
        }
        for (id, _) in ids.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            serve(shared, &mut state, *id);
        }
        overdue(&mut state);
        retry(&mut state);
        drop(state);
        shared.changed.notify_all();
    }
}

/// Sends what had no room before.
fn retry(state: &mut State) {
    let mut gone = Vec::new();
    for (&id, peer) in &mut state.peers {
        if peer.blocked && peer.pump().is_err() {
            gone.push(id);
        }
    }
    for id in gone {
        state.remove(id);
    }
}

/// Everyone to listen to, and when to look again at the latest.
fn watched(state: &State) -> (Vec<u64>, Vec<Arc<OwnedFd>>, Option<Instant>) {
    let (mut ids, mut sockets, mut first) = (Vec::new(), Vec::new(), None::<Instant>);
    for (&id, peer) in &state.peers {
        ids.push(id);
        sockets.push(peer.socket.clone());
        let look = match (peer.welcome, peer.blocked) {
            (None, _) => Some(peer.deadline),
            (_, true) => Some(Instant::now() + RETRY),
            _ => None,
        };
        first = look
            .into_iter()
            .chain(first)
            .reduce(|one, other| one.min(other));
    }
    (ids, sockets, first)
}

/// Accepts all who wait; false if that is not possible for now.
fn accept(shared: &Shared, state: &mut State) -> bool {
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(&shared.listening.socket, flags) {
            Ok(socket) => {
                let mut peer = Peer::new(socket, deadline(shared.options.handshake));
                if state.peers.len() >= shared.options.max_peers {
                    let text = format!("there are {} clients already", state.peers.len());
                    let _ = peer.send(0, closing(code::BUSY, text.clone()));
                    note(state, text);
                    continue;
                }
                state.peers.insert(state.next_peer, peer);
                state.next_peer += 1;
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => return errno == Errno::AGAIN,
        }
    }
}

/// Those who did not say hello in time.
fn overdue(state: &mut State) {
    let now = Instant::now();
    let late = |peer: &Peer| peer.welcome.is_none() && peer.deadline <= now;
    let count = state.peers.values().filter(|peer| late(peer)).count();
    if count > 0 {
        state.peers.retain(|_, peer| !late(peer));
        note(state, format!("{count} clients did not say HELLO in time"));
    }
}

fn note(state: &mut State, reason: String) {
    if state.refusals.len() >= REFUSALS {
        state.refusals.pop_front();
    }
    state.refusals.push_back(reason);
}

fn closing(code: u16, text: String) -> Body {
    Body::Error(Failure {
        code,
        text,
        closes: true,
    })
}

/// Why a peer's connection ends.
enum End {
    /// It has gone, or does not need to be told.
    Gone,
    /// It broke a rule: code and text.
    Refused(u16, String),
}

/// Takes what a peer has sent.
fn serve(shared: &Shared, state: &mut State, id: u64) {
    for _ in 0..TURN {
        match take(shared, state, id) {
            Ok(true) => {}
            Ok(false) => return,
            Err(end) => {
                if let (Some(peer), End::Refused(code, text)) = (state.peers.get_mut(&id), end) {
                    let _ = peer.send(0, closing(code, text.clone()));
                    note(state, text);
                }
                state.remove(id);
                return;
            }
        }
    }
}

/// Takes one message; false if there is none.
fn take(shared: &Shared, state: &mut State, id: u64) -> Result<bool, End> {
    let State {
        peers,
        requests,
        spent,
        ..
    } = state;
    // Somebody else may have found that it has gone.
    let Some(peer) = peers.get_mut(&id) else {
        return Ok(false);
    };
    let (message, descriptor) =
        match socket::receive(peer.socket.clone().as_fd(), &mut peer.received) {
            Ok(Incoming::Message(message, descriptor)) => (message, descriptor),
            Ok(Incoming::Nothing) => return Ok(false),
            Ok(Incoming::End) => return Err(End::Gone),
            Err(Error::Malformed(text)) => return Err(End::Refused(code::MALFORMED, text)),
            Err(_) => return Err(End::Gone),
        };
    let refused = |text: &str| Err(End::Refused(code::MALFORMED, text.to_owned()));
    let sequence = message.sequence;
    match (message.body, peer.welcome) {
        (Body::Hello(hello), None) => welcome(shared, peer, sequence, &hello)?,
        (body, None) => return refused(&format!("{} before HELLO", body.name())),
        (Body::Request(content), Some(welcome)) => {
            if welcome.roles & crate::wire::role::REQUESTER == 0 {
                return refused("REQUEST of a client that is no requester");
            }
            let memory = match (&content.tensor, descriptor) {
                (Some(described), Some(fd)) => {
                    let memory = Memory::received(fd, described.sharing, described.size)
                        .map_err(|error| End::Refused(code::DESCRIPTOR, error.to_string()))?;
                    Some(Arc::new(memory))
                }
                _ => None,
            };
            if requests.len() >= shared.options.max_requests || peer.asks_too_much(welcome.credits)
            {
                if memory.is_some() {
                    peer.release(sequence).map_err(|_| End::Gone)?;
                }
                let busy = failure(code::BUSY, "there are too many requests already");
                peer.refuse(sequence, busy).map_err(|_| End::Gone)?;
                return Ok(true);
            }
            peer.open += 1;
            requests.push_back(Waiting {
                peer: id,
                sequence,
                content,
                memory,
            });
        }
        (Body::Lane, Some(_)) => {
            let (Some(lane), Some(fd)) = (&mut peer.lane, descriptor) else {
                return refused("LANE without being asked");
            };
            lane.opened(fd).map_err(|error| match error {
                Error::Malformed(text) => End::Refused(code::MALFORMED, text),
                error => End::Refused(code::DESCRIPTOR, error.to_string()),
            })?;
        }
        (Body::Release(sequences), Some(_)) => {
            peer.released(&sequences, spent).map_err(|_| End::Gone)?;
        }
        #[cfg(feature = "cuda")]
        (Body::Devices(devices), Some(welcome))
            if welcome.features & FEATURE_CUDA != 0 && peer.devices.is_none() =>
        {
            crate::cuda::publish::introduced(&shared.options, peer, sequence, devices)
                .map_err(|_| End::Gone)?;
        }
        (Body::Ping, Some(_)) => drop(peer.send(sequence, Body::Pong)),
        (Body::Pong, Some(_)) => {}
        // It has closed, or will.
        (Body::Error(_), Some(_)) => return Err(End::Gone),
        (body, Some(_)) => return refused(&format!("{} from a client", body.name())),
    }
    Ok(true)
}

fn welcome(shared: &Shared, peer: &mut Peer, sequence: u64, hello: &Hello) -> Result<(), End> {
    if !(hello.lowest..=hello.highest).contains(&VERSION) {
        let text = format!(
            "versions {} to {} are not known, only {VERSION}",
            hello.lowest, hello.highest
        );
        return Err(End::Refused(code::VERSION, text));
    }
    let options = &shared.options;
    let credits = match hello.credits {
        0 => options.credits,
        asked => asked.min(options.max_credits),
    };
    #[cfg(feature = "cuda")]
    let cuda = match options.cuda.is_empty() {
        true => 0,
        false => hello.features & FEATURE_CUDA,
    };
    #[cfg(not(feature = "cuda"))]
    let cuda = 0;
    let wanted = hello.features & feature::LANE != 0 && hello.roles & role::SUBSCRIBER != 0;
    // Memory of GPUs goes through the socket: whoever gets that has no lane.
    if wanted && options.lanes && cuda == 0 {
        // Without memory for it, it is the socket.
        peer.lane = Sending::new(credits).ok();
    }
    let welcome = Welcome {
        version: VERSION,
        roles: hello.roles,
        features: match peer.lane {
            Some(_) => feature::LANE,
            None => cuda,
        },
        credits,
        queue: match hello.queue {
            DEFAULT_QUEUE => options.queue,
            asked => asked.min(options.max_queue).min(MAX_CREDITS),
        },
        policy: hello.policy,
    };
    let message = Message {
        sequence: 1,
        refers: sequence,
        body: Body::Welcome(welcome),
    };
    peer.send(message.refers, message.body)
        .map_err(|_| End::Gone)?;
    peer.send_lane().map_err(|_| End::Gone)?;
    peer.welcome = Some(welcome);
    Ok(())
}
