//! One address or several, as a configuration names them.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// `"a:1"`, `"a:1, b:1"` or `["a:1", "b:1"]`: in this order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Addresses(Vec<String>);

impl Addresses {
    /// Takes them apart and leaves out what is empty or was named before.
    pub fn new<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        let mut addresses: Vec<String> = Vec::new();
        for text in texts {
            for address in text.as_ref().split(',').map(str::trim).filter(|address| !address.is_empty()) {
                if !addresses.iter().any(|known| known == address) {
                    addresses.push(address.to_owned());
                }
            }
        }
        Self(addresses)
    }

    /// The addresses.
    pub fn into_vec(self) -> Vec<String> {
        self.0
    }

    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Named)
    }
}

struct Named;

impl<'de> Visitor<'de> for Named {
    type Value = Addresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address, or a list of them")
    }

    fn visit_str<E>(self, text: &str) -> Result<Addresses, E> {
        Ok(Addresses::new([text]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Addresses, A::Error> {
        let mut all: Vec<String> = Vec::new();
        while let Some(text) = texts.next_element()? {
            all.push(text);
        }
        Ok(Addresses::new(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_several_each_once() {
        let read = |text: &str| {
            let table: toml::Table = text.parse().unwrap();
            Addresses::deserialize(table["at"].clone()).map(Addresses::into_vec)
        };
        assert_eq!(read("at = 'a:1'").unwrap(), ["a:1"]);
        assert_eq!(read("at = 'a:1, b:1,,a:1'").unwrap(), ["a:1", "b:1"]);
        assert_eq!(read("at = ['b:1', 'a:1', 'b:1']").unwrap(), ["b:1", "a:1"]);
        assert!(read("at = ''").unwrap().is_empty());
        assert!(read("at = 1").unwrap_err().to_string().contains("an address, or a list of them"));
        assert!(read("at = [1]").is_err());
    }
}
