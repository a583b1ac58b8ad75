//! What people write on a command line, and sizes and times as they read them.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use protoplex_wire::pattern::check_name;
use reqwest::Url;
use time::OffsetDateTime;

/// "64MiB", "1.5 GB", "1000" → bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of size; write for example 500MB or 64MiB")),
    };
    let bytes = number * factor as f64;
    if bytes > u64::MAX as f64 {
        return Err("too large".to_owned());
    }
    Ok(bytes as u64)
}

/// As [`size`], but not nothing: a limit of 0 would be taken for none.
pub(crate) fn some_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("must be more than 0; leave it out for no limit of its own".to_owned()),
        bytes => Ok(bytes),
    }
}

/// How long something is valid: from a second to ten years.
pub(crate) fn life(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(3_653 * 86_400);
    let life = duration(text)?;
    if (Duration::from_secs(1)..=LONGEST).contains(&life) {
        Ok(life)
    } else {
        Err("must be from 1s to ten years".to_owned())
    }
}

/// "500ms", "10s", "30m", "12h", "7d" → a time.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => {
            return Err(format!("{unit:?} is no unit of time: write for example 500ms, 30s, 15m, 12h or 7d"));
        }
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "too long".to_owned())
}

/// How often something is looked at: from 100 ms to an hour.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if (Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&interval) {
        Ok(interval)
    } else {
        Err("must be from 100ms to 1h".to_owned())
    }
}

/// A URL with a host.
pub(crate) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("{error}; write for example http://localhost:8080/room/42"))?;
    if url.has_host() && matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err("write http:// or https://, and a host".to_owned())
    }
}

/// A request's URL as a client would send it: unlike [`url`] it leaves the path as it is.
pub(crate) fn request_url(text: &str) -> Result<Uri, String> {
    url(text)?;
    text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())
}

/// A server that requests are relayed to as they came.
pub(crate) fn backend(text: &str) -> Result<Url, String> {
    let url =
        Url::parse(text).map_err(|error| format!("{error}; write for example http://127.0.0.1:3000"))?;
    let bare = url.scheme() == "http" && url.has_host() && url.path() == "/" && url.query().is_none();
    if bare {
        Ok(url)
    } else {
        Err("write http://HOST:PORT without a path, as in http://127.0.0.1:3000: requests are relayed as they came"
            .to_owned())
    }
}

/// The name of a pool.
pub(crate) fn pool(text: &str) -> Result<String, String> {
    check_name("pool", text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// The name of a node, or of a person.
pub(crate) fn name(text: &str) -> Result<String, String> {
    check_name("name", text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// "Name: value" of a request.
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is no header name"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| format!("{value:?} is no header value"))?;
    Ok((name, value))
}

/// A path from the root on.
pub(crate) fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(format!("a path begins with /: did you mean /{text}?"))
    }
}

fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

/// Bytes as people read them: 1.5 GiB.
pub(crate) fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A time as supervisord shows it: 0:33:47, or 2 days, 0:33:47.
pub(crate) fn show_uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let clock = format!("{}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match seconds / 86_400 {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

/// A moment as people write it down: 2026-11-22 19:07:32Z.
pub(crate) fn show_time(unix_ms: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1000)) {
        Ok(at) => {
            let (hour, minute, second) = at.to_hms();
            format!("{} {hour:02}:{minute:02}:{second:02}Z", at.date())
        }
        Err(_) => format!("{unix_ms} ms"),
    }
}

/// A method of a node, or of a kind of node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    pub(crate) node: String,
    pub(crate) name: String,
}

/// `proxy-1.ping`. Names of nodes may have dots, those of methods have none.
pub(crate) fn method(text: &str) -> Result<Method, String> {
    match text.rsplit_once('.') {
        Some((node, name)) if !node.is_empty() && !name.is_empty() => {
            Ok(Method { node: node.to_owned(), name: name.to_owned() })
        }
        _ => {
            Err("write NODE.METHOD, as in proxy-1.ping; protoplex inspect NODE tells which there are"
                .to_owned())
        }
    }
}

/// A trace's id (W3C Trace Context, section 3.2.2.3).
pub(crate) fn trace_id(text: &str) -> Result<String, String> {
    let id = text.to_ascii_lowercase();
    let is_hex = id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_hex && id.bytes().any(|digit| digit != b'0') {
        Ok(id)
    } else {
        Err("a trace's id has 32 hexadecimal digits, not all of them 0".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("1000"), Ok(1000));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1.5 GB"), Ok(1_500_000_000));
        assert!(size("12 parsecs").unwrap_err().contains("no unit of size"));
        assert!(size("MiB").is_err());
        assert!(size("99999999999TiB").is_err());
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(3 << 29), "1.5 GiB");
    }

    #[test]
    fn parts_of_requests() {
        assert_eq!(url("http://localhost:8080/x").map(|url| url.path().to_owned()), Ok("/x".to_owned()));
        for wrong in ["localhost:8080", "/x", "ftp://x/", "http://"] {
            assert!(url(wrong).unwrap_err().contains("write"), "{wrong}");
        }
        for wrong in ["127.0.0.1:3000", "localhost:3000", "https://127.0.0.1:1", "http://127.0.0.1:1/x"] {
            assert!(backend(wrong).unwrap_err().contains("http://127.0.0.1:3000"), "{wrong}");
        }
        assert!(backend("http://127.0.0.1:3000").is_ok());
        assert_eq!(header("X-A:  b ").unwrap().1, "b");
        assert!(header("nothing").is_err() && header("a b: c").is_err() && header("a: b\nc").is_err());
        assert_eq!(path("files").unwrap_err(), "a path begins with /: did you mean /files?");
    }

    #[test]
    fn times() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert!(duration("2 fortnights").is_err());
        assert_eq!(show_uptime(Duration::from_secs(2027)), "0:33:47");
        assert_eq!(show_time(1_795_374_452_999), "2026-11-22 19:07:32Z");
        assert_eq!(show_uptime(Duration::from_secs(90_061)), "1 day, 1:01:01");
    }

    #[test]
    fn a_method_is_behind_the_last_dot() {
        let good = method("proxy-1.example.ping").unwrap();
        assert_eq!((good.node.as_str(), good.name.as_str()), ("proxy-1.example", "ping"));
        for wrong in ["", "ping", ".ping", "proxy-1."] {
            assert!(method(wrong).unwrap_err().contains("proxy-1.ping"), "{wrong}");
        }
    }

    #[test]
    fn a_trace_has_an_id_of_32_digits() {
        assert_eq!(trace_id(&"0A".repeat(16)).unwrap(), "0a".repeat(16));
        for wrong in ["", "0a", &"0".repeat(32), &"g".repeat(32)] {
            assert!(trace_id(wrong).is_err(), "{wrong}");
        }
    }
}
