//! Files by virtual host and path: which content a site has there, by the datastore, kept as long as nobody says otherwise,
//! and while the datastore can't be asked.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use metrics::counter;
use protoplex_wire::proto::{self, FindSiteRequest};

use crate::datastore::{Client, Datastore};
use crate::host::VirtualHost;
use crate::path::FilePath;
use crate::reference::Reference;
use crate::registrations::{Promise, Registration, Registrations};

/// Sites that a child remembers, those without a file included.
const SITES_MAX: NonZeroUsize = NonZeroUsize::new(32_768).expect("not zero");
/// How long one look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// While the datastore is away, how often it is asked about what is known all the same.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);

/// What a site has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) reference: Reference,
    pub(crate) content_type: String,
    pub(crate) modified: SystemTime,
    /// False while the body is only on the node that took the upload.
    pub(crate) stored: bool,
}

/// Why it is not known what a site has.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SiteError {
    /// The datastore is away, or not known yet, and the path was never asked for before.
    #[error("the datastore is not available: {0}")]
    Away(String),
    /// It says something that can't be so.
    #[error("the datastore's record is damaged")]
    Damaged,
}

type Key = (VirtualHost, FilePath);

/// The sites as one child sees them.
pub(crate) struct VhostFiles {
    datastore: Datastore,
    registrations: Rc<Registrations>,
    known: RefCell<Known>,
    /// When the datastore is asked again about what is known; none while it answers.
    away_until: Cell<Option<Instant>>,
}

/// What is known of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is so.
    Now(Option<Rc<Site>>),
    /// It was so when it could be asked for last (RFC 5861 section 4).
    Before(Rc<Site>),
}

impl VhostFiles {
    pub(crate) fn new(
        datastore: impl Fn() -> Option<Client> + 'static,
        registrations: Rc<Registrations>,
    ) -> Self {
        let (known, away_until) = (RefCell::default(), Cell::default());
        Self { datastore: Datastore::new(datastore), registrations, known, away_until }
    }

    /// What a site has at a path; none where it has nothing.
    ///
    /// The registration comes before the look-up, so that an upload in between is never hidden. What was looked up without
    /// a registration, or has lost it, counts where the datastore can't be asked, and only then. That there is nothing
    /// never does: not found is said by whoever knows.
    pub(crate) async fn find(&self, host: &VirtualHost, path: &FilePath) -> Result<Found, SiteError> {
        let key = (host.clone(), path.clone());
        let (site, promise) = self.known.borrow_mut().find(&key).unzip();
        if let (Some(site), Some(Promise::Stands)) = (&site, promise) {
            match site {
                Some(_) => counter!("protoplex_fileserver_site_hits_total").increment(1),
                None => counter!("protoplex_fileserver_negative_hits_total", "of" => "site").increment(1),
            }
            return Ok(Found::Now(site.clone()));
        }
        let before = site.flatten();
        if let Some(site) = &before
            && self.is_away()
        {
            return Ok(stale(site));
        }
        let registration = self.registrations.register(&format!("site:{host}:{path}")).await;
        match (self.look_up(host, path).await, before) {
            (Ok(site), _) => {
                let site = site.map(Rc::new);
                let registration = registration.unwrap_or_else(Registration::none);
                self.away_until.set(None);
                self.known.borrow_mut().keep(key, site.clone(), registration);
                Ok(Found::Now(site))
            }
            (Err(SiteError::Away(_)), Some(site)) => {
                self.away_until.set(Some(Instant::now() + AWAY_INTERVAL));
                Ok(stale(&site))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether there is no use in asking the datastore now. True for all but one in each interval, so that it is one
    /// request that waits for it.
    fn is_away(&self) -> bool {
        let Some(until) = self.away_until.get() else { return false };
        let now = Instant::now();
        if now >= until {
            self.away_until.set(Some(now + LOOKUP_TIMEOUT));
        }
        now < until
    }

    async fn look_up(&self, host: &VirtualHost, path: &FilePath) -> Result<Option<Site>, SiteError> {
        let request = FindSiteRequest { host: host.to_string(), path: path.to_string() };
        let call = async |mut client: Client| client.find_site(request.clone()).await;
        let reply = self.datastore.ask_again(LOOKUP_TIMEOUT, call).await;
        let reply = reply.map_err(|status| SiteError::Away(status.message().to_owned()))?;
        reply.site.map(Site::try_from).transpose()
    }
}

impl TryFrom<proto::Site> for Site {
    type Error = SiteError;

    fn try_from(site: proto::Site) -> Result<Self, SiteError> {
        let file = site.file.ok_or(SiteError::Damaged)?;
        Ok(Self {
            reference: file.reference.parse().map_err(|_| SiteError::Damaged)?,
            content_type: site.content_type,
            modified: UNIX_EPOCH
                + Duration::from_millis(u64::try_from(site.updated_at_ms).unwrap_or_default()),
            stored: file.stored,
        })
    }
}

fn stale(site: &Rc<Site>) -> Found {
    counter!("protoplex_fileserver_stale_hits_total").increment(1);
    Found::Before(Rc::clone(site))
}

/// Answers, with what says how much they count.
struct Known(LruCache<Key, (Option<Rc<Site>>, Registration)>);

impl Default for Known {
    fn default() -> Self {
        Self(LruCache::new(SITES_MAX))
    }
}

impl Known {
    fn find(&mut self, key: &Key) -> Option<(Option<Rc<Site>>, Promise)> {
        let (site, registration) = self.0.get(key)?;
        match registration.promise() {
            Promise::Lost if site.is_none() => {}
            Promise::Invalidated => {}
            promise => return Some((site.clone(), promise)),
        }
        self.0.pop(key);
        None
    }

    fn keep(&mut self, key: Key, site: Option<Rc<Site>>, registration: Registration) {
        if self.0.peek(&key).is_some_and(|(_, before)| before.stands() && !registration.stands()) {
            return;
        }
        match registration.promise() {
            Promise::Invalidated => self.0.pop(&key),
            Promise::Stands | Promise::Lost => self.0.put(key, (site, registration)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        (VirtualHost::parse("example.com").unwrap(), FilePath::parse(path).unwrap())
    }

    fn site() -> Option<Rc<Site>> {
        let file = proto::StoredFile { reference: "A".repeat(128), stored: true, ..Default::default() };
        let site = proto::Site {
            content_type: "text/plain".into(),
            updated_at_ms: 1_000,
            file: Some(file),
            ..Default::default()
        };
        Some(Rc::new(site.try_into().unwrap()))
    }

    #[test]
    fn answers_count_while_their_registration_stands() {
        for answer in [site(), None] {
            let (mut known, registration) = (Known::default(), Registration::standing());
            assert_eq!(known.find(&key("/a")), None);
            known.keep(key("/a"), answer.clone(), registration.clone());
            assert_eq!(known.find(&key("/a")), Some((answer, Promise::Stands)));
            assert_eq!(known.find(&key("/b")), None);
            registration.invalidate();
            assert_eq!(known.find(&key("/a")), None);
        }
    }

    #[test]
    fn of_what_has_lost_its_registration_a_site_is_remembered_and_an_absence_is_not() {
        let (mut known, registration) = (Known::default(), Registration::standing());
        known.keep(key("/a"), site(), registration.clone());
        known.keep(key("/b"), None, registration.clone());
        registration.lose();
        assert_eq!(known.find(&key("/a")), Some((site(), Promise::Lost)));
        assert_eq!(known.find(&key("/b")), None);
    }

    #[test]
    fn what_was_looked_up_without_a_registration_takes_the_place_of_nothing_better() {
        let mut known = Known::default();
        known.keep(key("/a"), site(), Registration::none());
        assert_eq!(known.find(&key("/a")), Some((site(), Promise::Lost)));
        known.keep(key("/a"), None, Registration::standing());
        known.keep(key("/a"), site(), Registration::none());
        assert_eq!(known.find(&key("/a")), Some((None, Promise::Stands)));
    }

    #[test]
    fn an_upload_between_registration_and_look_up_is_never_hidden() {
        let (mut known, registration) = (Known::default(), Registration::standing());
        known.keep(key("/a"), site(), Registration::none());
        registration.invalidate();
        known.keep(key("/a"), None, registration);
        assert_eq!(known.find(&key("/a")), None, "nor is what was there before it");
    }

    #[test]
    fn a_scan_of_random_paths_is_bounded() {
        let (mut known, registration) = (Known::default(), Registration::standing());
        for number in 0..SITES_MAX.get() + 10 {
            known.keep(key(&format!("/{number}")), None, registration.clone());
        }
        assert_eq!(known.0.len(), SITES_MAX.get());
    }

    #[test]
    fn a_record_that_can_not_be_so_is_damaged() {
        let file =
            |reference: &str| Some(proto::StoredFile { reference: reference.into(), ..Default::default() });
        for file in [None, file("short"), file(&"/".repeat(128))] {
            let site = proto::Site { file, ..Default::default() };
            assert!(matches!(Site::try_from(site), Err(SiteError::Damaged)));
        }
    }
}
