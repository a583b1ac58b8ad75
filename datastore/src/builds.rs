//! An app build as it comes in: what it may have, and the digest over all of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use protoplex_wire::proto::Asset;
use sha2::{Digest, Sha256};

use crate::scope;
use crate::store::{StoreError, StoreResult};

/// The builds that are kept for each host pattern, the current one included.
pub(crate) const KEPT_BUILDS: u32 = 3;
/// The largest form (as it is, gzip, brotli) of one asset.
pub(crate) const MAX_ASSET_BYTES: usize = 16 << 20;
/// The largest build: its assets as they are, without their compressed forms.
const MAX_BUILD_BYTES: u64 = 256 << 20;
/// The most assets of a build.
const MAX_ASSETS: usize = 10_000;

/// The assets of a build so far, each by its digest.
#[derive(Default)]
pub(crate) struct Manifest {
    digests: BTreeMap<String, [u8; 32]>,
    bytes: u64,
}

/// What a whole build comes to.
pub(crate) struct Sum {
    /// Hex SHA-256 over the assets, the same in whatever order they came.
    pub(crate) digest: String,
    pub(crate) assets: u32,
    pub(crate) bytes: u64,
}

impl Manifest {
    /// Counts one asset in, or says why the build can't have it.
    pub(crate) fn add(&mut self, asset: &Asset) -> StoreResult<()> {
        scope::check_path(&asset.path)?;
        let largest = asset.identity.len().max(asset.gzip.len()).max(asset.brotli.len());
        if largest > MAX_ASSET_BYTES {
            return Err(StoreError::Invalid(format!(
                "{} has {largest} bytes, over the limit of {MAX_ASSET_BYTES} for one asset",
                asset.path
            )));
        }
        self.bytes += asset.identity.len() as u64;
        if self.bytes > MAX_BUILD_BYTES {
            return Err(StoreError::Invalid(format!("the build has over {MAX_BUILD_BYTES} bytes")));
        }
        if self.digests.len() == MAX_ASSETS {
            return Err(StoreError::Invalid(format!("the build has over {MAX_ASSETS} assets")));
        }
        match self.digests.entry(asset.path.clone()) {
            Entry::Occupied(_) => Err(StoreError::Invalid(format!("the build has {} twice", asset.path))),
            Entry::Vacant(vacant) => {
                vacant.insert(digest(asset));
                Ok(())
            }
        }
    }

    /// No asset is missing.
    pub(crate) fn finish(self) -> StoreResult<Sum> {
        if self.digests.is_empty() {
            return Err(StoreError::Invalid("the build has no asset".to_owned()));
        }
        let mut hash = Sha256::new();
        self.digests.values().for_each(|digest| hash.update(digest));
        Ok(Sum {
            digest: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            assets: u32::try_from(self.digests.len()).unwrap_or(u32::MAX),
            bytes: self.bytes,
        })
    }
}

/// NUL, which neither a path nor a content type can have, ends both; the compressed forms follow from the content.
fn digest(asset: &Asset) -> [u8; 32] {
    let fields = [asset.path.as_bytes(), b"\0", asset.content_type.as_bytes(), b"\0", &asset.identity[..]];
    fields.iter().fold(Sha256::new(), |hash, field| hash.chain_update(field)).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset(path: &str, identity: &[u8]) -> Asset {
        Asset {
            path: path.to_owned(),
            content_type: "text/html".to_owned(),
            identity: identity.to_vec(),
            ..Default::default()
        }
    }

    fn sum(assets: &[Asset]) -> Sum {
        let mut manifest = Manifest::default();
        assets.iter().for_each(|asset| manifest.add(asset).unwrap());
        manifest.finish().unwrap()
    }

    #[test]
    fn the_digest_tells_content_but_not_order() {
        let (a, b) = (asset("/a", b"1"), asset("/b", b"2"));
        let one = sum(&[a.clone(), b.clone()]);
        assert_eq!((one.assets, one.bytes, one.digest.len()), (2, 2, 64));
        assert_eq!(sum(&[b.clone(), a.clone()]).digest, one.digest);
        assert_ne!(sum(&[a.clone(), asset("/b", b"3")]).digest, one.digest);
        assert_ne!(sum(&[a, asset("/c", b"2")]).digest, one.digest);
    }

    #[test]
    fn what_a_build_cannot_have_is_refused() {
        let refused = |manifest: &mut Manifest, asset: &Asset, why: &str| {
            let error = manifest.add(asset).unwrap_err();
            assert!(matches!(&error, StoreError::Invalid(text) if text.contains(why)), "{error}");
        };
        let mut manifest = Manifest::default();
        refused(&mut manifest, &asset("index.html", b""), "slash");
        refused(&mut manifest, &asset("/big", &vec![0; MAX_ASSET_BYTES + 1]), "/big has 16777217 bytes");
        let swollen = Asset { brotli: vec![0; MAX_ASSET_BYTES + 1], ..asset("/swollen", b"") };
        refused(&mut manifest, &swollen, "/swollen has 16777217 bytes");
        manifest.add(&asset("/a", b"")).unwrap();
        refused(&mut manifest, &asset("/a", b""), "/a twice");
        manifest.bytes = MAX_BUILD_BYTES;
        refused(&mut manifest, &asset("/b", b"1"), "over 268435456 bytes");
        assert!(matches!(Manifest::default().finish(), Err(StoreError::Invalid(_))));
    }

    #[test]
    fn a_build_has_a_limited_number_of_assets() {
        let mut manifest = Manifest::default();
        for n in 0..MAX_ASSETS {
            manifest.add(&asset(&format!("/{n}"), b"")).unwrap();
        }
        assert!(matches!(manifest.add(&asset("/one-more", b"")), Err(StoreError::Invalid(_))));
    }
}
