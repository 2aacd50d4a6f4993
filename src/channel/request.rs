//! What a container asks for, by its annotations. They are written by whoever starts it: they only ask.

use std::collections::BTreeSet;

use super::cuda::CUDA;
use super::{Cuda, Key, Size};
use crate::error::{Error, Result};

/// The channels to join: `weights:ro,kv:rw`; without a word for the access it is rw.
pub const CHANNELS: &str = "io.isorun.channels";
/// What /dev/shm is: `channel:<name>`.
pub const SHM: &str = "io.isorun.shm";
/// The size of a private /dev/shm.
pub const SHM_SIZE: &str = "io.isorun.shm.size";
/// In the state that isorun gives to hooks: it has done what the annotations ask for, and the hook has nothing to do.
/// Whoever writes it into config.json leaves its own container without channels under other runtimes, and no more.
pub const JOINED: &str = "io.isorun.channels.joined";
const ONE: &str = "io.isorun.channel.";

/// Annotations that engines of Kubernetes write themselves, with the pod's namespace: containerd's CRI,
/// CRI-O, and kubelet's label as CRI-O and others pass it on.
const NAMESPACES: [&str; 3] = [
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri-o.Namespace",
    "io.kubernetes.pod.namespace",
];

/// Annotations that tell a pod's sandbox from its containers. It has the pod's annotations, too, and its
/// program does nothing: it joins no channel.
const TYPES: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];

/// What all annotations of containerd's CRI begin with.
const CRI: &str = "io.kubernetes.cri.";

/// The annotation with the size of a channel.
pub fn size_annotation(name: &str) -> String {
    format!("{ONE}{name}.size")
}

/// A channel that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub key: Key,
    /// It is only read.
    pub readonly: bool,
    /// The size that it has to have.
    pub size: Option<Size>,
}

/// What /dev/shm is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shm {
    /// The channel of this name, which is among the channels of the request.
    Channel(String),
    /// A tmpfs of its own.
    Private(Size),
}

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The channels, in the order in which they were named.
    pub channels: Vec<Wanted>,
    /// /dev/shm, where it is not the configuration's.
    pub shm: Option<Shm>,
    /// It is in a pod of Kubernetes.
    pub kubernetes: bool,
    /// GPU memory in channels.
    pub cuda: Cuda,
}

impl Request {
    /// The environment that tells the program of its channels.
    pub fn environment(&self) -> Vec<(String, String)> {
        let names: Vec<&str> = self.channels.iter().map(|one| one.key.name()).collect();
        let mut all = Vec::new();
        if !names.is_empty() {
            all.push(("ISORUN_CHANNELS".to_string(), names.join(",")));
        }
        let one = |wanted: &Wanted| (wanted.key.variable(), wanted.key.inside());
        all.extend(self.channels.iter().map(one));
        all
    }
}

/// Whether annotations ask for anything of this module.
pub fn asks<'a>(mut annotations: impl Iterator<Item = &'a String>) -> bool {
    let ours = |key: &str| [CHANNELS, SHM, SHM_SIZE, CUDA].contains(&key) || key.starts_with(ONE);
    annotations.any(|key| ours(key))
}

pub(super) fn wrong(annotation: &str, why: impl Into<String>) -> Error {
    Error::spec(format!("annotations[{annotation:?}]"), why)
}

/// Reads the annotations; none where they ask for nothing, or are those of a pod's sandbox.
///
/// # Errors
/// What cannot be meant, with the annotation's name.
pub fn request<'a>(
    annotations: impl Iterator<Item = (&'a String, &'a String)> + Clone,
) -> Result<Option<Request>> {
    if !asks(annotations.clone().map(|(key, _)| key)) {
        return Ok(None);
    }
    let get = |key: &str| {
        let mut all = annotations.clone();
        all.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    if TYPES
        .iter()
        .any(|key| get(key).is_some_and(|kind| kind == "sandbox"))
    {
        return Ok(None);
    }
    let keys = || annotations.clone().map(|(key, _)| key.as_str());
    let namespace = namespace(&get)?;
    let kubernetes = namespace.is_some() || keys().any(|key| key.starts_with(CRI));
    if kubernetes && namespace.is_none() {
        return Err(wrong(
            CHANNELS,
            "a pod of Kubernetes whose namespace its annotations do not tell cannot join channels",
        ));
    }
    let mut channels = match get(CHANNELS) {
        Some(list) => named(list, namespace)?,
        None => Vec::new(),
    };
    let shm = shm(&get, namespace, &mut channels)?;
    for key in keys().filter_map(|key| key.strip_prefix(ONE)) {
        let annotation = format!("{ONE}{key}");
        let Some(name) = key.strip_suffix(".size") else {
            return Err(wrong(
                &annotation,
                "there is no such annotation; a channel has a size",
            ));
        };
        let value = get(&annotation).map_or("", String::as_str);
        let size = value.parse().map_err(|why| wrong(&annotation, why))?;
        match channels.iter_mut().find(|one| one.key.name() == name) {
            Some(wanted) => wanted.size = Some(size),
            None => {
                let sentence = format!("the container does not join a channel {name:?}");
                return Err(wrong(&annotation, sentence).remedy(format!("name it in {CHANNELS}")));
            }
        }
    }
    let cuda = Cuda::parse(get(CUDA), &channels)?;
    let mut variables = BTreeSet::new();
    for wanted in &channels {
        let variable = wanted.key.variable();
        if !variables.insert(variable.clone()) {
            return Err(wrong(
                CHANNELS,
                format!("two of its channels would have the same variable, {variable}"),
            ));
        }
    }
    let mut request = Request {
        channels,
        shm,
        kubernetes,
        cuda,
    };
    if let Cuda::Annotation(names) = request.cuda.clone() {
        request.shm_for_cuda(&names)?;
    }
    Ok(Some(request))
}

/// The pod's namespace.
fn namespace<'a>(get: &impl Fn(&str) -> Option<&'a String>) -> Result<Option<&'a str>> {
    let mut found: Option<&str> = None;
    for annotation in NAMESPACES {
        let Some(value) = get(annotation) else {
            continue;
        };
        if found.is_some_and(|other| other != value) {
            return Err(wrong(
                annotation,
                "another annotation names another namespace",
            ));
        }
        super::check(value).map_err(|_| wrong(annotation, format!("{value:?} is no namespace")))?;
        found = Some(value);
    }
    Ok(found)
}

/// The channels of a list.
fn named(list: &str, namespace: Option<&str>) -> Result<Vec<Wanted>> {
    let mut channels: Vec<Wanted> = Vec::new();
    for word in list.split(',').map(str::trim) {
        let (name, access) = word.split_once(':').unwrap_or((word, "rw"));
        let readonly = match access {
            "ro" => true,
            "rw" => false,
            other => {
                let sentence = format!("{word:?}: the access is ro or rw, not {other:?}");
                return Err(wrong(CHANNELS, sentence));
            }
        };
        let key = Key::new(namespace, name).map_err(|why| wrong(CHANNELS, why))?;
        if channels.iter().any(|one| one.key == key) {
            return Err(wrong(CHANNELS, format!("{name:?} is there twice")));
        }
        channels.push(Wanted {
            key,
            readonly,
            size: None,
        });
    }
    Ok(channels)
}

/// What /dev/shm is to be; a channel that is named only there is joined, too.
fn shm<'a>(
    get: &impl Fn(&str) -> Option<&'a String>,
    namespace: Option<&str>,
    channels: &mut Vec<Wanted>,
) -> Result<Option<Shm>> {
    let size = match get(SHM_SIZE) {
        Some(text) => Some(text.parse::<Size>().map_err(|why| wrong(SHM_SIZE, why))?),
        None => None,
    };
    let Some(text) = get(SHM) else {
        return Ok(size.map(Shm::Private));
    };
    let Some(name) = text.strip_prefix("channel:") else {
        let sentence = format!("{text:?}: it is channel:<name>");
        return Err(wrong(SHM, sentence).remedy(format!(
            "a private /dev/shm has only the annotation {SHM_SIZE}"
        )));
    };
    if size.is_some() {
        return Err(wrong(
            SHM_SIZE,
            format!("{SHM} makes the channel {name:?} /dev/shm, whose size is the channel's"),
        )
        .remedy(format!("set {}", size_annotation(name))));
    }
    let key = Key::new(namespace, name).map_err(|why| wrong(SHM, why))?;
    match channels.iter().find(|one| one.key == key) {
        Some(wanted) if wanted.readonly => {
            let sentence =
                format!("the channel {name:?} is joined read-only, and /dev/shm has to be written");
            return Err(wrong(SHM, sentence));
        }
        Some(_) => {}
        None => channels.push(Wanted {
            key,
            readonly: false,
            size: None,
        }),
    }
    Ok(Some(Shm::Channel(name.to_string())))
}
