use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, RANGE};
use http::{HeaderName, StatusCode};

use super::*;

fn asset(path: &str, content_type: &str, identity: &str) -> proto::Asset {
    proto::Asset {
        path: path.into(),
        content_type: content_type.into(),
        identity: identity.into(),
        gzip: format!("gzip of {identity}").into(),
        brotli: format!("brotli of {identity}").into(),
    }
}

fn build(host: &str, version: u64) -> Build {
    Build { host: host.into(), version, deployed_at_ms: 784_111_777_000, ..Build::default() }
}

fn deployed(host: &str, version: u64, page: &str) -> AppFiles {
    let files = AppFiles::new(|| None);
    files.adopt(&build(host, version), vec![asset("/index.html", "text/html; charset=utf-8", page)]);
    files
}

fn find(files: &AppFiles, host: &str, path: &str) -> Option<Rc<Asset>> {
    files.find(&VirtualHost::parse(host).unwrap(), &FilePath::parse(path).unwrap())
}

async fn get(asset: &Asset, fields: &[(HeaderName, &str)]) -> (http::response::Parts, Vec<u8>) {
    let mut request = http::Request::get("/");
    for (name, value) in fields {
        request = request.header(name, *value);
    }
    let (parts, body) = asset.answer(&request.body(()).unwrap().into_parts().0).into_parts();
    (parts, body.collect(1 << 20).await.unwrap().to_vec())
}

#[tokio::test]
async fn assets_come_in_the_coding_that_the_client_likes_best() {
    let files = deployed("*", 1, "page");
    let page = find(&files, "example.com", "/").unwrap();
    for (accept, encoding, body) in
        [("gzip", "gzip", "gzip of page"), ("gzip, br", "br", "brotli of page"), ("", "", "page")]
    {
        let (head, sent) = get(&page, &[(ACCEPT_ENCODING, accept)]).await;
        let coded = head.headers.get(CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap());
        assert_eq!((coded, &sent[..]), (encoding, body.as_bytes()));
    }
}

#[tokio::test]
async fn a_known_tag_is_answered_with_304_and_a_range_with_its_bytes() {
    let files = deployed("*", 1, "0123456789");
    let page = find(&files, "example.com", "/index.html").unwrap();
    let (head, _) = get(&page, &[]).await;
    let tag = head.headers[ETAG].to_str().unwrap().to_owned();
    let (head, body) = get(&page, &[(IF_NONE_MATCH, &tag)]).await;
    assert_eq!((head.status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    let (head, body) = get(&page, &[(RANGE, "bytes=2-4")]).await;
    assert_eq!((head.status, &body[..]), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    let (head, body) = get(&page, &[(RANGE, "bytes=0-1,8-")]).await;
    assert_eq!(head.headers["content-length"].to_str().unwrap(), body.len().to_string());
    assert!(String::from_utf8(body).unwrap().contains("Content-Range: bytes 8-9/10\r\n\r\n89\r\n--"));
}

#[tokio::test]
async fn lives_are_long_but_a_page_shows_a_deploy_at_once() {
    let table = [
        ("/index.html", "text/html; charset=utf-8", PAGE),
        ("/app.js", "text/javascript", ASSET),
        ("/long-words-everywhere.css", "text/css", ASSET),
        ("/app.3f9a1c2b.js", "text/javascript", HASHED_ASSET),
        ("/assets/index-BkX9q2Lm.css", "text/css", HASHED_ASSET),
    ];
    for (path, content_type, life) in table {
        let asset = Asset::new(asset(path, content_type, "x"), UNIX_EPOCH);
        assert_eq!(get(&asset, &[]).await.0.headers[CACHE_CONTROL], life, "{path}");
    }
}

#[test]
fn folders_have_an_index_and_the_best_pattern_counts() {
    let files = deployed("*", 1, "any");
    files.adopt(&build("*.example.com", 2), vec![asset("/index.html", "text/html", "wide")]);
    files.adopt(&build("a.example.com", 3), vec![asset("/docs/index.html", "text/html", "narrow")]);
    let page = |host, path| find(&files, host, path).map(|asset| asset.identity.clone());
    assert_eq!(page("other.net", "/").unwrap(), "any");
    assert_eq!(page("b.example.com", "/").unwrap(), "wide");
    assert_eq!(page("a.example.com", "/docs/").unwrap(), "narrow");
    assert_eq!(
        page("a.example.com", "/"),
        None,
        "a build is whole: what it lacks is not looked for in another"
    );
    assert_eq!(page("b.example.com", "/docs"), None);
}

#[test]
fn a_deploy_replaces_a_build_as_a_whole() {
    let files = deployed("*", 1, "old");
    let next = build("*", 2);
    assert_eq!(files.missing(std::slice::from_ref(&next)), [&next]);
    files.adopt(&next, vec![asset("/new.html", "text/html", "new")]);
    assert!(files.missing(&[next]).is_empty());
    assert!(find(&files, "h", "/index.html").is_none() && find(&files, "h", "/new.html").is_some());
    files.retain(&[build("*", 0)]);
    assert!(find(&files, "h", "/new.html").is_none());
}
