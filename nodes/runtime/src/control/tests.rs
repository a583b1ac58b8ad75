//! Messages in pieces, rubbish, and sockets that change hands.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::*;
use crate::config::{Common, Timing};
use crate::context::PortChange;
use crate::drain::Drain;
use crate::sockets::Socket;
use crate::telemetry::Settings;

fn hello(config: serde_json::Value) -> Hello {
    let common = Common {
        account: None,
        node: "proxy-1".to_owned(),
        data: "data".into(),
        seeds: vec!["127.0.0.1:8050".to_owned()],
        region: String::new(),
        zone: String::new(),
        meta: "127.0.0.1:8053".parse().unwrap(),
        meta_forced: false,
        meta_tls: Default::default(),
        meta_tokens: Default::default(),
        timing: Timing::default(),
        telemetry: Settings::default(),
        trace: Default::default(),
    };
    Hello {
        kind: "proxy".to_owned(),
        index: 1,
        instance: "i".to_owned(),
        configuration: Configuration { common, config },
        sockets: Vec::new(),
        own: 0,
    }
}

fn hold() -> Arc<std::fs::File> {
    Arc::new(tempfile::tempfile().unwrap())
}

fn socket(name: &str) -> (Arc<Socket>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Socket::new(name, listener), address)
}

#[tokio::test]
async fn messages_arrive_whole_however_they_are_cut() {
    let (mut writer, reader) = tokio::io::duplex(3);
    let sending = tokio::spawn(async move {
        for word in [Word::Report(Report::default()), Word::Metrics(Vec::new())] {
            writer.write_all(&line(&word).unwrap()).await.unwrap();
        }
        writer.write_all(b"\"half a mess").await.unwrap();
    });
    let mut lines = Lines::new(reader);
    assert_eq!(lines.next().await.unwrap(), Some(Word::Report(Report::default())));
    assert_eq!(lines.next().await.unwrap(), Some(Word::Metrics(Vec::new())));
    assert_eq!(lines.next::<Word>().await.unwrap(), None);
    sending.await.unwrap();
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let table: [&[u8]; 7] = [
        b"\n",
        b"hello\n",
        b"\"drain\"\n",
        b"{\"report\":{\"ready\":true}}\n",
        b"{\"report\":{\"ready\":1,\"details\":{}}}\n",
        b"{\"metrics\":[{\"name\":\"a\"}]}\n",
        b"\xff\xfe\n",
    ];
    for bytes in table {
        let error = Lines::new(bytes).next::<Word>().await.unwrap_err();
        assert!(matches!(error, LineError::Malformed(_)), "{bytes:?}: {error}");
    }
    // Another program may say more than this one knows.
    let more: &[u8] = b"{\"report\":{\"ready\":true,\"details\":{},\"more\":1}}\n";
    let word = Lines::new(more).next::<Word>().await.unwrap().unwrap();
    assert_eq!(word, Word::Report(Report { ready: true, ..Report::default() }));
    let endless = vec![b'a'; (4 << 20) + 1];
    assert!(matches!(Lines::new(endless.as_slice()).next::<Word>().await, Err(LineError::TooLong)));
}

#[test]
fn a_socket_that_was_sent_goes_on_listening_with_what_waits_in_it() {
    let (own, address) = socket("own");
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hi").unwrap();
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let config = serde_json::json!({ "text": "é".repeat(30_000) });
    let hold = hold();
    hold.lock().unwrap();
    let parcel = Parcel::new(hello(config.clone()), vec![own], hold);
    let shared = [socket("http").0, socket("http").0];
    assert_eq!(parcel.send(&ours, &shared).unwrap(), 2);
    drop(parcel);
    // What follows is left to whoever reads orders.
    (&ours).write_all(b"\"metrics\"\n").unwrap();
    let (hello, sockets, _hold) = receive(&theirs).unwrap();
    assert_eq!((hello.index, hello.own, hello.configuration.config), (1, 1, config));
    assert_eq!(
        hello.sockets.iter().map(|socket| socket.name.as_str()).collect::<Vec<_>>(),
        ["own", "http", "http"]
    );
    let mut greeting = [0; 2];
    sockets[0].accept().unwrap().0.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hi");
    let mut orders = [0; 10];
    (&theirs).read_exact(&mut orders).unwrap();
    assert_eq!(&orders, b"\"metrics\"\n");
}

#[test]
fn a_child_is_born_with_no_more_sockets_than_one_message_takes() {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let shared: Vec<_> = (0..260).map(|_| socket("http").0).collect();
    let sent = Parcel::new(hello(serde_json::Value::Null), Vec::new(), hold()).send(&ours, &shared).unwrap();
    assert_eq!(sent, 252);
    assert_eq!(receive(&theirs).unwrap().1.len(), sent);
}

#[test]
fn a_parent_that_says_too_little_or_too_much_is_not_believed() {
    let says = |bytes: &[u8]| {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        (&ours).write_all(bytes).unwrap();
        drop(ours);
        receive(&theirs).unwrap_err()
    };
    let framed = |line: &[u8]| [&(line.len() as u32).to_be_bytes(), line].concat();
    assert_eq!(says(&framed(b"{\"kind\":")[..9]).kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(says(&[0xff; 8]).to_string(), "the parent has said too much");
    let named = Handed { id: 1, name: "http".to_owned() };
    let words = line(&Hello { sockets: vec![named], ..hello(serde_json::Value::Null) }).unwrap();
    assert_eq!(says(&framed(&words)).to_string(), "not as many sockets as names");
}

#[tokio::test]
async fn a_child_is_given_and_deprived_of_sockets_while_it_runs_and_told_what_to_go_by() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let context = Context::new(hello(serde_json::json!("old")), Vec::new(), Drain::new().1);
    let mut reconfigured = context.reconfigured();
    tokio::spawn(obey(
        theirs,
        context.report(),
        Drain::new().0,
        Drain::new().0,
        Drain::new().1,
        Some(context.clone()),
    ));
    let (_reader, writer) = ours.into_split();
    let (http, address) = socket("http");
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hi").unwrap();
    send(&writer, &Order::Take(http.handed.clone()), Some(http.listener.as_fd())).await.unwrap();
    let mut changes = context.port_changes().await;
    let Some(PortChange::Open { id, name, socket }) = changes.pop() else { panic!("{changes:?}") };
    assert_eq!((id, name.as_str()), (http.handed.id, "http"));
    let mut greeting = [0; 2];
    socket.accept().unwrap().0.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hi");
    send(&writer, &Order::Release(id), None).await.unwrap();
    assert!(matches!(context.port_changes().await[..], [PortChange::Close { id: closed }] if closed == id));
    // One that is taken back before anybody has looked at it was never there.
    send(&writer, &Order::Take(http.handed.clone()), Some(http.listener.as_fd())).await.unwrap();
    send(&writer, &Order::Release(id), None).await.unwrap();
    let configuration = hello(serde_json::json!("new")).configuration;
    send(&writer, &Order::Adopt(Box::new(configuration)), None).await.unwrap();
    assert_eq!(reconfigured.next::<String>().await.unwrap(), "new");
    assert_eq!(context.config::<String>().unwrap(), "new");
    assert!(timeout(Duration::ZERO, context.port_changes()).await.is_err());
}

#[tokio::test]
async fn a_socket_that_does_not_come_with_its_order_ends_the_talk() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (drain_trigger, drain) = Drain::new();
    let report = watch::Sender::new(Report::default());
    let obeying =
        tokio::spawn(obey(theirs, report.subscribe(), drain_trigger, Drain::new().0, Drain::new().1, None));
    let (_reader, writer) = ours.into_split();
    send(&writer, &Order::Take(Handed { id: 1, name: "http".to_owned() }), None).await.unwrap();
    timeout(Duration::from_secs(10), obeying).await.unwrap().unwrap();
    assert!(drain.is_draining());
}

#[tokio::test]
async fn a_process_reports_answers_and_drains_when_its_supervisor_is_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let report = watch::Sender::new(Report::default());
    let ((drain_trigger, drain), (end_trigger, end)) = (Drain::new(), Drain::new());
    let obeying =
        tokio::spawn(obey(theirs, report.subscribe(), drain_trigger, end_trigger, Drain::new().1, None));
    let (reader, writer) = ours.into_split();
    let mut lines = Lines::new(reader);
    assert_eq!(lines.next().await.unwrap(), Some(Word::Report(Report::default())));
    report.send_modify(|report| report.ready = true);
    let ready = Report { ready: true, ..Report::default() };
    assert_eq!(lines.next().await.unwrap(), Some(Word::Report(ready)));
    send(&writer, &Order::Metrics, None).await.unwrap();
    loop {
        match lines.next().await.unwrap() {
            Some(Word::Beat) => {}
            Some(Word::Metrics(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(!drain.is_draining());
    drop((lines, writer));
    timeout(Duration::from_secs(10), obeying).await.unwrap().unwrap();
    assert!(drain.is_draining() && !end.is_draining());
}

#[tokio::test]
async fn whoever_should_end_should_drain_too() {
    for (order, ends) in [(Order::Drain, false), (Order::End, true)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let report = watch::Sender::new(Report::default());
        let ((drain_trigger, drain), (end_trigger, end)) = (Drain::new(), Drain::new());
        tokio::spawn(obey(theirs, report.subscribe(), drain_trigger, end_trigger, Drain::new().1, None));
        let (_reader, writer) = ours.into_split();
        send(&writer, &order, None).await.unwrap();
        timeout(Duration::from_secs(10), drain.started()).await.unwrap();
        assert_eq!(end.is_draining(), ends, "after {order:?}");
    }
}
