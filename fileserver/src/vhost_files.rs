//! Files by virtual host and path: which content a site has there, by the datastore, kept as long as nobody says otherwise.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use metrics::counter;
use protoplex_wire::proto::{self, FindSiteRequest};

use crate::datastore::{Client, Datastore};
use crate::host::VirtualHost;
use crate::path::FilePath;
use crate::reference::Reference;
use crate::registrations::{Registration, Registrations};

/// Sites that a child remembers, those without a file included.
const SITES_MAX: NonZeroUsize = NonZeroUsize::new(32_768).expect("not zero");
/// How long one look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// The datastore is away, or not known yet. What is remembered is served all the same.
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
}

impl VhostFiles {
    pub(crate) fn new(
        datastore: impl Fn() -> Option<Client> + 'static,
        registrations: Rc<Registrations>,
    ) -> Self {
        Self { datastore: Datastore::new(datastore), registrations, known: RefCell::default() }
    }

    /// What a site has at a path; none where it has nothing.
    ///
    /// The registration comes before the look-up, so that an upload in between is never hidden. Without a registration
    /// nothing is remembered.
    pub(crate) async fn find(
        &self,
        host: &VirtualHost,
        path: &FilePath,
    ) -> Result<Option<Rc<Site>>, SiteError> {
        let key = (host.clone(), path.clone());
        if let Some(site) = self.known.borrow_mut().find(&key) {
            match site {
                Some(_) => counter!("protoplex_fileserver_site_hits_total").increment(1),
                None => counter!("protoplex_fileserver_negative_hits_total", "of" => "site").increment(1),
            }
            return Ok(site);
        }
        let registration = self.registrations.register(&format!("site:{host}:{path}")).await;
        let site = self.look_up(host, path).await?.map(Rc::new);
        if let Some(registration) = registration {
            self.known.borrow_mut().keep(key, site.clone(), registration);
        }
        Ok(site)
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

/// Answers that count for as long as their registration stands.
struct Known(LruCache<Key, (Option<Rc<Site>>, Registration)>);

impl Default for Known {
    fn default() -> Self {
        Self(LruCache::new(SITES_MAX))
    }
}

impl Known {
    fn find(&mut self, key: &Key) -> Option<Option<Rc<Site>>> {
        let (site, registration) = self.0.get(key)?;
        if registration.stands() {
            return Some(site.clone());
        }
        self.0.pop(key);
        None
    }

    fn keep(&mut self, key: Key, site: Option<Rc<Site>>, registration: Registration) {
        if registration.stands() {
            self.0.put(key, (site, registration));
        }
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
            assert_eq!(known.find(&key("/a")), Some(answer));
            assert_eq!(known.find(&key("/b")), None);
            registration.invalidate();
            assert_eq!(known.find(&key("/a")), None);
        }
    }

    #[test]
    fn an_upload_between_registration_and_look_up_is_never_hidden() {
        let (mut known, registration) = (Known::default(), Registration::standing());
        registration.invalidate();
        known.keep(key("/a"), None, registration);
        assert_eq!(known.find(&key("/a")), None);
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
