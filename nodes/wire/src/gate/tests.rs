//! Whom a gate lets do what, over real TLS.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::{Code, Request, Response, Status};
use tower_service::Service;

use super::room::ROOM;
use super::*;
use crate::identity::{Dial, Kind, SERVER_NAME, TrustedChannel, channel};
use crate::proto::enrolment_server::{Enrolment, EnrolmentServer};
use crate::proto::understudy_client::UnderstudyClient;
use crate::proto::understudy_server::{Understudy, UnderstudyServer};
use crate::proto::{Credentials, EnrolRequest, LeaderReply, LeaderRequest, RenewRequest, TakeOverRequest};

const DEADLINE: Duration = Duration::from_secs(10);

struct Stage {
    identity: Identity,
    address: String,
    gate: Gate,
    _data: tempfile::TempDir,
}

/// Answers who has asked.
struct Mirror;

#[tonic::async_trait]
impl Understudy for Mirror {
    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderReply>, Status> {
        let peer = request.extensions().get::<Peer>().unwrap();
        Ok(Response::new(LeaderReply { address: peer.name(), ..LeaderReply::default() }))
    }

    async fn take_over(&self, _: Request<TakeOverRequest>) -> Result<Response<LeaderReply>, Status> {
        // Never answered.
        std::future::pending().await
    }
}

#[tonic::async_trait]
impl Enrolment for Mirror {
    async fn enrol(&self, _: Request<EnrolRequest>) -> Result<Response<Credentials>, Status> {
        Ok(Response::new(Credentials::default()))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<Credentials>, Status> {
        Ok(Response::new(Credentials::default()))
    }
}

/// A message of 100 bytes of which only what stands before them comes.
struct Unfinished(Option<Bytes>);

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        self.0.take().map_or(Poll::Pending, |head| Poll::Ready(Some(Ok(http_body::Frame::data(head)))))
    }
}

/// Calls this path with such a message, and tells how it is answered.
async fn unfinished(mut channel: TrustedChannel, path: &str) -> Option<Status> {
    poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let head = Unfinished(Some(Bytes::from_static(&[0, 0, 0, 0, 100])));
    let request = http::Request::post(path).header("content-type", "application/grpc");
    let answer = channel.call(request.body(Body::new(head)).unwrap()).await.unwrap();
    Status::from_header_map(answer.headers())
}

impl Stage {
    async fn new() -> Self {
        Self::with(ROOM).await
    }

    async fn with(room: Room) -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let gate = Gate::with(&identity.issue(Kind::Seed, "seed-1").unwrap(), room).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = gate.server().add_service(UnderstudyServer::new(Mirror));
        let server = server.add_service(EnrolmentServer::new(Mirror));
        tokio::spawn(server.serve_with_incoming(gate.incoming(listener)));
        Self { identity, address, gate, _data: data }
    }

    /// How one comes that shows no certificate.
    fn nobody(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.identity.ca_pem().as_bytes()).unwrap()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A connection that shows no certificate.
    async fn stranger(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        TlsConnector::from(Arc::new(self.nobody())).connect(name, stream).await.unwrap()
    }

    fn of(&self, identity: &Identity) -> UnderstudyClient<TrustedChannel> {
        UnderstudyClient::new(identity.channel(&self.address).unwrap())
    }

    fn client(&self, kind: Kind, node: &str) -> UnderstudyClient<TrustedChannel> {
        self.of(&self.identity.issue(kind, node).unwrap())
    }
}

#[tokio::test]
async fn a_call_is_its_callers_and_only_what_its_kind_may() {
    let stage = Stage::new().await;
    for (kind, name) in [(Kind::Proxy, "n"), (Kind::Operator, "operator/n"), (Kind::Backend, "n")] {
        let reply = stage.client(kind, "n").leader(LeaderRequest {}).await.unwrap();
        assert_eq!(reply.into_inner().address, name);
        let refused = stage.client(kind, "n").take_over(TakeOverRequest { term: 1 }).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let why = format!("{name} is {}, and such may not call Understudy.TakeOver", kind.one());
        assert_eq!(refused.message(), why);
    }
}

#[tokio::test]
async fn whoever_is_revoked_is_cut_at_once() {
    let stage = Stage::new().await;
    let mut seed = stage.client(Kind::Seed, "seed-2");
    seed.leader(LeaderRequest {}).await.unwrap();
    let hanging = tokio::spawn({
        let mut seed = seed.clone();
        async move { seed.take_over(TakeOverRequest { term: 1 }).await }
    });
    let mut other = stage.client(Kind::Proxy, "proxy-1");
    other.leader(LeaderRequest {}).await.unwrap();
    stage.gate.revoke(["seed-2".to_owned()].into());
    assert!(timeout(DEADLINE, hanging).await.unwrap().unwrap().is_err(), "what was under way is over");
    let refused = seed.leader(LeaderRequest {}).await;
    let refused = match refused {
        // The cut may be heard only now.
        Err(status) if status.code() != Code::PermissionDenied => seed.leader(LeaderRequest {}).await,
        refused => refused,
    };
    let refused = refused.unwrap_err();
    assert_eq!(refused.message(), "seed-2 is revoked; an operator may readmit it");
    other.leader(LeaderRequest {}).await.unwrap();
    stage.gate.revoke(BTreeSet::new());
    seed.leader(LeaderRequest {}).await.unwrap();
}

#[tokio::test]
async fn another_cluster_is_trusted_in_neither_direction() {
    let (ours, theirs) = (Stage::new().await, Stage::new().await);
    let proxy = theirs.identity.issue(Kind::Proxy, "proxy-1").unwrap();
    // It does not trust our seed.
    let error = ours.of(&proxy).leader(LeaderRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert!(error.message().contains("certificate"), "{error:?}");
    // Our seed does not trust it, even if it doesn't look whom it speaks to.
    let data = tempfile::tempdir().unwrap();
    let own = data.path().join("own");
    let (_, point) = crate::identity::own_key(&own).unwrap();
    let signed = theirs.identity.sign(&proxy.certificate().peer, &point, None).unwrap().unwrap();
    let mixed = Credentials { authority: ours.identity.ca_pem().to_owned(), ..signed };
    crate::identity::keep(&own, &own, &mixed).unwrap();
    let refused = Identity::credentials(&own).err().unwrap().to_string();
    assert!(refused.contains("is not the authority of the certificate of proxy-1"), "{refused}");
    ours.client(Kind::Proxy, "proxy-1").leader(LeaderRequest {}).await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_not_shown() {
    let stage = Stage::new().await;
    let data = tempfile::tempdir().unwrap();
    let peer = stage.identity.issue(Kind::Backend, "rooms-1").unwrap().certificate().peer;
    crate::identity::make_credentials(&stage.identity, data.path(), &peer, Duration::ZERO).unwrap();
    let late = Identity::credentials(data.path()).unwrap();
    let error = stage.of(&late).leader(LeaderRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().starts_with("the certificate of rooms-1 has expired"), "{error:?}");
}

#[tokio::test]
async fn who_is_no_seed_can_not_be_taken_for_one() {
    let stage = Stage::new().await;
    let proxy = stage.identity.issue(Kind::Proxy, "proxy-1").unwrap();
    let gate = Gate::new(&proxy).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::builder().add_service(UnderstudyServer::new(Mirror));
    tokio::spawn(server.serve_with_incoming(gate.incoming(listener)));
    let mut client = UnderstudyClient::new(stage.identity.channel(&address).unwrap());
    let error = client.leader(LeaderRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
}

#[tokio::test]
async fn silence_and_plain_text_keep_nobody_out() {
    let stage = Stage::with(Room { handshakes: 8, ..ROOM }).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(&stage.address).await.unwrap());
    }
    let mut plain = TcpStream::connect(&stage.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    stage.client(Kind::Proxy, "proxy-1").leader(LeaderRequest {}).await.unwrap();
    let mut said = Vec::new();
    // A TLS alert at most, then the end.
    let _ = timeout(DEADLINE, plain.read_to_end(&mut said)).await.unwrap();
    assert!(said.len() <= 7, "{said:?}");
}

#[tokio::test]
async fn who_shows_no_certificate_makes_room_for_the_next_and_goes_soon() {
    let stage = Stage::with(Room { strangers: 3, stranger_timeout: Duration::from_secs(3), ..ROOM }).await;
    let mut member = stage.client(Kind::Proxy, "proxy-1");
    member.leader(LeaderRequest {}).await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..4 {
        strangers.push(stage.stranger().await);
    }
    let begun = std::time::Instant::now();
    for (number, stranger) in strangers.iter_mut().enumerate() {
        // The server's settings, and then the end.
        let _ = timeout(DEADLINE, stranger.read_to_end(&mut Vec::new())).await.expect("it is ended");
        assert_eq!(begun.elapsed() > Duration::from_secs(2), number > 0, "{number}: {:?}", begun.elapsed());
    }
    member.leader(LeaderRequest {}).await.unwrap();
}

/// Connects from this address of the machine's own.
async fn connect_from(from: [u8; 4], address: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(address.parse().unwrap()).await
}

#[tokio::test]
async fn many_who_come_at_once_have_each_the_time_for_a_handshake() {
    let stage = Stage::with(Room { handshakes: 2, ..ROOM }).await;
    let tls = TlsConnector::from(Arc::new(stage.nobody()));
    let mut all = JoinSet::new();
    for number in 0..8 {
        let (tls, address) = (tls.clone(), stage.address.clone());
        all.spawn(async move {
            let mut stream = connect_from([127, 0, 1, number], &address).await?;
            // All but its first byte is on the way for as long as takes it to some places.
            let (near, mut far) = tokio::io::duplex(65_536);
            let relayed = async move {
                stream.write_u8(far.read_u8().await?).await?;
                sleep(Duration::from_millis(200)).await;
                tokio::io::copy_bidirectional(&mut far, &mut stream).await
            };
            let greeted = async move {
                let mut stream = tls.connect(ServerName::try_from(SERVER_NAME).unwrap(), near).await?;
                // The beginning of the server's settings.
                stream.read_u8().await
            };
            tokio::select! {
                greeted = greeted => greeted,
                relayed = relayed => relayed.map(|_| 0),
            }
        });
    }
    let all = timeout(DEADLINE, all.join_all()).await.unwrap();
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

#[tokio::test]
async fn one_address_keeps_no_other_waiting_however_often_it_comes() {
    let stage = Stage::with(Room { handshakes: 8, ..ROOM }).await;
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut stream = connect_from([127, 0, 0, 2], &stage.address).await.unwrap();
        // Of a TLS record.
        stream.write_u8(22).await.unwrap();
        slow.push(stream);
    }
    stage.client(Kind::Proxy, "proxy-1").leader(LeaderRequest {}).await.unwrap();
}

#[tokio::test]
async fn who_takes_no_answers_is_cut_all_the_same() {
    let room = Room { stranger_timeout: Duration::from_millis(200), ..ROOM };
    let mut stage = Stage::with(room).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.address = listener.local_addr().unwrap().to_string();
    let mut arriving = stage.gate.incoming(listener);
    let answering = tokio::spawn(async move {
        let mut stream = arriving.next().await.unwrap().unwrap();
        // Once the client's buffers are full this waits, and reads nothing.
        loop {
            if let Err(error) = stream.write_all(&[0; 65_536]).await {
                return error.kind();
            }
        }
    });
    let _silent = stage.stranger().await;
    let ended = timeout(DEADLINE, answering).await.expect("it is cut").unwrap();
    assert_eq!(ended, io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn one_connection_has_a_bounded_number_of_calls() {
    let mut stranger = Stage::new().await.stranger().await;
    stranger.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    stranger.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "its settings come first (RFC 9113 section 3.4)");
    let mut settings = vec![0; usize::from(head[2])];
    stranger.read_exact(&mut settings).await.unwrap();
    let calls = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("it says how many");
    assert_eq!(calls[2..], MAX_CALLS.to_be_bytes());
}

#[tokio::test]
async fn who_shows_no_certificate_has_two_calls_under_way_at_most() {
    let stage = Stage::new().await;
    let mut tls = stage.nobody();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let address = stage.address.clone();
    let stranger = channel(Dial { address, tls: Arc::new(tls), credential: None }).unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..MAX_STRANGERS_CALLS + 1 {
        let stranger = stranger.clone();
        calls.spawn(async move { unfinished(stranger, "/protoplex.v1.Enrolment/Enrol").await });
    }
    let answered = timeout(DEADLINE, calls.join_next()).await.expect("one of them is answered at once");
    assert_eq!(answered.unwrap().unwrap().unwrap().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_message_has_to_come_in_time() {
    let stage = Stage::with(Room { body_timeout: Duration::from_millis(50), ..ROOM }).await;
    let proxy = stage.identity.issue(Kind::Proxy, "proxy-1").unwrap().channel(&stage.address).unwrap();
    let answered = unfinished(proxy, "/protoplex.v1.Understudy/Leader");
    let refused = timeout(DEADLINE, answered).await.expect("it is answered").unwrap();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert_eq!(refused.message(), "the message did not come within 0.05 s");
}

/// A seed's connection with a call on it that is never answered, and how that ends.
async fn hanging(stage: &Stage, name: &str) -> tokio::task::JoinHandle<bool> {
    let mut seed = stage.client(Kind::Seed, name);
    seed.leader(LeaderRequest {}).await.unwrap();
    tokio::spawn(async move { seed.take_over(TakeOverRequest { term: 1 }).await.is_err() })
}

#[tokio::test]
async fn a_name_has_so_many_connections_and_its_oldest_makes_room_for_the_next() {
    let stage = Stage::with(Room { of_one: 2, ..ROOM }).await;
    let other = hanging(&stage, "seed-1").await;
    let [first, second, third] =
        [hanging(&stage, "seed-2").await, hanging(&stage, "seed-2").await, hanging(&stage, "seed-2").await];
    assert!(timeout(DEADLINE, first).await.expect("the oldest is cut").unwrap());
    assert!(!other.is_finished() && !second.is_finished() && !third.is_finished());
}

#[tokio::test]
async fn where_a_port_is_full_whoever_has_most_makes_room() {
    let stage = Stage::with(Room { connections: 4, ..ROOM }).await;
    let other = hanging(&stage, "seed-1").await;
    let [first, second, third] =
        [hanging(&stage, "seed-2").await, hanging(&stage, "seed-2").await, hanging(&stage, "seed-2").await];
    let newcomer = hanging(&stage, "seed-3").await;
    assert!(timeout(DEADLINE, first).await.expect("the oldest of three is cut").unwrap());
    let left = [other, second, third, newcomer];
    assert!(left.iter().all(|call| !call.is_finished()));
    // Where nobody has more than a newcomer it is the newcomer who goes.
    let stage = Stage::with(Room { connections: 2, ..ROOM }).await;
    let two = [hanging(&stage, "seed-1").await, hanging(&stage, "seed-2").await];
    let late = stage.client(Kind::Seed, "seed-3").leader(LeaderRequest {}).await;
    assert!(late.is_err() && two.iter().all(|call| !call.is_finished()), "{late:?}");
}
