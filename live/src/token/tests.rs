use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"a key of thirty-two bytes or more";

fn signed(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn good(claims: &Value) -> String {
    signed(Algorithm::HS256, SECRET, claims)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn bad_tokens() {
    let claims = json!({"mercure": {"publish": ["*"]}});
    let token = good(&claims);
    let parts: Vec<&str> = token.split('.').collect();
    let other = good(&json!({"mercure": {"publish": ["*"], "subscribe": ["*"]}}));
    let other_payload = other.split('.').nth(1).unwrap();
    // {"alg":"none","typ":"JWT"}
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let table = [
        ("empty", String::new(), TokenError::Malformed),
        ("not a token", "x.y.z".into(), TokenError::Malformed),
        ("two parts", format!("{}.{}", parts[0], parts[1]), TokenError::Malformed),
        ("four parts", format!("{token}.x"), TokenError::Malformed),
        ("alg none", format!("{none}.{}.", parts[1]), TokenError::WrongAlgorithm),
        (
            "alg none with a signature",
            format!("{none}.{}.{}", parts[1], parts[2]),
            TokenError::WrongAlgorithm,
        ),
        ("HS384", signed(Algorithm::HS384, SECRET, &claims), TokenError::WrongAlgorithm),
        ("HS512", signed(Algorithm::HS512, SECRET, &claims), TokenError::WrongAlgorithm),
        ("another key", signed(Algorithm::HS256, b"another key", &claims), TokenError::Forged),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), TokenError::Forged),
        ("claims exchanged", format!("{}.{other_payload}.{}", parts[0], parts[2]), TokenError::Forged),
        ("expired", good(&json!({"exp": now() - 1})), TokenError::Expired),
        ("not yet", good(&json!({"nbf": now() + 60})), TokenError::NotYetValid),
        ("exp of another type", good(&json!({"exp": "tomorrow"})), TokenError::Malformed),
        ("topics no list", good(&json!({"mercure": {"publish": "*"}})), TokenError::Malformed),
    ];
    let verifier = Verifier::new(SECRET);
    for (name, token, error) in table {
        assert_eq!(verifier.verify(&token), Err(error), "{name}");
    }
}

#[test]
fn only_a_nodes_own_token_for_registrations_is_one() {
    let good_claims = json!({"aud": "protoplex:live:registrations", "exp": now() + 60});
    let nodes = Nodes::new(SECRET);
    assert_eq!(nodes.verify(&good(&good_claims)), Ok(()));
    let table = [
        ("nothing", String::new(), TokenError::Malformed),
        ("an app's key", signed(Algorithm::HS256, b"live key", &good_claims), TokenError::Forged),
        ("HS512", signed(Algorithm::HS512, SECRET, &good_claims), TokenError::WrongAlgorithm),
        (
            "expired",
            good(&json!({"aud": "protoplex:live:registrations", "exp": now() - 1})),
            TokenError::Expired,
        ),
        ("for ever", good(&json!({"aud": "protoplex:live:registrations"})), TokenError::Malformed),
        ("for something else", good(&json!({"aud": "other", "exp": now() + 60})), TokenError::OtherPurpose),
        ("for anything", good(&json!({"exp": now() + 60})), TokenError::Malformed),
    ];
    for (name, token, error) in table {
        assert_eq!(nodes.verify(&token), Err(error), "{name}");
    }
}

#[test]
fn a_good_token_tells_what_it_allows_and_until_when() {
    let exp = now() + 60;
    let claims = json!({"mercure": {"publish": ["a"], "subscribe": ["b/{id}"], "payload": {}}, "exp": exp, "aud": "any"});
    let grant = Verifier::new(SECRET).verify(&good(&claims)).unwrap();
    assert_eq!(grant.expires_at, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(exp)));
    assert!(grant.may_publish("a") && !grant.may_publish("b/1"));
    assert!(grant.may_subscribe("b/1") && !grant.may_subscribe("a"));
}

#[test]
fn a_token_without_claims_allows_nothing() {
    let grant = Verifier::new(SECRET).verify(&good(&json!({}))).unwrap();
    assert!(!grant.may_publish("a") && !grant.may_subscribe("a"));
    assert_eq!(grant.expires_at, None);
}
