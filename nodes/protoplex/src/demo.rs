//! The demo app that `protoplex up` deploys: a page on which a file is dropped and its progress seen live.

use protoplex_wire::proto::Asset;

use crate::deploy::asset;

const FILES: [(&str, &[u8]); 4] = [
    ("/index.html", include_bytes!("../demo/index.html")),
    ("/app.css", include_bytes!("../demo/app.css")),
    ("/app.js", include_bytes!("../demo/app.js")),
    ("/icon.svg", include_bytes!("../demo/icon.svg")),
];

/// Its assets, ready to be deployed.
pub(crate) fn assets() -> anyhow::Result<Vec<Asset>> {
    FILES.into_iter().map(|(path, bytes)| asset(path.to_owned(), bytes.to_vec())).collect()
}
