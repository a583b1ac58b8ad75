//! What is sent over a socket comes out of it.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::upgrade::Progress;

fn handover(packing: &mut Packing, children: ChildrenPart) -> Handover {
    let mut null = || packing.add(File::open("/dev/null").unwrap()).unwrap();
    Handover {
        node: "proxy-1".to_owned(),
        kind: "proxy".to_owned(),
        data: "/data".into(),
        meta_address: "127.0.0.1:1".parse().unwrap(),
        instance: "i".to_owned(),
        started_at_ms: 1,
        uptime_ms: 2,
        was_ready: true,
        supervised: false,
        executable: "/bin/protoplex".into(),
        upgrade: UpgradeStatus {
            at_ms: 3,
            progress: Progress::UnderWay,
            from: "0.1.0".to_owned(),
            error: None,
        },
        returned: None,
        image: null(),
        stdin: null(),
        lock: null(),
        hold: null(),
        meta: null(),
        children,
    }
}

/// More than one message of the kernel's takes.
const SOCKETS: usize = 2 * DESCRIPTORS + 1;

#[test]
fn as_many_sockets_as_a_node_may_have_arrive_each_under_its_name() {
    let mut packing = Packing::default();
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let sockets: Vec<_> = (0..SOCKETS).map(|n| Socket::new(&n.to_string(), listener())).collect();
    let places = vec![PlacePart { own: packing.sockets(&sockets).unwrap(), process: None }];
    let sent = handover(&mut packing, ChildrenPart { places, ..ChildrenPart::default() });
    let (ours, theirs) = UnixStream::pair().unwrap();
    sent.send(&packing.into_descriptors(), &ours).unwrap();
    drop(ours);
    let (handover, descriptors) = Handover::receive(&theirs).unwrap();
    assert_eq!((handover.node.as_str(), handover.children.places.len()), ("proxy-1", 1));
    let mut descriptors = Descriptors(descriptors.into_iter().map(Some).collect());
    let received = descriptors.sockets(&handover.children.places[0].own).unwrap();
    for (socket, sent) in received.iter().zip(&sockets) {
        assert_eq!(socket.handed, sent.handed);
        assert_eq!(socket.listener.local_addr().unwrap(), sent.listener.local_addr().unwrap());
    }
    assert_eq!(received.len(), SOCKETS);
    assert!(Socket::new("next", listener()).handed.id > received[SOCKETS - 1].handed.id);
    assert!(descriptors.socket(&handover.children.places[0].own[0]).is_err(), "each is taken once");
    let null = File::from(descriptors.take(handover.lock).unwrap());
    assert_eq!(null.metadata().unwrap().rdev(), File::open("/dev/null").unwrap().metadata().unwrap().rdev());
}

#[test]
fn what_a_newer_program_says_beyond_is_ignored_and_half_of_it_is_refused() {
    let mut packing = Packing::default();
    let socket = Socket::new("http", TcpListener::bind("127.0.0.1:0").unwrap());
    let places = vec![PlacePart { own: packing.sockets(&[socket]).unwrap(), process: None }];
    let children = ChildrenPart { places, ..ChildrenPart::default() };
    let mut page = serde_json::to_value(handover(&mut packing, children)).unwrap();
    let place = &mut page["children"]["places"][0];
    place["more"] = "of it".into();
    place["own"][0]["handed"]["more"] = "of it".into();
    page["upgrade"]["more"] = "of it".into();
    page["more"] = "of it".into();
    serde_json::from_value::<Handover>(page.clone()).unwrap();
    page.as_object_mut().unwrap().remove("lock");
    serde_json::from_value::<Handover>(page).unwrap_err();
    for send in [&b""[..], b"rubbish"] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(send).unwrap();
        drop(ours);
        assert_eq!(Handover::receive(&theirs).unwrap_err().to_string(), "nothing was handed over");
    }
}
