//! One stream of several topics: the first is owned here, the others are followed at their owners.
//!
//! Its ids are those of all its topics at once, `#{first},{second},…`, each as in [`crate::channel`], in the order in
//! which the subscriber named them: so its recovery is as exact as that of one topic.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::{LocalBoxStream, SelectAll, unfold};
use tokio::time::Instant;

use crate::channel::Since;
use crate::elsewhere::{Elsewhere, Followed, Stream};
use crate::frame;
use crate::subscription::Subscription;

/// How long an owner may be out of reach until the stream ends, so that its client asks anew.
const MAX_ABSENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const REATTEMPT_MS: std::ops::Range<u64> = 200..1_000;
/// Publishers' ids that are remembered, to pass an update of several topics on once.
const RECENT: usize = 64;

/// A stream of frames that ends with that of its first topic, or when another one's owner stays away.
pub(crate) struct Merged {
    first: Subscription,
    others: SelectAll<LocalBoxStream<'static, Heard>>,
    /// Of each topic.
    positions: Vec<String>,
    /// Publishers' ids, and the topic that each was seen in.
    recent: VecDeque<(String, usize)>,
    over: bool,
}

/// What is heard of the topic with this index.
enum Heard {
    Block(usize, String),
    Gap(Bytes),
    Lost,
}

/// Follows one topic through changes of its owner.
pub(crate) struct Follower {
    pub(crate) elsewhere: Elsewhere,
    pub(crate) topic: String,
    pub(crate) token: Option<String>,
    /// The stream, while there is one.
    pub(crate) stream: Option<Stream>,
    pub(crate) position: String,
}

/// Where each of `topics` topics starts, for a subscriber that gives the id of such a stream.
pub(crate) fn since_each(since: &Since, topics: usize) -> Vec<Since> {
    if let Since::Event(id) = since
        && let Some(ids) = id.strip_prefix('#')
    {
        let each: Vec<Since> = ids.split(',').map(|id| Since::Event(format!("#{id}"))).collect();
        if each.len() == topics {
            return each;
        }
    }
    // An id of another kind is found in none of them.
    vec![since.clone(); topics]
}

impl Merged {
    /// `first` has begun at the place of the id `position`.
    pub(crate) fn new(first: Subscription, position: String, others: Vec<Follower>) -> Self {
        let positions =
            [position].into_iter().chain(others.iter().map(|other| other.position.clone())).collect();
        let numbered = others.into_iter().enumerate().map(|(index, other)| heard(index + 1, other));
        Self { first, others: numbered.collect(), positions, recent: VecDeque::new(), over: false }
    }

    /// The next frame; None at the end. Cancel-safe, as what it waits for is.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            let heard = match select(pin!(self.first.next()), self.others.next()).await {
                Either::Left((frame, _)) => {
                    let frame = frame?;
                    let text = String::from_utf8_lossy(&frame);
                    if frame::split(&text).position.is_none() {
                        return Some(frame);
                    }
                    Heard::Block(0, text.into_owned())
                }
                Either::Right((heard, _)) => heard.unwrap_or(Heard::Lost),
            };
            match heard {
                Heard::Gap(frame) => return Some(frame),
                Heard::Lost => {
                    self.over = true;
                    return Some(frame::retry(rand::random_range(REATTEMPT_MS)));
                }
                Heard::Block(topic, block) => {
                    if let Some(frame) = self.pass_on(topic, &block) {
                        return Some(frame);
                    }
                }
            }
        }
        None
    }

    /// The block under the id of all positions; None where the same update came by another topic.
    fn pass_on(&mut self, topic: usize, block: &str) -> Option<Bytes> {
        let parts = frame::split(block);
        if let Some(position) = parts.position {
            position.clone_into(&mut self.positions[topic]);
        }
        if let Some(own_id) = parts.own_id {
            if self.recent.iter().any(|(id, seen_in)| id == own_id && *seen_in != topic) {
                return None;
            }
            self.recent.push_back((own_id.to_owned(), topic));
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
        }
        Some(frame::join(&cursor(&self.positions), parts.rest))
    }
}

/// The id of a place in several topics.
fn cursor(positions: &[String]) -> String {
    let bare: Vec<&str> = positions.iter().map(|position| position.trim_start_matches('#')).collect();
    format!("#{}", bare.join(","))
}

fn heard(index: usize, follower: Follower) -> LocalBoxStream<'static, Heard> {
    unfold(follower, move |mut follower| async move { Some((follower.next(index).await, follower)) })
        .boxed_local()
}

impl Follower {
    /// The next block that has a position. After [`Heard::Lost`] there is nothing more to hear.
    async fn next(&mut self, index: usize) -> Heard {
        let mut lost_at = None;
        loop {
            let Some(stream) = &mut self.stream else {
                let lost_at = *lost_at.get_or_insert_with(Instant::now);
                match self.reopen(lost_at).await {
                    None => return Heard::Lost,
                    Some(true) => continue,
                    Some(false) => return Heard::Gap(frame::gap(&self.topic)),
                }
            };
            match stream.block().await {
                Ok(block) => {
                    if let Some(position) = frame::split(&block).position {
                        position.clone_into(&mut self.position);
                        return Heard::Block(index, block);
                    }
                }
                Err(_) => self.stream = None,
            }
        }
    }

    /// Opens the stream again where it broke off: whether nothing is missing, or None after [`MAX_ABSENCE`].
    async fn reopen(&mut self, lost_at: Instant) -> Option<bool> {
        let since = Since::Event(self.position.clone());
        while lost_at.elapsed() < MAX_ABSENCE {
            tokio::time::sleep(Duration::from_millis(rand::random_range(REATTEMPT_MS))).await;
            if let Ok(Followed { stream, position, complete }) =
                self.elsewhere.follow(&self.topic, &since, self.token.as_deref()).await
            {
                self.stream = Some(stream);
                self.position = position;
                return Some(complete);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_several_topics_is_one_place_in_each() {
        let positions = ["#a.1".to_owned(), "#b.22".to_owned()];
        let id = cursor(&positions);
        assert_eq!(id, "#a.1,b.22");
        let each = positions.map(Since::Event);
        assert_eq!(since_each(&Since::Event(id.clone()), 2), each);
        assert_eq!(since_each(&Since::Event(id.clone()), 3), vec![Since::Event(id); 3], "of other topics");
        assert_eq!(since_each(&Since::Event("urn:x".into()), 2), vec![Since::Event("urn:x".into()); 2]);
        assert_eq!(since_each(&Since::Event("#a.1".into()), 1), [Since::Event("#a.1".into())]);
        assert_eq!(since_each(&Since::Now, 2), vec![Since::Now; 2]);
    }
}
