//! The fields of a head or a trailer section: one text of canonical lines, and where in it each of them is.

use std::cell::RefCell;
use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::known::Known;

/// Fields in the order in which they came.
///
/// The text has the form in which it is sent, so that passing fields on is a copy of those that are kept: `Name: value`
/// and CRLF, one after the other, rebuilt from what was understood. A field that is removed leaves a gap.
pub struct Fields {
    /// Begins with what the head has besides, a request's target.
    text: Vec<u8>,
    entries: Vec<Entry>,
}

/// A line of the text.
#[derive(Clone, Copy)]
struct Entry {
    start: u32,
    name: u16,
    value: u32,
    known: Known,
}

/// A field as it is read.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    /// All of it, as it is sent.
    line: &'a [u8],
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) known: Known,
}

/// Between a name and its value.
const COLON: &[u8] = b": ";
const LINE_END: &[u8] = b"\r\n";
/// The longest name: what an [`Entry`] can say of it.
pub(crate) const MAX_NAME_BYTES: usize = u16::MAX as usize;

impl Entry {
    fn end(self) -> usize {
        self.start as usize + usize::from(self.name) + COLON.len() + self.value as usize + LINE_END.len()
    }
}

/// How long a field is as it is sent.
pub(crate) fn line_bytes(name: &[u8], value: &[u8]) -> usize {
    name.len() + COLON.len() + value.len() + LINE_END.len()
}

impl Fields {
    /// None yet. Their memory comes from a free list of the thread's, and goes back there.
    pub(crate) fn new() -> Self {
        #[cfg(test)]
        HELD.set(HELD.get() + 1);
        FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Self {
            text: Vec::with_capacity(TEXT_BYTES),
            entries: Vec::with_capacity(ENTRIES),
        })
    }

    /// Puts text before all fields; only while there are none.
    pub(crate) fn lead(&mut self, text: &[u8]) {
        debug_assert!(self.entries.is_empty(), "the lead comes first");
        self.text.clear();
        self.text.extend_from_slice(text);
    }

    /// That text.
    pub(crate) fn leading(&self, length: usize) -> &[u8] {
        &self.text[..length]
    }

    /// Adds a field behind the others. Name and value must be sound (RFC 9110 sections 5.1 and 5.5).
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_known(Known::of(name), name, value);
    }

    pub(crate) fn push_known(&mut self, known: Known, name: &[u8], value: &[u8]) {
        debug_assert!(name.len() <= MAX_NAME_BYTES, "heads are limited, and so are names");
        let entry = Entry {
            start: self.text.len() as u32,
            name: name.len() as u16,
            value: value.len() as u32,
            known,
        };
        for part in [name, COLON, value, LINE_END] {
            self.text.extend_from_slice(part);
        }
        self.entries.push(entry);
    }

    /// Adds a whole line, which must be in the form in which it is sent: one blank behind the colon, CRLF at the end.
    pub(crate) fn push_line(&mut self, known: Known, line: &[u8], name_bytes: usize) {
        let entry = Entry {
            start: self.text.len() as u32,
            name: name_bytes as u16,
            value: (line.len() - name_bytes - COLON.len() - LINE_END.len()) as u32,
            known,
        };
        self.text.extend_from_slice(line);
        self.entries.push(entry);
    }

    /// Adds a field of another head as it is.
    pub(crate) fn push_copy(&mut self, field: Field<'_>) {
        self.push_line(field.known, field.line, field.name.len());
    }

    /// Adds a field whose value is of several parts.
    pub(crate) fn push_parts(&mut self, known: Known, name: &[u8], value: &[&[u8]]) {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(COLON);
        let length = value.iter().map(|part| part.len() as u32).sum();
        value.iter().for_each(|part| self.text.extend_from_slice(part));
        self.text.extend_from_slice(LINE_END);
        self.entries.push(Entry { start, name: name.len() as u16, value: length, known });
    }

    /// Keeps the fields that are wanted.
    pub(crate) fn retain(&mut self, mut wanted: impl FnMut(Field<'_>) -> bool) {
        let text = &self.text;
        self.entries.retain(|entry| wanted(field(text, *entry)));
    }

    /// Removes all fields of a name.
    pub fn remove(&mut self, name: &HeaderName) {
        self.retain(|field| !field.is(name));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| field(&self.text, *entry))
    }

    /// The values of the fields that are known as this.
    pub(crate) fn known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let entries = self.entries.iter().filter(move |entry| entry.known == known);
        entries.map(|entry| field(&self.text, *entry).value)
    }

    /// The value of the first field of a name, without blanks around it.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.iter().find(|field| field.is(name)).map(|field| field.value)
    }

    /// The same by a name in any case.
    pub fn get_named(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The values of all fields of a name, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(|field| field.is(name)).map(|field| field.value)
    }

    /// The names of all fields as they were sent, in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().map(|field| field.name)
    }

    /// Whether there is a field of this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a field behind the others.
    pub fn append(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.push(name.as_str().as_bytes(), value.as_bytes());
    }

    /// Writes the lines of the fields that are wanted behind what `out` has: one copy for each run of them.
    pub(crate) fn write(&self, out: &mut Vec<u8>, wanted: impl Fn(Known) -> bool) {
        let (mut from, mut to) = (0, 0);
        for entry in self.entries.iter().filter(|entry| wanted(entry.known)) {
            if entry.start as usize != to {
                out.extend_from_slice(&self.text[from..to]);
                from = entry.start as usize;
            }
            to = entry.end();
        }
        out.extend_from_slice(&self.text[from..to]);
    }

    /// The fields as the `http` crate has them. What it would not take can't be in a sound head.
    pub(crate) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.len());
        for field in self.iter() {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(field.name), HeaderValue::from_bytes(field.value))
            {
                map.append(name, value);
            }
        }
        map
    }

    pub(crate) fn extend(&mut self, map: &HeaderMap) {
        for (name, value) in map {
            self.append(name, value);
        }
    }
}

fn field(text: &[u8], entry: Entry) -> Field<'_> {
    let name_end = entry.start as usize + usize::from(entry.name);
    let value = name_end + COLON.len();
    Field {
        line: &text[entry.start as usize..entry.end()],
        name: &text[entry.start as usize..name_end],
        value: &text[value..value + entry.value as usize],
        known: entry.known,
    }
}

impl Field<'_> {
    pub(crate) fn is(&self, name: &HeaderName) -> bool {
        self.name.eq_ignore_ascii_case(name.as_str().as_bytes())
    }
}

impl From<&HeaderMap> for Fields {
    fn from(map: &HeaderMap) -> Self {
        let mut fields = Self::new();
        fields.extend(map);
        fields
    }
}

impl Clone for Fields {
    fn clone(&self) -> Self {
        let mut copy = Self::new();
        copy.text.extend_from_slice(&self.text);
        copy.entries.extend_from_slice(&self.entries);
        copy
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        f.debug_map().entries(self.iter().map(|field| (text(field.name), text(field.value)))).finish()
    }
}

/// What a common head needs.
const TEXT_BYTES: usize = 1024;
const ENTRIES: usize = 24;
/// What is larger isn't kept for others.
const MAX_FREE_BYTES: usize = 8 * 1024;
/// So many at most are kept unused in a thread.
const MAX_FREE: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Fields>> = const { RefCell::new(Vec::new()) };
    #[cfg(test)]
    static HELD: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many heads of this thread are in use.
#[cfg(test)]
pub(crate) fn held() -> usize {
    HELD.get()
}

impl Drop for Fields {
    fn drop(&mut self) {
        #[cfg(test)]
        let _ =
            HELD.try_with(|held| held.set(held.get().saturating_sub(usize::from(self.text.capacity() > 0))));
        if self.text.capacity() == 0 || self.text.capacity() > MAX_FREE_BYTES {
            return;
        }
        let (mut text, mut entries) = (std::mem::take(&mut self.text), std::mem::take(&mut self.entries));
        text.clear();
        entries.clear();
        // The list is gone where its thread ends.
        let _ = FREE.try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && free.len() < MAX_FREE
            {
                free.push(Self { text, entries });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use http::header::{COOKIE, HOST, TE};

    use super::*;

    fn fields() -> Fields {
        let mut fields = Fields::new();
        fields.lead(b"/x");
        fields.push(b"Host", b"a");
        fields.push(b"TE", b"gzip");
        fields.push(b"cookie", b"a=b");
        fields.push(b"Cookie", b"");
        fields
    }

    fn written(fields: &Fields, wanted: impl Fn(Known) -> bool) -> String {
        let mut out = b">".to_vec();
        fields.write(&mut out, wanted);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_kept_is_written_as_it_is_to_be_sent() {
        let mut fields = fields();
        assert_eq!(written(&fields, |_| true), ">Host: a\r\nTE: gzip\r\ncookie: a=b\r\nCookie: \r\n");
        assert_eq!(
            written(&fields, |known| known != Known::Host),
            ">TE: gzip\r\ncookie: a=b\r\nCookie: \r\n"
        );
        assert_eq!(written(&fields, |known| known != Known::Te), ">Host: a\r\ncookie: a=b\r\nCookie: \r\n");
        fields.remove(&COOKIE);
        fields.push_parts(Known::Other, b"X", &[b"1", b", ", b"2"]);
        assert_eq!(written(&fields, |known| known != Known::Te), ">Host: a\r\nX: 1, 2\r\n");
        assert_eq!(written(&fields, |_| false), ">");
        assert_eq!(fields.leading(2), b"/x");
    }

    #[test]
    fn a_line_is_the_same_as_its_parts() {
        let (mut parts, mut lines) = (fields(), fields());
        parts.push(b"X-Y", b"");
        parts.push(b"Te", b"b");
        lines.push_line(Known::Other, b"X-Y: \r\n", 3);
        lines.push_line(Known::Te, b"Te: b\r\n", 2);
        let mut copies = Fields::new();
        copies.lead(b"/x");
        lines.iter().for_each(|field| copies.push_copy(field));
        for other in [lines, copies] {
            assert_eq!(
                written(&other, |known| known != Known::Host),
                written(&parts, |known| known != Known::Host)
            );
            assert_eq!(other.known(Known::Te).collect::<Vec<_>>(), [&b"gzip"[..], b"b"]);
            assert_eq!(other.get_named(b"x-y"), Some(&b""[..]));
        }
    }

    #[test]
    fn fields_are_found_in_any_case_and_in_order() {
        let fields = fields();
        assert_eq!(fields.get(&HOST), Some(&b"a"[..]));
        assert_eq!(fields.get_all(&COOKIE).collect::<Vec<_>>(), [&b"a=b"[..], b""]);
        assert!(fields.contains(&TE) && !fields.contains(&http::header::ETAG));
        assert_eq!(fields.known(Known::Te).collect::<Vec<_>>(), [b"gzip"]);
        assert_eq!(fields.to_map().get_all(COOKIE).iter().count(), 2);
    }

    #[test]
    fn memory_is_used_again_and_nothing_is_left_in_it() {
        drop(fields());
        let kept = FREE.with_borrow(Vec::len);
        let again = Fields::new();
        assert_eq!(FREE.with_borrow(Vec::len), kept - 1);
        assert!(again.is_empty() && written(&again, |_| true) == ">");
    }
}
