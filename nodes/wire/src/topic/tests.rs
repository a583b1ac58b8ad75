use proptest::prelude::*;

use super::*;

fn pattern(text: &str) -> TopicPattern {
    text.parse().unwrap()
}

#[test]
fn a_pattern_names_topics() {
    for (text, matching, other) in [
        (
            "file.stored",
            &["file.stored"][..],
            &["file", "file.stored.twice", "file.Stored", "a.file.stored"][..],
        ),
        ("file.*", &["file.stored", "file.*x"], &["file", "file.stored.twice"]),
        ("*.stored", &["file.stored"], &["stored", "file.lost"]),
        ("file.#", &["file", "file.stored", "file.stored.twice"], &["files", "build.file"]),
        ("*.#", &["file", "file.stored"], &[]),
        ("#", &["file", "file.stored.twice"], &[]),
        ("file.*.#", &["file.stored", "file.stored.twice"], &["file"]),
    ] {
        let pattern = pattern(text);
        assert_eq!(pattern.to_string(), text);
        matching.iter().for_each(|topic| assert!(pattern.matches(topic), "{text} is for {topic}"));
        other.iter().for_each(|topic| assert!(!pattern.matches(topic), "{text} is not for {topic}"));
    }
}

#[test]
fn what_is_wrong_is_told() {
    for (text, problem) in [
        ("", "it is empty"),
        ("a..b", "no word between the dots is empty"),
        ("a.", "no word between the dots is empty"),
        ("#.a", "so it comes last"),
        ("a.b*", "stand for whole words"),
        ("a b", "no word has spaces"),
        ("a>", "no word has spaces"),
    ] {
        let error = text.parse::<TopicPattern>().unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains("file.#"), "{error}");
    }
    assert!("a".repeat(256).parse::<TopicPattern>().unwrap_err().to_string().contains("255 bytes"));
    assert!(["a"; 17].join(".").parse::<TopicPattern>().unwrap_err().to_string().contains("16 words"));
    assert!(check("file.stored").is_ok() && check("com.example/Ü-1:x").is_ok());
    for topic in ["", "a.*", "#", "a,b", "a..b", "a\u{7}"] {
        assert!(check(topic).is_err(), "{topic:?}");
    }
}

/// The definition in the fewest words, word by word.
fn matches_by_definition(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        (["#"], _) => true,
        ([], []) => true,
        (["*", pattern @ ..], [_, topic @ ..]) => matches_by_definition(pattern, topic),
        ([word, pattern @ ..], [first, topic @ ..]) => word == first && matches_by_definition(pattern, topic),
        _ => false,
    }
}

fn topics() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc]", 1..5).prop_map(|words| words.join("."))
}

fn patterns() -> impl Strategy<Value = String> {
    let words = prop::collection::vec("[abc*]", 0..5);
    (words, any::<bool>()).prop_filter_map("empty", |(mut words, open)| {
        words.extend(open.then(|| "#".to_owned()));
        (!words.is_empty()).then(|| words.join("."))
    })
}

proptest! {
    #[test]
    fn matching_is_as_defined(text in patterns(), topic in topics()) {
        let by_definition =
            matches_by_definition(&text.split('.').collect::<Vec<_>>(), &topic.split('.').collect::<Vec<_>>());
        prop_assert_eq!(pattern(&text).matches(&topic), by_definition);
    }

    #[test]
    fn a_cover_hides_nothing(texts in prop::collection::vec(patterns(), 1..4), topic in topics()) {
        let all: Vec<_> = texts.iter().map(|text| pattern(text)).collect();
        let cover = TopicPattern::cover(&all);
        if all.iter().any(|pattern| pattern.matches(&topic)) {
            prop_assert!(cover.matches(&topic), "{} hides {}", cover, topic);
        }
        if let [one] = &all[..] {
            prop_assert_eq!(&cover, one);
        }
    }

    #[test]
    fn what_is_written_is_read_again(text in patterns()) {
        prop_assert_eq!(pattern(&text).to_string(), text);
    }
}
