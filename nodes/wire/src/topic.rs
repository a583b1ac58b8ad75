//! Topics: an event's type, as words between dots, and the patterns that subscribers name them by.
//!
//! | pattern | topics |
//! | --- | --- |
//! | `file.stored` | that one |
//! | `file.*` | `file.stored`, but not `file` or `file.stored.twice`: `*` stands for one word |
//! | `file.#` | `file`, `file.stored`, `file.stored.twice`: `#` stands for the rest, however long |

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The longest topic or pattern, in bytes.
pub const MAX_BYTES: usize = 255;
/// The most words of a topic or pattern.
const MAX_WORDS: usize = 16;
/// The most patterns of one subscription.
pub const MAX_PATTERNS: usize = 32;

/// Why a text is no topic or no pattern, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {text:?}: {problem}; write for example {example}")]
pub struct TopicError {
    what: &'static str,
    text: String,
    problem: &'static str,
    example: &'static str,
}

/// Checks a topic: 1 to 16 words between dots, at most 255 bytes. Spaces, control characters and `*` `#` `>` `,` are in
/// no word, so that every carrier and every list can have it as it is.
pub fn check(topic: &str) -> Result<(), TopicError> {
    words(topic)
        .and_then(|words| match words.into_iter().all(is_plain) {
            true => Ok(()),
            false => Err(NOT_IN_WORDS),
        })
        .map_err(|problem| TopicError {
            what: "topic",
            text: topic.to_owned(),
            problem,
            example: "file.stored",
        })
}

const NOT_IN_WORDS: &str = "no word has spaces, control characters, '*', '#', '>' or ','";

/// A pattern over topics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicPattern {
    words: Vec<Word>,
    /// It ends with `#`.
    open: bool,
}

/// One place of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Word {
    Any,
    This(String),
}

impl TopicPattern {
    /// The pattern of every topic.
    #[must_use]
    pub fn all() -> Self {
        Self { words: Vec::new(), open: true }
    }

    /// Is this topic one of those?
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let mut words = topic.split('.');
        let begins_so = self.words.iter().all(|word| match (word, words.next()) {
            (_, None) => false,
            (Word::Any, Some(_)) => true,
            (Word::This(this), Some(word)) => this == word,
        });
        begins_so && (self.open || words.next().is_none())
    }

    /// A pattern that matches whatever one of these matches, and as little else as one pattern can.
    #[must_use]
    pub fn cover(patterns: &[Self]) -> Self {
        let Some((first, rest)) = patterns.split_first() else { return Self::all() };
        let mut cover = first.clone();
        for pattern in rest {
            let common = cover.words.len().min(pattern.words.len());
            // A length that differs leaves the end open; what is open at one place is open from there on.
            cover.open |= pattern.open || cover.words.len() != pattern.words.len();
            cover.words.truncate(common);
            for (word, other) in cover.words.iter_mut().zip(&pattern.words) {
                if word != other {
                    *word = Word::Any;
                }
            }
        }
        cover
    }
}

impl FromStr for TopicPattern {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let fail = |problem| TopicError {
            what: "pattern",
            text: text.to_owned(),
            problem,
            example: "file.stored, file.* or file.#",
        };
        let mut words = words(text).map_err(fail)?;
        let open = words.last() == Some(&"#");
        if open {
            words.pop();
        }
        let word = |word: &str| match word {
            "*" => Ok(Word::Any),
            "#" => Err(fail("'#' stands for the rest, so it comes last")),
            word if word.contains(['*', '#']) => Err(fail("'*' and '#' stand for whole words")),
            word if is_plain(word) => Ok(Word::This(word.to_owned())),
            _ => Err(fail(NOT_IN_WORDS)),
        };
        let words = words.into_iter().map(word).collect::<Result<_, _>>()?;
        Ok(Self { words, open })
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.words.iter().map(|word| match word {
            Word::Any => "*",
            Word::This(word) => word,
        });
        let words: Vec<_> = words.chain(self.open.then_some("#")).collect();
        f.write_str(&words.join("."))
    }
}

fn words(text: &str) -> Result<Vec<&str>, &'static str> {
    if text.len() > MAX_BYTES {
        return Err("it is longer than 255 bytes");
    }
    let words: Vec<_> = text.split('.').collect();
    match words {
        _ if text.is_empty() => Err("it is empty"),
        words if words.iter().any(|word| word.is_empty()) => Err("no word between the dots is empty"),
        words if words.len() > MAX_WORDS => Err("it has more than 16 words"),
        words => Ok(words),
    }
}

fn is_plain(word: &str) -> bool {
    !word.chars().any(|c| c.is_whitespace() || c.is_control() || "*#>,".contains(c))
}
