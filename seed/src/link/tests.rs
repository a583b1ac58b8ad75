//! What a member may report.

use protoplex_wire::identity::Kind;
use tonic::Code;

use super::*;

fn report(keys: usize, last: bool) -> Result<FollowRequest, Status> {
    let keys = (0..keys).map(|number| OwnedKey { key: format!("{number:032}"), epoch: 1 }).collect();
    Ok(FollowRequest { message: Some(follow_request::Message::Owned(Owned { keys, last })) })
}

#[tokio::test]
async fn a_name_that_reports_much_on_many_links_is_refused_and_others_are_not() {
    let of_one = 100 * (size_of::<OwnedKey>() + 32);
    let bytes = Places::new("bytes of reports", 2 * of_one, of_one);
    let greeted = async |name: &str, reports: &[(usize, bool)]| {
        let member = Member {
            id: name.to_owned(),
            pool: "rooms".to_owned(),
            address: "10.0.0.1:80".to_owned(),
            instance: "i".to_owned(),
            ..Member::default()
        };
        let (node, kind) = (name.to_owned(), "backend".to_owned());
        let hello = FollowHello { node, kind, member: Some(member), ..FollowHello::default() };
        let hello = Ok(FollowRequest { message: Some(follow_request::Message::Hello(hello)) });
        let reports = reports.iter().map(|(keys, last)| report(*keys, *last));
        let mut requests = tokio_stream::iter(std::iter::once(hello).chain(reports));
        let pools = vec!["rooms".to_owned()];
        let peer = Peer { cluster: "c".to_owned(), kind: Kind::Backend, node: name.to_owned(), pools };
        let mut place = bytes.none(name);
        let greeted = greet(&peer, &|_| Ok(()), &mut place, &mut requests).await;
        // What it has reported is in memory until the core has it.
        greeted.map(|(_, keys)| (place, keys.len()))
    };
    let (first, keys) = greeted("a", &[(60, false), (20, true)]).await.unwrap();
    assert_eq!(keys, 80);
    let refused = greeted("a", &[(20, false), (1, false)]).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let why = format!("a has {of_one} bytes of reports here, as many as it may have");
    assert_eq!(refused.message(), why);
    assert!(greeted("b", &[(100, true)]).await.is_ok());
    drop(first);
    assert!(greeted("a", &[(100, true)]).await.is_ok());
}
