//! The local authority: made once, kept, renewed; and errors that say what to do.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_local_certificate_is_made_once_and_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("tls");
    let local = ensure_local(&dir, &["edge.example".into(), "192.0.2.1".into()]).unwrap();
    for path in [&local.certificate, &local.key, &local.authority, &local.authority_key] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let names = ["localhost", "127.0.0.1", "::1", "edge.example", "192.0.2.1"].map(String::from);
    assert!(is_good(&local, &names));
    assert!(!is_good(&local, &["other.example".into()]));
    let before = fs::read(&local.certificate).unwrap();
    ensure_local(&dir, &["edge.example".into()]).unwrap();
    assert_eq!(fs::read(&local.certificate).unwrap(), before);
}

#[test]
fn a_new_name_or_a_lost_key_makes_a_new_certificate_under_the_same_authority() {
    let dir = tempfile::tempdir().unwrap();
    let local = ensure_local(dir.path(), &[]).unwrap();
    let (authority, first) = (fs::read(&local.authority).unwrap(), fs::read(&local.certificate).unwrap());
    ensure_local(dir.path(), &["edge.example".into()]).unwrap();
    let second = fs::read(&local.certificate).unwrap();
    assert_ne!(first, second);
    fs::write(&local.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    ensure_local(dir.path(), &["edge.example".into()]).unwrap();
    assert_ne!(fs::read(&local.certificate).unwrap(), second);
    assert_eq!(fs::read(&local.authority).unwrap(), authority);
    assert!(is_good(&local, &["localhost".into(), "edge.example".into()]));
}

#[test]
fn a_certificate_near_its_end_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let local = ensure_local(dir.path(), &[]).unwrap();
    let issuer = authority(&local).unwrap();
    let mut params = CertificateParams::new(LOCAL_NAMES.map(String::from)).unwrap();
    params.not_after = (SystemTime::now() + RENEW_BEFORE - Duration::from_secs(60)).into();
    let key = KeyPair::generate().unwrap();
    let old = params.signed_by(&key, &issuer).unwrap();
    write(&local.key, &key.serialize_pem()).unwrap();
    write(&local.certificate, &old.pem()).unwrap();
    load(&local.certificate, &local.key).unwrap();
    ensure_local(dir.path(), &[]).unwrap();
    assert_ne!(fs::read_to_string(&local.certificate).unwrap(), old.pem());
    assert!(is_good(&local, &LOCAL_NAMES.map(String::from)));
}

#[test]
fn what_can_not_be_loaded_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let local = ensure_local(dir.path(), &[]).unwrap();
    let other = ensure_local(&dir.path().join("other"), &[]).unwrap();
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing.pem");
    let error = |certificate: &Path, key: &Path| load(certificate, key).unwrap_err().to_string();
    for (text, names, advice) in [
        (error(&missing, &local.key), &missing, "give a file that is"),
        (error(&empty, &local.key), &empty, "give a PEM file that has"),
        (error(&local.certificate, &empty), &empty, "give the key that belongs to the certificate"),
        (error(&local.certificate, &other.key), &other.key, "give the two that were made together"),
    ] {
        assert!(text.contains(&names.display().to_string()) && text.contains(advice), "{text}");
    }
}
