//! Places for links, and for the bytes of reports: how many are taken at once, in all and by one name, so that nobody takes those
//! of all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

/// Clones are the same places.
#[derive(Clone)]
pub(crate) struct Places {
    shared: Arc<Shared>,
}

struct Shared {
    /// Whose they are, in the plural.
    what: &'static str,
    most: usize,
    of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// By name, of whom there are any.
    by_name: HashMap<String, usize>,
    /// It was said that there is none left.
    told: bool,
}

impl Places {
    pub(crate) fn new(what: &'static str, most: usize, of_one: usize) -> Self {
        Self { shared: Arc::new(Shared { what, most, of_one, taken: Mutex::default() }) }
    }

    /// A place for whoever has the certificate of this name, until it is dropped.
    pub(crate) fn take(&self, name: &str) -> Result<Place, Status> {
        let mut place = self.none(name);
        place.add(1)?;
        Ok(place)
    }

    /// Nothing yet, for [`Place::add`].
    pub(crate) fn none(&self, name: &str) -> Place {
        Place { shared: Arc::clone(&self.shared), name: name.to_owned(), count: 0 }
    }
}

impl Shared {
    /// Nothing panics while it is held.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Places::take`].
pub(crate) struct Place {
    shared: Arc<Shared>,
    name: String,
    count: usize,
}

impl Place {
    /// Takes so many more.
    pub(crate) fn add(&mut self, count: usize) -> Result<(), Status> {
        if count == 0 {
            return Ok(());
        }
        let Shared { what, most, of_one, .. } = *self.shared;
        let mut taken = self.shared.taken();
        let own = taken.by_name.get(&self.name).copied().unwrap_or(0);
        if own + count > of_one {
            return Err(Status::resource_exhausted(format!(
                "{} has {own} {what} here, as many as it may have",
                self.name
            )));
        }
        if taken.all + count > most {
            if !std::mem::replace(&mut taken.told, true) {
                let greatest = taken.by_name.iter().max_by_key(|(_, count)| **count);
                let (greatest, count) = greatest.map_or(("", 0), |(name, count)| (name.as_str(), *count));
                tracing::warn!(what, most, greatest, count, "the seed has no place left: others are refused");
            }
            return Err(Status::resource_exhausted(format!("the seed has as many {what} as it may have")));
        }
        taken.all += count;
        *taken.by_name.entry(self.name.clone()).or_default() += count;
        self.count += count;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        let mut taken = self.shared.taken();
        taken.all -= self.count;
        // Said anew only once there were some to spare.
        taken.told &= taken.all > self.shared.most - self.shared.most / 8;
        let own = taken.by_name.get_mut(&self.name).map(|own| {
            *own -= self.count;
            *own
        });
        if own == Some(0) {
            taken.by_name.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_all_others() {
        let places = Places::new("followers", 5, 3);
        let mut of_a: Vec<_> = (0..3).map(|_| places.take("a").unwrap()).collect();
        let refused = places.take("a").err().unwrap();
        assert_eq!(refused.message(), "a has 3 followers here, as many as it may have");
        let _of_b: Vec<_> = (0..2).map(|_| places.take("b").unwrap()).collect();
        let refused = places.take("c").err().unwrap();
        assert_eq!(refused.message(), "the seed has as many followers as it may have");
        of_a.pop();
        let c = places.take("c").unwrap();
        assert!(places.take("b").is_err());
        drop((c, of_a));
        assert_eq!(places.shared.taken().by_name.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(places.shared.taken().all, 2);
    }

    #[test]
    fn what_grows_is_bounded_together() {
        let bytes = Places::new("bytes", 100, 60);
        let (mut one, mut two, mut other) = (bytes.none("a"), bytes.none("a"), bytes.none("b"));
        one.add(40).unwrap();
        two.add(20).unwrap();
        bytes.none("d").add(0).unwrap();
        assert!(two.add(1).unwrap_err().message().starts_with("a has 60 bytes"));
        other.add(40).unwrap();
        assert_eq!(other.add(1).unwrap_err().message(), "the seed has as many bytes as it may have");
        drop(one);
        two.add(40).unwrap();
        drop((two, other, bytes.none("c")));
        let taken = bytes.shared.taken();
        assert_eq!((taken.all, taken.by_name.len()), (0, 0));
    }
}
