use http::HeaderValue;

use super::*;

fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
}

#[test]
fn subscriptions_name_their_topics_and_where_to_start() {
    let parse = |query, pairs: &[(HeaderName, &str)]| Subscribe::parse(query, &headers(pairs)).unwrap();
    let plain = parse("topic=upload%2F1&topic=b&topic=upload/1&other=x", &[]);
    assert_eq!(plain, Subscribe { topics: vec!["upload/1".into(), "b".into()], since: Since::Now });
    assert_eq!(parse("topic=a&lastEventID=%231.2", &[]).since, Since::Event("#1.2".into()));
    assert_eq!(parse("topic=a&Last-Event-ID=x", &[]).since, Since::Event("x".into()));
    assert_eq!(parse("topic=a&lastEventID=x", &[(LAST_EVENT_ID, "y")]).since, Since::Event("y".into()));
    assert_eq!(parse("topic=a&lastEventID=earliest", &[]).since, Since::Earliest);
}

#[test]
fn bad_subscriptions() {
    let many: String = (0..=MAX_TOPICS).map(|number| format!("topic={number}&")).collect();
    let long = format!("topic={}", "x".repeat(MAX_TOPIC_BYTES + 1));
    let table = [
        ("", Malformed::NoTopic),
        ("topics=a", Malformed::NoTopic),
        ("topic=", Malformed::BadTopic),
        ("topic=a%0Ab", Malformed::BadTopic),
        ("topic=a%00", Malformed::BadTopic),
        (&long, Malformed::BadTopic),
        (&many, Malformed::TooManyTopics),
        ("topic=*", Malformed::Selector("*".into())),
        ("topic=books/{id}", Malformed::Selector("books/{id}".into())),
        ("match=a", Malformed::Matcher("match".into())),
        ("topic=a&matchURLPattern=b", Malformed::Matcher("matchURLPattern".into())),
    ];
    for (query, error) in table {
        assert_eq!(Subscribe::parse(query, &HeaderMap::new()), Err(error), "{query}");
    }
}

#[test]
fn an_update_has_all_the_fields_of_an_event() {
    let form = b"topic=a&topic=b&data=x%0Ay+z&private=&id=urn%3Amine&type=news&retry=1500&unknown=1";
    let parsed = Publish::parse("topic=first", form).unwrap();
    assert_eq!(parsed.topics, ["first", "a", "b"]);
    let update = Update {
        data: "x\ny z".into(),
        kind: Some("news".into()),
        id: Some("urn:mine".into()),
        retry_ms: Some(1500),
        private: true,
    };
    assert_eq!(parsed.update, update);
    assert_eq!(Publish::parse("", b"topic=a&id=&type=&retry=").unwrap().update, Update::default());
}

#[test]
fn bad_updates() {
    let long = format!("topic=a&id={}", "x".repeat(MAX_FIELD_BYTES + 1));
    let table = [
        ("data=x", Malformed::NoTopic),
        ("topic=a%7F", Malformed::BadTopic),
        ("topic=a&id=%23mine", Malformed::BadId),
        ("topic=a&id=earliest", Malformed::BadId),
        ("topic=a&id=x%0Adata:%20forged", Malformed::BadId),
        ("topic=a&id=x%00", Malformed::BadId),
        (&long, Malformed::BadId),
        ("topic=a&type=x%0D", Malformed::BadType),
        ("topic=a&retry=soon", Malformed::BadRetry),
        ("topic=a&retry=%2B1", Malformed::BadRetry),
        ("topic=a&retry=99999999999999999999", Malformed::BadRetry),
    ];
    for (form, error) in table {
        assert_eq!(Publish::parse("", form.as_bytes()), Err(error), "{form}");
    }
}

#[test]
fn a_token_is_of_the_header_then_the_query_then_the_cookie() {
    let of = |query, pairs: &[(HeaderName, &str)]| {
        Credential::of(query, &headers(pairs)).map(|found| (found.token, found.from_cookie))
    };
    let cookie = (COOKIE, "a=b; mercureAuthorization=c; d");
    assert_eq!(
        of("authorization=q", &[(AUTHORIZATION, "Bearer h"), cookie.clone()]),
        Some(("h".into(), false))
    );
    assert_eq!(of("", &[(AUTHORIZATION, "bearer  h")]), Some(("h".into(), false)));
    assert_eq!(of("authorization=q", std::slice::from_ref(&cookie)), Some(("q".into(), false)));
    assert_eq!(of("", std::slice::from_ref(&cookie)), Some(("c".into(), true)));
    assert_eq!(of("", &[]), None);
    // A header that can't be understood is no reason to look elsewhere.
    assert_eq!(of("authorization=q", &[(AUTHORIZATION, "Basic eDp5"), cookie]), Some((String::new(), false)));
}
