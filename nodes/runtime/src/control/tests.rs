//! Messages in pieces, rubbish, and sockets that change hands.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::*;
use crate::config::{Common, Timing};
use crate::drain::Drain;
use crate::telemetry::Settings;

fn hello(sockets: &[&str], config: serde_json::Value) -> Hello {
    Hello {
        kind: "proxy".to_owned(),
        index: 1,
        children: 2,
        common: Common {
            node: "proxy-1".to_owned(),
            data: "data".into(),
            seed: "127.0.0.1:8050".to_owned(),
            region: String::new(),
            zone: String::new(),
            meta: "127.0.0.1:8053".parse().unwrap(),
            meta_forced: false,
            timing: Timing::default(),
            telemetry: Settings::default(),
            trace: Default::default(),
        },
        instance: "i".to_owned(),
        config,
        sockets: sockets.iter().map(ToString::to_string).collect(),
    }
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
        b"{\"report\":{\"ready\":true,\"details\":{},\"more\":1}}\n",
        b"{\"metrics\":[{\"name\":\"a\"}]}\n",
        b"\xff\xfe\n",
    ];
    for bytes in table {
        let error = Lines::new(bytes).next::<Word>().await.unwrap_err();
        assert!(matches!(error, LineError::Malformed(_)), "{bytes:?}: {error}");
    }
    let endless = vec![b'a'; (4 << 20) + 1];
    assert!(matches!(Lines::new(endless.as_slice()).next::<Word>().await, Err(LineError::TooLong)));
}

#[test]
fn a_socket_that_was_sent_goes_on_listening_with_what_waits_in_it() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
    client.write_all(b"hi").unwrap();
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let config = serde_json::json!({ "text": "é".repeat(30_000) });
    let hold = Arc::new(tempfile::tempfile().unwrap());
    hold.lock().unwrap();
    let mut parcel = Parcel::new(&hello(&["http"], config.clone()), vec![socket], hold);
    parcel.send(&ours).unwrap();
    parcel.close();
    let (hello, sockets, _hold) = receive(&theirs).unwrap();
    assert_eq!((hello.index, hello.config), (1, config));
    let mut greeting = [0; 2];
    sockets[0].accept().unwrap().0.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hi");
}

#[test]
fn a_parent_that_says_too_little_is_not_believed() {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    (&ours).write_all(b"{\"kind\":").unwrap();
    drop(ours);
    assert_eq!(receive(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let words = line(&hello(&["http"], serde_json::Value::Null)).unwrap();
    (&ours).write_all(&words).unwrap();
    assert_eq!(receive(&theirs).unwrap_err().to_string(), "not as many sockets as names");
}

#[tokio::test]
async fn a_process_reports_answers_and_drains_when_its_supervisor_is_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let report = watch::Sender::new(Report::default());
    let ((drain_trigger, drain), (end_trigger, end)) = (Drain::new(), Drain::new());
    let obeying = tokio::spawn(obey(theirs, report.subscribe(), drain_trigger, end_trigger));
    let (reader, writer) = ours.into_split();
    let mut lines = Lines::new(reader);
    assert_eq!(lines.next().await.unwrap(), Some(Word::Report(Report::default())));
    report.send_modify(|report| report.ready = true);
    let ready = Report { ready: true, ..Report::default() };
    assert_eq!(lines.next().await.unwrap(), Some(Word::Report(ready)));
    send(&writer, &Order::Metrics).await.unwrap();
    assert!(matches!(lines.next().await.unwrap(), Some(Word::Metrics(_))));
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
        tokio::spawn(obey(theirs, report.subscribe(), drain_trigger, end_trigger));
        let (_reader, writer) = ours.into_split();
        send(&writer, &order).await.unwrap();
        timeout(Duration::from_secs(10), drain.started()).await.unwrap();
        assert_eq!(end.is_draining(), ends, "after {order:?}");
    }
}
