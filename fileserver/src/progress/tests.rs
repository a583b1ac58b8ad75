//! What is told, how often, and what is dropped first.

use super::*;

async fn feed() -> (Feed, mpsc::Receiver<Event>) {
    let (live, mut notices) = Live::new("/fileserver-1/0");
    let feed = live.feed("abc", "/files/a");
    let Some(Notice::Feed(events)) = notices.recv().await else { panic!("no feed") };
    (feed, events)
}

fn kinds(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
    std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| {
            serde_json::from_str::<Value>(&event.cloud_event).unwrap()["type"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn an_event_is_a_cloud_event() {
    let (feed, mut events) = feed().await;
    feed.started(Some(5));
    let event = events.recv().await.unwrap();
    assert_eq!((event.topic.as_str(), event.lasting), ("upload/abc", true));
    let json: Value = serde_json::from_str(&event.cloud_event).unwrap();
    assert_eq!(json["specversion"], "1.0");
    assert_eq!(json["source"], "/fileserver-1/0");
    assert_eq!(json["type"], "upload.started");
    assert_eq!(json["subject"], "upload/abc");
    assert_eq!(json["data"], json!({ "size": 5, "path": "/files/a" }));
}

#[tokio::test]
async fn progress_is_told_ten_times_a_second() {
    let (mut feed, mut events) = feed().await;
    let start = Instant::now();
    let mut told = Vec::new();
    for millisecond in 0..1000 {
        feed.progress(millisecond, None, start + Duration::from_millis(millisecond));
        told.extend(kinds(&mut events));
    }
    assert_eq!(told, vec!["upload.progress"; 10]);
}

#[tokio::test]
async fn a_slow_live_loses_progress_but_not_the_end() {
    let (mut feed, mut events) = feed().await;
    let start = Instant::now();
    feed.started(None);
    for second in 0..100 {
        feed.progress(second, None, start + Duration::from_secs(second));
    }
    feed.finished(json!({}));
    feed.stored("reference");
    let kinds = kinds(&mut events);
    assert_eq!(
        kinds,
        ["upload.started", "upload.progress", "upload.progress", "upload.finished", "file.stored"]
    );
}

#[tokio::test]
async fn an_invalidation_that_nobody_confirms_is_not_taken_for_done() {
    let (live, mut notices) = Live::new("/fileserver-1/0");
    let patience = Duration::from_millis(20);
    assert!(!live.invalidate(vec!["file:a".to_owned()], patience).await);
    let Some(Notice::Invalidate(unanswered)) = notices.recv().await else { panic!("not asked") };
    assert_eq!(unanswered.names, ["file:a"]);

    let answer = async {
        let Some(Notice::Invalidate(asked)) = notices.recv().await else { panic!("not asked") };
        asked.done.send(()).unwrap();
    };
    let (done, ()) = tokio::join!(live.invalidate(vec![], Duration::from_secs(10)), answer);
    assert!(done);
}
