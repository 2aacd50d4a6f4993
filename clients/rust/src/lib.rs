//! Tensors shared between containers and processes, with zero copies.
//!
//! A [`Channel`] is a directory that isorun mounts into each container that may use it. A program that has tensors
//! to give listens on an [`Endpoint`] in it and publishes; others [subscribe](Channel::subscribe), or
//! [ask](Channel::requester). What is handed over is a descriptor of sealed memory, checked before it is mapped, so
//! it takes as long for a gigabyte as for a page, and no peer can change or truncate what is being read.
//!
//! ```
//! use std::time::Duration;
//! use isorun_channel::{Channel, Dtype, TensorMut};
//!
//! # fn main() -> isorun_channel::Result<()> {
//! # let directory = std::env::temp_dir().join(format!("isorun-channel-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory).unwrap();
//! # let channel = Channel::at(&directory)?;
//! // let channel = Channel::open("weights")?;
//! let endpoint = channel.listen("layers")?;
//!
//! // Elsewhere, in another container:
//! let subscriber = channel.subscribe("layers")?;
//!
//! # endpoint.wait_for_subscribers(1, Duration::from_secs(5))?;
//! let mut tensor = TensorMut::zeros(Dtype::F32, &[1024, 1024])?;
//! tensor.as_mut_slice::<f32>()?.fill(1.0);
//! endpoint.publish(&tensor.freeze()?)?;
//!
//! let received = subscriber.recv(Duration::from_secs(1))?;
//! let tensor = received.tensor.expect("a tensor");
//! assert_eq!(tensor.as_slice::<f32>()?[5], 1.0);
//! # std::fs::remove_dir_all(&directory).unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! The wire format, its limits, and what seals guarantee and what not: docs/channel-protocol.md.

mod channel;
mod client;
mod connection;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
mod dtype;
mod endpoint;
mod error;
mod handshake;
mod lane;
mod layout;
mod memory;
mod message;
mod named;
mod peer;
mod service;
mod socket;
mod tensor;
pub mod wire;

pub use channel::Channel;
pub use client::{ConnectOptions, Requester, Subscriber};
pub use dtype::{Dtype, Element};
pub use endpoint::{Endpoint, EndpointOptions, PeerInfo, Published, Request};
pub use error::{Error, Result};
pub use layout::{ByteOrder, Layout, MAX_DIMENSIONS, MAX_LOGICAL};
pub use message::{Outgoing, Received};
pub use named::{MAX_HEADER, Named};
pub use tensor::{SharedTensor, Tensor, TensorMut};
pub use wire::{Policy, Sharing};

impl Channel {
    /// Listens on an endpoint. [`Error::InUse`] if somebody serves it already; what a killed process left is taken
    /// over.
    pub fn listen(&self, endpoint: &str) -> Result<Endpoint> {
        Endpoint::new(self, endpoint, EndpointOptions::default())
    }

    /// The same with other limits.
    pub fn listen_with(&self, endpoint: &str, options: EndpointOptions) -> Result<Endpoint> {
        Endpoint::new(self, endpoint, options)
    }

    /// Subscribes to what an endpoint publishes from now on.
    pub fn subscribe(&self, endpoint: &str) -> Result<Subscriber> {
        Subscriber::new(self, endpoint, &ConnectOptions::default())
    }

    /// The same with other wishes.
    pub fn subscribe_with(&self, endpoint: &str, options: &ConnectOptions) -> Result<Subscriber> {
        Subscriber::new(self, endpoint, options)
    }

    /// Connects to an endpoint to ask it.
    pub fn requester(&self, endpoint: &str) -> Result<Requester> {
        Requester::new(self, endpoint, &ConnectOptions::default())
    }

    /// The same with other wishes.
    pub fn requester_with(&self, endpoint: &str, options: &ConnectOptions) -> Result<Requester> {
        Requester::new(self, endpoint, options)
    }
}
