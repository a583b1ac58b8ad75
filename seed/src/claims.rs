//! What nodes and members say of themselves, before anybody is told of it.

use std::net::{IpAddr, SocketAddr};

use protoplex_runtime::network::Networks;
use protoplex_wire::gate::{Origin, Peer};
use protoplex_wire::identity::Kind;
use protoplex_wire::pattern::check_name;
use protoplex_wire::proto::{JoinHello, Member, NodeState};
use tonic::Status;

/// Ids of nodes and members, addresses, zones.
pub(crate) const MAX_TEXT_BYTES: usize = 255;
/// Public addresses of one node.
const MAX_LISTENS: usize = 256;
/// Children of one node: 256, and those before them that still drain.
const MAX_CHILDREN: usize = 1_024;
/// Why a node isn't ready: what it cuts off at 300 characters.
const MAX_REASON_BYTES: usize = 4 * 300;
/// The name of a child's state.
const MAX_STATE_BYTES: usize = 16;

pub(crate) fn check_node(hello: &JoinHello) -> Result<(), Status> {
    check_name("node", &hello.node).map_err(invalid)?;
    check_name("kind", &hello.kind).map_err(invalid)?;
    check_instance(&hello.instance)?;
    if hello.listens.len() > MAX_LISTENS {
        return Err(invalid(format!("a node tells of {MAX_LISTENS} addresses at most")));
    }
    let texts = [&hello.version, &hello.region, &hello.zone, &hello.meta, &hello.reached];
    texts.into_iter().chain(&hello.listens).try_for_each(|text| check_text("a text of the hello", text))
}

pub(crate) fn check_state(state: &NodeState) -> Result<(), Status> {
    if state.children.len() > MAX_CHILDREN {
        return Err(invalid(format!("a node tells of {MAX_CHILDREN} children at most")));
    }
    if state.reason.len() > MAX_REASON_BYTES || state.reason.chars().any(char::is_control) {
        return Err(invalid(format!("why a node isn't ready is a line of at most {MAX_REASON_BYTES} bytes")));
    }
    let is_one =
        |state: &str| state.len() <= MAX_STATE_BYTES && state.bytes().all(|byte| byte.is_ascii_uppercase());
    if state.children.iter().any(|child| !is_one(&child.state)) {
        return Err(invalid("a child's state is a word, as in RUNNING"));
    }
    Ok(())
}

pub(crate) fn check_member(member: &Member) -> Result<(), Status> {
    check_name("pool", &member.pool).map_err(invalid)?;
    if member.id.is_empty() {
        return Err(invalid("a member has an id"));
    }
    if !member.address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        let detail = format!("address {:?}: write the IP and port at which proxies reach it", member.address);
        return Err(invalid(detail));
    }
    check_text("member id", &member.id)?;
    check_instance(&member.instance)?;
    check_text("zone", &member.zone)
}

/// Whether proxies may be sent to this member, who has come so. They send it what their clients say, and answer with what
/// it says: so it is no address behind which there is another service of the proxies' machines, or nobody's.
pub(crate) fn check_address(
    member: &Member,
    peer: &Peer,
    origin: Origin,
    allowed: &Networks,
) -> Result<(), Status> {
    let Ok(address) = member.address.parse::<SocketAddr>() else { return Ok(()) };
    let ip = address.ip().to_canonical();
    let why = if let Some(what) = nobody(ip) {
        what
    } else if ip.is_loopback() && peer.kind == Kind::Backend && !origin.is_here {
        "a loopback address, and it is not on the seed's machine"
    } else if !allowed.is_empty() && !allowed.contain(ip) {
        "in none of seed.member_networks"
    } else {
        return Ok(());
    };
    Err(invalid(format!(
        "address {:?} is {why}: write the IP and port at which proxies reach it",
        member.address
    )))
}

/// What an address is that no server has for others.
fn nobody(ip: IpAddr) -> Option<&'static str> {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match ip {
        ip if ip.is_unspecified() => Some("unspecified"),
        ip if ip.is_multicast() => Some("of a multicast group"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("for broadcasts"),
        // Those of clouds' metadata among them.
        _ if is_link_local => Some("link-local"),
        _ => None,
    }
}

fn check_instance(instance: &str) -> Result<(), Status> {
    if instance.is_empty() {
        return Err(invalid("nodes and members name their instance"));
    }
    check_text("instance", instance)
}

/// A text that is kept, told to others, and shown to people on their terminals.
pub(crate) fn check_text(what: &str, text: &str) -> Result<(), Status> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(invalid(format!("{what} is longer than {MAX_TEXT_BYTES} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(format!("{what} has control characters: {text:?}")));
    }
    Ok(())
}

pub(crate) fn invalid(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

#[cfg(test)]
mod tests {
    use protoplex_runtime::config::Problems;

    use super::*;

    #[test]
    fn row_an_address_that_is_no_members_own_is_refused() {
        let peer = |kind| Peer { cluster: "c".to_owned(), kind, node: "n".to_owned(), pools: Vec::new() };
        let (near, far) = (Origin { is_here: true }, Origin { is_here: false });
        let list = ["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()];
        let some = Networks::resolve(&list, "seed.member_networks", &mut Problems::default());
        let any = Networks::default();
        for (address, kind, origin, allowed, why) in [
            ("10.1.2.3:80", Kind::Backend, far, &any, None),
            ("169.254.169.254:80", Kind::Backend, far, &any, Some("is link-local")),
            ("169.254.169.254:80", Kind::Live, near, &any, Some("is link-local")),
            ("[::ffff:169.254.169.254]:80", Kind::Backend, far, &any, Some("is link-local")),
            ("[fe80::1]:80", Kind::Backend, far, &any, Some("is link-local")),
            ("0.0.0.0:80", Kind::Live, near, &any, Some("is unspecified")),
            ("[::]:80", Kind::Operator, near, &any, Some("is unspecified")),
            ("224.0.0.1:80", Kind::Backend, far, &any, Some("multicast")),
            ("[ff02::1]:80", Kind::Backend, far, &any, Some("multicast")),
            ("255.255.255.255:80", Kind::Backend, far, &any, Some("broadcasts")),
            ("127.0.0.1:80", Kind::Backend, near, &any, None),
            ("127.0.0.1:80", Kind::Backend, far, &any, Some("a loopback address")),
            ("[::ffff:127.0.0.1]:80", Kind::Backend, far, &any, Some("a loopback address")),
            ("[::1]:80", Kind::Backend, far, &any, Some("a loopback address")),
            ("127.0.0.1:80", Kind::Live, far, &any, None),
            ("10.1.2.3:80", Kind::Backend, far, &some, None),
            ("[fd00::1]:80", Kind::Live, far, &some, None),
            ("192.0.2.1:80", Kind::Backend, far, &some, Some("in none of seed.member_networks")),
            ("127.0.0.1:80", Kind::Operator, near, &some, Some("in none of seed.member_networks")),
        ] {
            let member = Member { address: address.to_owned(), ..Member::default() };
            let refused = check_address(&member, &peer(kind), origin, allowed).err();
            let told = refused.as_ref().map(Status::message);
            assert_eq!(told.is_some(), why.is_some(), "{address}: {told:?}");
            assert!(told.unwrap_or_default().contains(why.unwrap_or_default()), "{address}: {told:?}");
        }
    }

    #[test]
    fn what_a_node_tells_of_itself_is_short_and_of_one_line() {
        let with = |reason: String| NodeState { reason, ..NodeState::default() };
        check_state(&with("the database is away: connection refused".into())).unwrap();
        for reason in ["x".repeat(MAX_REASON_BYTES + 1), "a\u{1b}[31mb".into(), "a\nb".into()] {
            check_state(&with(reason)).unwrap_err();
        }
    }
}
