//! GPU memory in channels: what asks for it, and which channel is /dev/shm then.
//!
//! The annotation names the channels; PYISOLATE_ENABLE_CUDA_IPC=1 in the process's environment asks for all
//! of them. Both only ask: the channel's rule decides. What the annotation asks for and cannot have is an
//! error. What only the environment asks for is a loss that is told: an image brings its environment along,
//! and a container is not to fail for what nobody who starts it has written.

use super::request::{Request, Shm, wrong};
use super::{CHANNELS, SHM, SHM_SIZE, Wanted};
use crate::error::{Error, Result};

/// The channels in which GPU memory may be shared: `1`, or names.
pub const CUDA: &str = "io.isorun.cuda-ipc";
/// The variable of a process that asks for the same in all its channels, where it is 1.
pub const ENVIRONMENT: &str = "PYISOLATE_ENABLE_CUDA_IPC";

/// Who asks for GPU memory, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cuda {
    /// Nobody.
    #[default]
    Silent,
    /// The annotation says that it is not wanted.
    Off,
    /// The annotation, in the channels of these names.
    Annotation(Vec<String>),
    /// The environment of the process, in the channels of these names.
    Environment(Vec<String>),
}

impl Cuda {
    /// The names of the channels.
    pub fn channels(&self) -> &[String] {
        match self {
            Self::Annotation(names) | Self::Environment(names) => names,
            Self::Silent | Self::Off => &[],
        }
    }

    /// The annotation's value, read.
    pub(super) fn parse(value: Option<&String>, channels: &[Wanted]) -> Result<Self> {
        let Some(value) = value else {
            return Ok(Self::Silent);
        };
        let all = || channels.iter().map(|one| one.key.name().to_string());
        let names: Vec<String> = match value.as_str() {
            "" | "0" | "false" => return Ok(Self::Off),
            "1" | "true" => all().collect(),
            list => list
                .split(',')
                .map(|name| name.trim().to_string())
                .collect(),
        };
        if channels.is_empty() {
            let sentence = "it is about channels, and the container joins none";
            return Err(wrong(CUDA, sentence).remedy(format!("name them in {CHANNELS}")));
        }
        if let Some(name) = names
            .iter()
            .find(|name| !all().any(|known| known == **name))
        {
            let sentence = format!("the container does not join a channel {name:?}");
            return Err(wrong(CUDA, sentence).remedy(format!(
                "it is 1 for all channels, 0 for none, or names of {CHANNELS}"
            )));
        }
        Ok(Self::Annotation(names))
    }
}

impl Request {
    /// The same with what the process's environment asks for, where the annotation says nothing.
    pub fn with_environment(mut self, env: &[String]) -> Self {
        // The last value counts, as everywhere.
        let mut values = env.iter().rev().filter_map(|pair| pair.split_once('='));
        let asked = values.find(|(name, _)| *name == ENVIRONMENT);
        let asked = asked.is_some_and(|(_, value)| value == "1");
        if asked && self.cuda == Cuda::Silent && !self.channels.is_empty() {
            let all = self.channels.iter().map(|one| one.key.name().to_string());
            self.cuda = Cuda::Environment(all.collect());
        }
        self
    }

    /// Makes the channel /dev/shm that GPU memory in the channels `names` needs there: handles of events, and
    /// what torch counts by, are files in it.
    ///
    /// # Errors
    /// Why none can be: the container asks for another /dev/shm, or does not say which of several.
    pub fn shm_for_cuda(&mut self, names: &[String]) -> Result<()> {
        let writable: Vec<&str> = self
            .channels
            .iter()
            .filter(|one| !one.readonly && names.iter().any(|name| name == one.key.name()))
            .map(|one| one.key.name())
            .collect();
        match (&self.shm, writable.as_slice()) {
            (Some(Shm::Channel(name)), _) if names.contains(name) => Ok(()),
            (Some(Shm::Channel(name)), _) => Err(conflict(
                SHM,
                format!("/dev/shm is to be the channel {name:?}, in which no GPU memory is shared"),
                format!("name {name:?} in {CUDA}, too, or leave {SHM} out"),
            )),
            (Some(Shm::Private(_)), _) => Err(conflict(
                SHM_SIZE,
                format!("/dev/shm is to be private, and with {CUDA} it is the channel's"),
                format!("leave {SHM_SIZE} out"),
            )),
            (None, [name]) => {
                self.shm = Some(Shm::Channel((*name).to_string()));
                Ok(())
            }
            (None, []) => Err(conflict(
                CUDA,
                "all of its channels are joined read-only, and /dev/shm has to be written".into(),
                format!("join one of them with rw in {CHANNELS}"),
            )),
            (None, several) => Err(conflict(
                CUDA,
                format!(
                    "it is not said which of the channels {} is /dev/shm",
                    several.join(", ")
                ),
                format!("{SHM}=channel:{}", several[0]),
            )),
        }
    }
}

fn conflict(annotation: &str, why: String, remedy: String) -> Error {
    wrong(annotation, why).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::request;
    use super::*;

    fn asked(pairs: &[(&str, &str)], env: &[&str]) -> Result<Request> {
        let pair = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
        let owned: BTreeMap<String, String> = pairs.iter().map(pair).collect();
        let env: Vec<String> = env.iter().map(ToString::to_string).collect();
        request(owned.iter()).map(|request| request.unwrap().with_environment(&env))
    }

    const TWO: (&str, &str) = (CHANNELS, "weights:ro,kv:rw");
    const ON: &str = "PYISOLATE_ENABLE_CUDA_IPC=1";

    #[test]
    fn who_asks_for_what() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        for (value, cuda) in [
            ("1", Cuda::Annotation(names(&["weights", "kv"]))),
            ("true", Cuda::Annotation(names(&["weights", "kv"]))),
            ("kv", Cuda::Annotation(names(&["kv"]))),
            ("weights, kv", Cuda::Annotation(names(&["weights", "kv"]))),
            ("0", Cuda::Off),
            ("", Cuda::Off),
            ("false", Cuda::Off),
        ] {
            let request = asked(&[TWO, (CUDA, value)], &[ON]).unwrap();
            // The only one that may be written is /dev/shm.
            let shm = matches!(&request.shm, Some(Shm::Channel(name)) if name == "kv");
            assert_eq!(shm, !request.cuda.channels().is_empty(), "{value}");
            assert_eq!(request.cuda, cuda, "{value}");
        }
        let by_env = |env: &[&str]| asked(&[TWO], env).unwrap().cuda;
        let all = Cuda::Environment(names(&["weights", "kv"]));
        assert_eq!(by_env(&[ON]), all);
        assert_eq!(by_env(&["PYISOLATE_ENABLE_CUDA_IPC=0", ON]), all);
        for env in [
            &[][..],
            &["PYISOLATE_ENABLE_CUDA_IPC=true"],
            &[ON, "PYISOLATE_ENABLE_CUDA_IPC="],
        ] {
            assert_eq!(by_env(env), Cuda::Silent, "{env:?}");
        }
        // It asks for nothing where there are no channels.
        let none = asked(&[(SHM_SIZE, "1m")], &[ON]).unwrap();
        assert_eq!(none.cuda, Cuda::Silent);
    }

    #[test]
    fn what_contradicts_itself_names_the_annotation() {
        let channels = |list: &'static str| (CHANNELS, list);
        for (pairs, field, says) in [
            (vec![(CUDA, "1")], CUDA, "the container joins none"),
            (
                vec![TWO, (CUDA, "other")],
                CUDA,
                "does not join a channel \"other\"",
            ),
            (vec![TWO, (CUDA, "yes")], CUDA, "it is 1 for all channels"),
            (
                vec![channels("a:ro"), (CUDA, "1")],
                CUDA,
                "joined read-only",
            ),
            (
                vec![channels("a,b"), (CUDA, "1")],
                CUDA,
                "which of the channels a, b is /dev/shm; io.isorun.shm=channel:a",
            ),
            (
                vec![channels("a"), (CUDA, "1"), (SHM_SIZE, "1m")],
                SHM_SIZE,
                "is to be private",
            ),
            (
                vec![channels("a,b"), (CUDA, "a"), (SHM, "channel:b")],
                SHM,
                "in which no GPU memory is shared",
            ),
        ] {
            let error = asked(&pairs, &[]).unwrap_err().to_string();
            let start = format!("config.json: annotations[{field:?}]");
            assert!(error.starts_with(&start) && error.contains(says), "{error}");
        }
        let chosen = [channels("a,b"), (CUDA, "1"), (SHM, "channel:b")];
        let chosen = asked(&chosen, &[]).unwrap().shm;
        assert_eq!(chosen, Some(Shm::Channel("b".into())));
    }
}
