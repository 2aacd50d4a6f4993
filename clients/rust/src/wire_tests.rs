use super::*;

pub(crate) fn samples() -> Vec<Message> {
    let layout = Layout::contiguous(Dtype::F32, &[2, 3]).unwrap();
    let content = Content {
        tensor: Some(Described {
            layout,
            sharing: Sharing::Shared,
            size: 4096,
            memory: 3,
        }),
        lost: 7,
        tag: 0x1122_3344_5566_7788,
        name: "schicht.0".into(),
        meta: b"{\"step\":3}".to_vec(),
    };
    let mut asked = Content {
        lost: 0,
        ..content.clone()
    };
    asked.tensor.as_mut().unwrap().memory = 0;
    let gpu = Content {
        tag: 8,
        lost: 7,
        ..asked.clone()
    };
    let bare = Content {
        tensor: None,
        lost: 0,
        tag: 1,
        name: String::new(),
        meta: Vec::new(),
    };
    let hello = Hello {
        lowest: 1,
        highest: 3,
        roles: 3,
        features: 1 << 40,
        credits: 0,
        queue: DEFAULT_QUEUE,
        policy: Policy::DropNewest,
    };
    let welcome = Welcome {
        version: 1,
        roles: 1,
        features: 0,
        credits: 4,
        queue: 0,
        policy: Policy::DropOldest,
    };
    let failure = Failure {
        code: code::BUSY,
        text: "später".into(),
        closes: true,
    };
    let devices = Devices {
        pid: 8193,
        transports: 0b1_1110,
        driver: 12080,
        events: true,
        probe: [9; 64],
        list: vec![crate::device::DeviceEntry {
            uuid: [7; 16],
            mig: true,
        }],
    };
    let block = DeviceBlock {
        transport: Transport::Legacy,
        has_event: true,
        pid: 16_385,
        uuid: [7; 16],
        allocation: 3,
        handle: [5; 64],
        event: [6; 64],
    };
    [
        (0, Body::Hello(hello)),
        (1, Body::Welcome(welcome)),
        (0, Body::Tensor(content.clone())),
        (0, Body::Tensor(bare.clone())),
        (0, Body::Request(asked)),
        (5, Body::Reply(bare)),
        (0, Body::Release(vec![1, 2, u64::MAX])),
        (9, Body::Error(failure)),
        (0, Body::Ping),
        (3, Body::Pong),
        (0, Body::Lane),
        (0, Body::Wake),
        (0, Body::Devices(devices)),
        (0, Body::Gpu(gpu, Box::new(block))),
    ]
    .into_iter()
    .zip(1..)
    .map(|((refers, body), sequence)| Message {
        sequence,
        refers,
        body,
    })
    .collect()
}

#[test]
fn what_is_encoded_is_decoded() {
    for message in samples() {
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message));
    }
}

#[test]
fn fields_are_where_the_document_says() {
    let bytes = samples()[2].encode();
    assert_eq!(bytes[..4], *b"ISCH");
    assert_eq!(bytes[4..8], [1, 0, 3, 0]);
    assert_eq!(bytes[8..12], (bytes.len() as u32).to_le_bytes());
    assert_eq!(bytes[16], 3);
    assert_eq!(bytes[32..40], [12, 0, 2, 0, 1, 0, 9, 0]);
    assert_eq!(bytes[40..44], [10, 0, 3, 0]);
    assert_eq!(bytes[56..64], 4096_u64.to_le_bytes());
    assert_eq!(bytes[LOST_AT], 7);
    assert_eq!(bytes[72], 0x88);
    assert_eq!([bytes[80], bytes[88], bytes[96], bytes[104]], [2, 3, 3, 1]);
    assert_eq!(bytes[112..121], *b"schicht.0");
    assert_eq!(bytes.len(), 80 + 16 * 2 + 9 + 10);
    assert_eq!(samples()[0].encode().len(), 64);
    assert_eq!(samples()[1].encode().len(), 64);
}

#[test]
fn every_shorter_and_every_longer_message_is_refused() {
    for message in samples() {
        let bytes = message.encode();
        for end in 0..bytes.len() {
            let mut cut = bytes[..end].to_vec();
            assert!(Message::decode(&cut).is_err(), "{message:?} cut at {end}");
            // Also when the length agrees.
            if end >= HEADER {
                cut[8..12].copy_from_slice(&(end as u32).to_le_bytes());
                let whole_releases =
                    matches!(message.body, Body::Release(_)) && end > HEADER && end % 8 == 0;
                assert_eq!(
                    Message::decode(&cut).is_ok(),
                    whole_releases,
                    "{message:?} shortened to {end}"
                );
            }
        }
        let mut more = bytes.clone();
        more.push(0);
        assert!(Message::decode(&more).is_err());
        more[8..12].copy_from_slice(&(bytes.len() as u32 + 1).to_le_bytes());
        assert!(Message::decode(&more).is_err(), "{message:?} and a byte");
    }
}

#[test]
fn each_rule_has_its_refusal() {
    // Which sample, at which byte, what is written there, and what the refusal says.
    let cases: &[(usize, usize, &[u8], &str)] = &[
        (2, 0, b"X", "magic"),
        (2, 4, &[2], "version 2"),
        (2, 6, &[12], "kind 12"),
        (2, 6, &[0], "kind 0"),
        (2, 12, &[1], "flags"),
        (7, 12, &[2], "flags"),
        (2, 16, &[0], "sequence 0"),
        (2, 24, &[1], "refers"),
        (1, 24, &[0], "refers"),
        (5, 24, &[0], "refers"),
        (0, 32, &[0, 0], "versions"),
        (0, 34, &[0, 0], "versions"),
        (0, 36, &[0], "roles"),
        (0, 36, &[4], "roles"),
        (0, 48, &[1, 1], "credits"),
        (0, 52, &[1, 1, 0, 0], "queue"),
        (0, 56, &[2], "policy"),
        (0, 60, &[1], "reserved"),
        (1, 34, &[1], "reserved"),
        (1, 48, &[0], "credits"),
        (1, 52, &[1, 1], "queue"),
        (2, 32, &[22], "dtype 22"),
        (2, 32, &[0], "without a tensor"),
        (2, 34, &[33], "dimensions"),
        (2, 35, &[2], "byte order"),
        (2, 36, &[2], "sharing"),
        (2, 37, &[1], "device"),
        (2, 39, &[1], "reserved"),
        (2, 40, &[1, 8], "meta"),
        (2, 42, &[1, 1], "memory 257"),
        (2, 36, &[0], "memory 3"),
        (4, 42, &[1], "number of memory"),
        (2, 47, &[1], "reserved"),
        (2, 48, &[1], "offset"),
        (2, 56, &[0, 0], "size 0"),
        (2, 63, &[0x80], "size"),
        (2, 56, &[23, 0], "reach"),
        (2, 87, &[0x80], "shape"),
        (2, 86, &[1], "2^47"),
        (2, 96, &[0xff; 8], "reach"),
        (2, 112, b"\n", "control"),
        (2, 112, &[0xff], "UTF-8"),
        (4, 64, &[1], "lost"),
        (3, 34, &[0, 1], "without a tensor"),
        (3, 48, &[4], "without a tensor"),
        (7, 32, &[8], "code"),
        (7, 32, &[0], "code"),
        (7, 34, &[0, 5], "text"),
        (12, 36, &[1], "transports"),
        (12, 44, &[65], "at most 64"),
        (12, 46, &[2], "events"),
        (12, 128, &[2], "flags"),
        (12, 132, &[1], "reserved"),
        (13, 131, &[2], "block of version 2"),
        (13, 132, &[5], "transport 5"),
        (13, 132, &[1], "a handle"),
        (13, 133, &[0], "an event"),
        (13, 134, &[1], "reserved"),
        (13, 36, &[0], "Immutable memory"),
        (13, 37, &[1], "device"),
    ];
    for &(sample, at, bytes, says) in cases {
        let mut message = samples()[sample].encode();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        let refusal = Message::decode(&message).expect_err(says);
        assert!(
            refusal.contains(says),
            "sample {sample} with {bytes:?} at {at}: {refusal}"
        );
    }
    let none = Message {
        sequence: 1,
        refers: 0,
        body: Body::Release(Vec::new()),
    };
    assert!(Message::decode(&none.encode()).is_err());
    let many = Message {
        body: Body::Release(vec![1; MAX_RELEASES + 1]),
        ..none
    };
    assert!(Message::decode(&many.encode()).is_err());
}

#[test]
fn the_longest_message_fits() {
    let layout = Layout::contiguous(Dtype::U8, &[1; MAX_DIMENSIONS]).unwrap();
    let message = Message {
        sequence: 1,
        refers: 0,
        body: Body::Tensor(Content {
            tensor: Some(Described {
                layout,
                sharing: Sharing::Immutable,
                size: 1,
                memory: 0,
            }),
            lost: 0,
            tag: 0,
            name: "n".repeat(255),
            meta: vec![0; MAX_META],
        }),
    };
    let bytes = message.encode();
    assert_eq!(bytes.len(), 2895);
    assert_eq!(Message::decode(&bytes), Ok(message));
}

#[test]
fn an_errors_text_is_cut_and_cannot_write_to_a_terminal() {
    let message = Message {
        sequence: 1,
        refers: 0,
        body: Body::Error(Failure {
            code: code::APPLICATION,
            text: format!("\x1b[2J{}", "ü".repeat(MAX_TEXT)),
            closes: false,
        }),
    };
    let decoded = Message::decode(&message.encode()).unwrap();
    let Body::Error(failure) = decoded.body else {
        panic!("no error")
    };
    assert!(failure.text.starts_with("\u{fffd}[2Jü"));
}
