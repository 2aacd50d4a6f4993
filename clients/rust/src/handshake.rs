//! The first words of a client: HELLO, and what may come of it.

use std::os::fd::AsFd;
#[cfg(feature = "cuda")]
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::channel::{Channel, connect_to};
use crate::client::ConnectOptions;
use crate::connection::{Connection, connected, remote};
#[cfg(feature = "cuda")]
use crate::device::FEATURE_CUDA;
use crate::error::{Error, Result};
use crate::socket::{self, Incoming, deadline};
use crate::wire::{
    Body, DEFAULT_QUEUE, Hello, MAX_CREDITS, Message, VERSION, Welcome, feature, role,
};

/// Connects and greets.
pub(crate) fn connect(
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
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut))]
    let mut features = match options.lane && roles & role::SUBSCRIBER != 0 {
        true => feature::LANE,
        false => 0,
    };
    #[cfg(feature = "cuda")]
    if !options.cuda.is_empty() {
        features |= FEATURE_CUDA;
    }
    let hello = Message {
        sequence: 1,
        refers: 0,
        body: Body::Hello(Hello {
            lowest: VERSION,
            highest: VERSION,
            roles,
            features,
            credits: options.credits,
            queue,
            policy: options.policy,
        }),
    };
    // If the other side has closed already, what it said is still to be read.
    let _ = socket::send(socket.as_fd(), &hello.encode(), None);
    let mut received = 0;
    // Where memory of GPUs is shared, both have to say which they have.
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut))]
    let mut welcomed: Option<Welcome> = None;
    #[cfg(feature = "cuda")]
    let mut _probe = None;
    loop {
        match socket::receive(socket.as_fd(), &mut received)? {
            Incoming::Message(message, _) => match message.body {
                Body::Welcome(welcome)
                    if !is_for(&welcome, roles, features, options) || message.refers != 1 =>
                {
                    return Err(Error::Malformed("it welcomes somebody else".into()));
                }
                #[cfg(feature = "cuda")]
                Body::Welcome(welcome)
                    if welcomed.is_none() && welcome.features & FEATURE_CUDA != 0 =>
                {
                    _probe = introduce(socket.as_fd(), options);
                    welcomed = Some(welcome);
                }
                #[cfg(feature = "cuda")]
                Body::Devices(_) if message.refers == 2 && welcomed.is_some() => {
                    let Some(welcome) = welcomed else { continue };
                    return connected(socket, endpoint, welcome, (2, received), options);
                }
                Body::Welcome(welcome) if welcomed.is_none() => {
                    return connected(socket, endpoint, welcome, (1, received), options);
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

/// Says which GPUs this process has. What it gives is an event to be kept until the other side has tried it.
#[cfg(feature = "cuda")]
fn introduce(socket: BorrowedFd<'_>, options: &ConnectOptions) -> Option<crate::cuda::Event> {
    let (devices, event) = crate::cuda::devices(&options.cuda, true, options.cuda_events);
    let message = Message {
        sequence: 2,
        refers: 0,
        body: Body::Devices(devices),
    };
    // If the other side has closed already, what it said is still to be read.
    let _ = socket::send(socket, &message.encode(), None);
    event
}

/// Whether a welcome gives what was asked for, and no more.
fn is_for(welcome: &Welcome, roles: u32, features: u64, options: &ConnectOptions) -> bool {
    welcome.version == VERSION
        && welcome.features & !features == 0
        && welcome.roles == roles
        && (options.credits == 0 || welcome.credits <= options.credits)
        && options.queue.is_none_or(|queue| welcome.queue <= queue)
        && welcome.policy == options.policy
}
