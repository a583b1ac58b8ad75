//! Identities on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::files::SECRET_BYTES;
use super::*;
use crate::enrolment::{EnrolError, Newcomer};
use crate::join_token::JoinToken;
use crate::seeds::Seeds;

struct Folder {
    data: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { data: tempfile::tempdir().unwrap() }
    }

    fn cluster(&self) -> PathBuf {
        self.data.path().join("cluster")
    }
}

#[test]
fn is_made_once_private_and_read_back() {
    let data = Folder::new();
    let made = Identity::open_or_create(&data.cluster()).unwrap();
    let read = Identity::open_or_create(&data.cluster()).unwrap();
    assert_eq!(made.fingerprint(), read.fingerprint());
    assert_eq!(made.live_key(), read.live_key());
    assert_eq!(made.live_key().len(), SECRET_BYTES);
    assert!(made.knows_live_key());
    assert_eq!(made.node_key(), read.node_key());
    assert_eq!(made.node_key(), node_key(&data.cluster()).unwrap());
    assert_ne!(made.node_key(), made.live_key());
    for entry in fs::read_dir(data.cluster()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "readable by others");
    }
    assert!(matches!(Identity::create(&data.cluster()), Err(IdentityError::Exists(_))));
}

#[test]
fn who_comes_second_takes_what_the_first_has_made() {
    let data = Folder::new();
    let first = Identity::open_or_create(&data.cluster()).unwrap();
    // As if the folder had not been there when it was looked for.
    assert!(!authority::create(&data.cluster()).unwrap());
    assert_eq!(Identity::open(&data.cluster()).unwrap().fingerprint(), first.fingerprint());
    assert_eq!(fs::read_dir(data.data.path()).unwrap().count(), 1, "nothing is left of the second");
}

#[test]
fn what_a_join_that_failed_has_left_is_no_cluster() {
    let data = Folder::new();
    let left = node_folder(&data.cluster(), "proxy-2");
    own_key(&left).unwrap();
    // Of a join that was cut off while it wrote.
    fs::write(data.cluster().join(SECRET), "another cluster's").unwrap();
    assert!(matches!(
        Identity::of_node(&data.cluster(), Kind::Seed, "seed-1"),
        Err(IdentityError::Absent(_))
    ));
    // `up` starts several at once.
    let made: Vec<_> = std::thread::scope(|scope| {
        let make = || scope.spawn(|| *Identity::open_or_create(&data.cluster()).unwrap().fingerprint());
        let all: Vec<_> = std::iter::repeat_with(make).take(8).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let now = Identity::open(&data.cluster()).unwrap();
    assert!(made.iter().all(|fingerprint| fingerprint == now.fingerprint()));
    assert_ne!(now.node_key(), derived("another cluster's"));
    assert!(now.issue(Kind::Proxy, "proxy-2").is_ok() && left.join(KEY).exists());
    assert!(matches!(Identity::create(&data.cluster()), Err(IdentityError::Exists(_))));
}

#[test]
fn absent_says_what_to_do() {
    let error = Identity::open(&Folder::new().cluster()).err().unwrap().to_string();
    assert!(error.contains("start the cluster there first"), "{error}");
    assert!(error.contains("--join TOKEN"), "{error}");
}

#[test]
fn a_folder_of_an_earlier_version_goes_on_with_its_keys() {
    let data = Folder::new();
    let made = Identity::open_or_create(&data.cluster()).unwrap();
    let secret = fs::read_to_string(data.cluster().join(SECRET)).unwrap();
    // Then all nodes had one token and one certificate, from which nodes made the same key.
    fs::rename(data.cluster().join(SECRET), data.cluster().join(OLD_TOKEN)).unwrap();
    let read = Identity::of_node(&data.cluster(), Kind::Live, "live-1").unwrap();
    assert_eq!(read.node_key(), made.node_key());
    assert_eq!(fs::read_to_string(data.cluster().join(SECRET)).unwrap(), secret);
    assert!(data.cluster().join(OLD_TOKEN).exists(), "the earlier version may come back");
}

#[test]
fn certificates_say_who_it_is() {
    let data = Folder::new();
    let operator = Identity::open_or_create(&data.cluster()).unwrap();
    let of = operator.certificate();
    assert_eq!((of.peer.kind, of.peer.node.as_str()), (Kind::Operator, LOCAL_OPERATOR));
    assert_eq!(of.peer.cluster, operator.cluster());
    let node = Identity::of_node(&data.cluster(), Kind::Proxy, "proxy-1").unwrap().certificate();
    assert_eq!((node.peer.kind, node.peer.node.as_str()), (Kind::Proxy, "proxy-1"));
    assert!(is_public_key(&node.public_key));
    let left = node.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_hours(23) && left <= Duration::from_hours(24), "{left:?}");
    let due = credential::renewal(&node, 0.0, SystemTime::now()).duration_since(SystemTime::now()).unwrap();
    assert!(due > Duration::from_hours(15) && due < Duration::from_hours(17), "{due:?}");
    let now = SystemTime::now();
    assert!(credential::renewal(&node, 1.0, now) < credential::renewal(&node, 0.0, now));
}

#[test]
fn a_clock_that_was_ahead_and_is_put_right_leaves_nothing_that_does_not_count_yet() {
    let data = Folder::new();
    Identity::open_or_create(&data.cluster()).unwrap();
    let shared = Shared::read(&data.cluster()).unwrap();
    let (authority, peer) = (shared.authority.clone().unwrap(), shared.peer(Kind::Seed, "seed-1"));
    let source = Source::Authority { authority, peer, key: Box::new(KeyPair::generate().unwrap()) };
    let ahead = SystemTime::now() + Duration::from_hours(2);
    let seed = Credential::load_at(source, ahead).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while seed.certificate().not_before > SystemTime::now() {
        assert!(Instant::now() < deadline, "it is shown although it does not count yet");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(seed.not_yet().is_none() && seed.expired().is_none());

    // Others have theirs replaced at once.
    let certificate = seed.certificate();
    let early = certificate.not_before - Duration::from_secs(1);
    assert_eq!(credential::renewal(&certificate, 0.0, early), early);
    // Python, for one, looks at the authority's, too.
    let ca = authority_der(&shared.ca).unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let years = (i64::try_from(now).unwrap() - ca.validity().not_before.timestamp()) / (365 * 24 * 3600);
    assert!((1..20).contains(&years), "{years}");
}

/// What a seed issues to somebody else.
fn issue(identity: &Identity, kind: Kind, node: &str, folder: &Path, life: Duration) -> Credentials {
    let (_, point) = own_key(folder).unwrap();
    let peer = Peer { cluster: identity.cluster(), kind, node: node.to_owned(), pools: Vec::new() };
    identity.sign(&peer, &point, Some(life)).unwrap().unwrap()
}

#[test]
fn who_joins_gets_what_its_kind_needs_and_no_more() {
    let data = Folder::new();
    let identity = Identity::open_or_create(&data.cluster()).unwrap();
    for (kind, secret, live_key, authority) in [
        (Kind::Seed, true, true, true),
        (Kind::Fileserver, true, true, false),
        (Kind::Live, true, true, false),
        (Kind::Proxy, true, false, false),
        (Kind::Datastore, false, false, false),
        (Kind::Operator, false, true, false),
        (Kind::Backend, false, false, false),
    ] {
        let issued = issue(&identity, kind, "n", &data.data.path().join(kind.name()), Duration::from_secs(9));
        let has = [&issued.secret, &issued.live_key, &issued.authority_key].map(|text| !text.is_empty());
        assert_eq!(has, [secret, live_key, authority], "{kind}");
    }
}

#[test]
fn what_was_made_short_for_a_person_stays_short() {
    let data = Folder::new();
    let identity = Identity::open_or_create(&data.cluster()).unwrap().issuing_for(Duration::from_secs(300));
    for (kind, life, next) in [
        (Kind::Operator, Duration::from_secs(60), Duration::from_secs(60)),
        (Kind::Operator, OPERATOR_LIFE * 12, OPERATOR_LIFE),
        (Kind::Backend, Duration::from_secs(60), Duration::from_secs(300)),
    ] {
        let folder = data.data.path().join("n");
        let issued = issue(&identity, kind, "n", &folder, life);
        let shown = Certificate::parse(&authority_der(&issued.certificate).unwrap()).unwrap();
        assert_eq!(shown.life(), life);
        let renewed = identity.sign_next(&shown).unwrap().unwrap();
        let renewed = Certificate::parse(&authority_der(&renewed.certificate).unwrap()).unwrap();
        assert_eq!((renewed.life(), renewed.peer), (next, shown.peer), "{kind}, {life:?}");
    }
}

#[test]
fn nobody_else_is_the_local_operator() {
    let data = Folder::new();
    let identity = Identity::open_or_create(&data.cluster()).unwrap();
    let local = identity.certificate();
    assert!(matches!(identity.sign_next(&local), Some(Err(IdentityError::Local))));
    let folder = data.data.path().join("local-credentials");
    let refused = make_credentials(&identity, &folder, &local.peer, OPERATOR_LIFE).unwrap_err();
    assert!(refused.to_string().contains("choose another name"), "{refused}");
    assert!(!folder.exists());
    // A node may be called so.
    let node = Peer { kind: Kind::Proxy, ..local.peer };
    assert!(identity.sign(&node, &local.public_key, None).unwrap().is_ok());
}

#[test]
fn a_machine_that_has_joined_is_its_nodes_alone() {
    let first = Folder::new();
    let identity = Identity::open_or_create(&first.cluster()).unwrap();
    let second = Folder::new();
    let cluster = second.cluster();
    let own = node_folder(&cluster, "live-1");
    let absent = Identity::of_node(&cluster, Kind::Live, "live-1").err().unwrap();
    assert!(matches!(absent, IdentityError::Absent(_)));
    let issued = issue(&identity, Kind::Live, "live-1", &own, Duration::from_secs(60));
    keep(&cluster, &own, &issued).unwrap();
    let live = Identity::of_node(&cluster, Kind::Live, "live-1").unwrap();
    assert_eq!((live.node_key(), live.live_key()), (identity.node_key(), identity.live_key()));
    assert!(live.expired().is_none() && !live.has_authority());
    assert!(live.issue(Kind::Seed, "seed-9").is_err());

    let error = |result: Result<Identity, IdentityError>| result.err().unwrap().to_string();
    let other = error(Identity::of_node(&cluster, Kind::Live, "live-2"));
    assert!(other.starts_with("live-2 has no certificate in ") && other.contains("--join TOKEN"), "{other}");
    let wrong = error(Identity::of_node(&cluster, Kind::Proxy, "live-1"));
    assert!(wrong.contains("holds the certificate of live-1, a live node"), "{wrong}");
    let operator = error(Identity::open(&cluster));
    assert!(operator.contains("--credentials DIR"), "{operator}");

    // Another cluster's authority beside it.
    let third = Folder::new();
    Identity::open_or_create(&third.cluster()).unwrap();
    fs::copy(third.cluster().join(CA), cluster.join(CA)).unwrap();
    let foreign = error(Identity::of_node(&cluster, Kind::Live, "live-1"));
    assert!(foreign.contains("is not the authority of the certificate of live-1"), "{foreign}");
}

#[tokio::test]
async fn what_is_of_one_cluster_is_never_mixed_with_another() {
    let (first, second, joined) = (Folder::new(), Folder::new(), Folder::new());
    let [one, other] = [&first, &second].map(|data| Identity::open_or_create(&data.cluster()).unwrap());
    let (cluster, own) = (joined.cluster(), node_folder(&joined.cluster(), "proxy-1"));
    let issued = issue(&one, Kind::Proxy, "proxy-1", &own, Duration::from_secs(60));
    keep(&cluster, &own, &issued).unwrap();
    let all = || {
        let files = [first.cluster(), cluster.clone()].map(|folder| {
            let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
            let mut files: Vec<_> = files.filter(|file| file.is_file()).collect();
            files.sort();
            files.into_iter().map(|file| (fs::read(&file).unwrap(), file)).collect::<Vec<_>>()
        });
        files.concat()
    };
    let before = all();

    let foreign = issue(&other, Kind::Proxy, "proxy-1", &own, Duration::from_secs(60));
    let refused = keep(&cluster, &own, &foreign).unwrap_err();
    assert!(matches!(refused, IdentityError::OtherCluster(_)), "{refused}");
    check_cluster(&cluster, one.fingerprint()).unwrap();
    let peer = Peer { node: "ada".to_owned(), ..one.certificate().peer };
    let refused = make_credentials(&other, &cluster, &peer, OPERATOR_LIFE).unwrap_err();
    assert!(matches!(refused, IdentityError::OtherCluster(_)), "{refused}");
    let refused = make_credentials(&one, &first.cluster(), &peer, OPERATOR_LIFE).unwrap_err();
    assert!(matches!(refused, IdentityError::Authority(_)), "{refused}");

    // A token is not even shown: there is no seed that could take it.
    let nowhere = Seeds::only(vec!["127.0.0.1:9".to_owned()]);
    let own = node_folder(&cluster, "proxy-2");
    for (shared, own, authority, told) in [
        (&cluster, &own, other.fingerprint(), "is of another cluster: nothing was changed"),
        (&first.cluster(), &first.cluster(), one.fingerprint(), "a folder of their own"),
        (&first.cluster(), &first.cluster(), other.fingerprint(), "is of another cluster"),
    ] {
        let newcomer = Newcomer { kind: Kind::Backend, node: "proxy-2", shared, own };
        let refused = newcomer.enrol(&JoinToken::draw(authority), &nowhere).await.unwrap_err();
        assert!(matches!(refused, EnrolError::Identity(_)), "{refused}");
        assert!(refused.to_string().contains(told), "{refused}");
    }
    assert!(!own.exists());
    assert!(all() == before, "something was changed");
}

#[test]
fn the_next_certificate_is_shown_as_soon_as_it_is_there_and_an_expired_one_says_so() {
    let data = Folder::new();
    let identity = Identity::open_or_create(&data.cluster()).unwrap();
    let folder = data.data.path().join("credentials");
    let issued = issue(&identity, Kind::Backend, "rooms-1", &folder, Duration::ZERO);
    keep(&folder, &folder, &issued).unwrap();
    let backend = Identity::credentials(&folder).unwrap();
    let error = backend.expired().unwrap().to_string();
    assert!(error.starts_with("the certificate of rooms-1 has expired "), "{error}");
    assert!(error.contains("enrol anew"), "{error}");
    let next = issue(&identity, Kind::Backend, "rooms-1", &folder, Duration::from_secs(60));
    keep(&folder, &folder, &next).unwrap();
    backend.refresh().unwrap();
    assert!(backend.expired().is_none());
    assert_eq!(backend.pem().0, next.certificate);
}
