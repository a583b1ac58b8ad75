//! Questions to the seed that have no answer yet; whoever asks for the same key waits for the same answer.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::LocateError;
use crate::clock::BootTime;
use crate::owners::Owner;
use crate::proto::{Locate, follow_request};

/// Keys that may be asked for at once.
pub(super) const MAX_QUESTIONS: usize = 1024;

type Answer = oneshot::Sender<Result<Owner, LocateError>>;

#[derive(Default)]
pub(super) struct Questions {
    last_id: u64,
    open: HashMap<u64, Question>,
    by_key: HashMap<(Box<str>, Box<str>), u64>,
}

struct Question {
    locate: Locate,
    sent_at: BootTime,
    waiting: Vec<Answer>,
}

/// A question that has its answer.
pub(super) struct Closed {
    pub(super) pool: String,
    pub(super) key: String,
    /// First, if it was sent again on another link.
    pub(super) sent_at: BootTime,
    pub(super) waiting: Vec<Answer>,
}

/// What became of a question.
pub(super) enum Opened {
    /// It is new: send this.
    New(Locate),
    /// It has been sent already.
    Joined,
    /// There are [`MAX_QUESTIONS`] others.
    Full,
}

impl Questions {
    pub(super) fn open(&mut self, pool: &str, key: &str, refuted_epoch: u64, answer: Answer) -> Opened {
        let name = (Box::from(pool), Box::from(key));
        if let Some(question) = self.by_key.get(&name).and_then(|id| self.open.get_mut(id)) {
            question.waiting.push(answer);
            return Opened::Joined;
        }
        if self.open.len() >= MAX_QUESTIONS {
            self.drop_abandoned();
        }
        if self.open.len() >= MAX_QUESTIONS {
            return Opened::Full;
        }
        self.last_id += 1;
        let locate = Locate { id: self.last_id, pool: pool.to_owned(), key: key.to_owned(), refuted_epoch };
        self.by_key.insert(name, locate.id);
        let question = Question { locate: locate.clone(), sent_at: BootTime::now(), waiting: vec![answer] };
        self.open.insert(locate.id, question);
        Opened::New(locate)
    }

    /// Takes a question out, with who waits for its answer.
    pub(super) fn close(&mut self, id: u64) -> Option<Closed> {
        let Question { locate, sent_at, waiting } = self.open.remove(&id)?;
        let Locate { pool, key, .. } = locate;
        self.by_key.remove(&(Box::from(&*pool), Box::from(&*key)));
        Some(Closed { pool, key, sent_at, waiting })
    }

    /// All that still matter, to be sent again on a new link.
    pub(super) fn unanswered(&mut self) -> Vec<follow_request::Message> {
        self.drop_abandoned();
        self.open.values().map(|question| follow_request::Message::Locate(question.locate.clone())).collect()
    }

    /// Forgets questions for whose answer nobody waits any more.
    fn drop_abandoned(&mut self) {
        let abandoned = |question: &Question| question.waiting.iter().all(oneshot::Sender::is_closed);
        let ids: Vec<_> = self.open.iter().filter(|(_, q)| abandoned(q)).map(|(id, _)| *id).collect();
        for id in ids {
            self.close(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_is_asked_for_once_and_abandoned_questions_make_room() {
        let mut questions = Questions::default();
        let mut ask = |key: &str| {
            let (answer, waiting) = oneshot::channel();
            (questions.open("live", key, 0, answer), waiting)
        };
        let (first, _waiting) = ask("a");
        assert!(matches!(first, Opened::New(_)));
        let (second, _also_waiting) = ask("a");
        assert!(matches!(second, Opened::Joined));
        for n in 1..MAX_QUESTIONS {
            // Its waiter is dropped at once: abandoned.
            assert!(matches!(ask(&n.to_string()).0, Opened::New(_)));
        }
        assert!(matches!(ask("one more").0, Opened::New(_)), "abandoned questions make room");
        assert_eq!(
            questions.close(1).map(|closed| (closed.key, closed.waiting.len())),
            Some(("a".to_owned(), 2))
        );
    }
}
