//! How commands ask the meta ports of nodes: in plain HTTP on this machine's loopback, else over TLS, where the cluster's
//! certificate says who asks and who answers.

use anyhow::Context;
use protoplex_wire::identity::{Identity, SERVER_NAME};
use reqwest::{Certificate, Client, ClientBuilder, StatusCode, Url};
use serde::Deserialize;

use crate::nodes::Found;

/// The meta port of one node.
#[derive(Clone)]
pub(crate) struct Meta {
    pub(crate) client: Client,
    base: Url,
}

impl Meta {
    /// Nothing is connected yet. `identity` is needed for nodes of other machines alone.
    pub(crate) fn of(
        node: &Found,
        identity: Option<&Identity>,
        client: ClientBuilder,
    ) -> anyhow::Result<Self> {
        let client = client.no_proxy();
        if node.is_local {
            return Ok(Self { client: client.build()?, base: Url::parse(&format!("http://{}", node.meta))? });
        }
        let identity =
            identity.context("its meta port wants a certificate of the cluster, which isn't here")?;
        let pem = identity.pem();
        let (certificate, key) = &*pem;
        let client = client
            .tls_certs_only([Certificate::from_pem(identity.ca_pem().as_bytes())?])
            .identity(reqwest::Identity::from_pem(format!("{certificate}\n{key}").as_bytes())?)
            .resolve(SERVER_NAME, node.meta);
        let base = Url::parse(&format!("https://{SERVER_NAME}:{}", node.meta.port()))?;
        Ok(Self { client: client.build()?, base })
    }

    /// A page of it.
    pub(crate) fn url(&self, page: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(page);
        url.query_pairs_mut().extend_pairs(query);
        url
    }
}

/// Why a meta port has refused, by its answer: the detail of a problem (RFC 9457).
pub(crate) fn refusal(status: StatusCode, body: &str) -> String {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let problem = serde_json::from_str::<Problem>(body);
    problem.map_or_else(|_| format!("its meta port answers {status}"), |problem| problem.detail)
}
