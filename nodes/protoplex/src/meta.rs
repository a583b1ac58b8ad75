//! How commands ask the meta ports of nodes: in plain HTTP on this machine's loopback, else over TLS, where the cluster's
//! certificate says who asks and who answers.

use anyhow::Context;
use protoplex_wire::identity::{Identity, SERVER_NAME};
use reqwest::{Certificate, Client, ClientBuilder, Url};

use crate::nodes::Found;

/// The meta port of one node.
#[derive(Clone)]
pub(crate) struct Meta {
    pub(crate) client: Client,
    base: String,
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
            return Ok(Self { client: client.build()?, base: format!("http://{}", node.meta) });
        }
        let identity =
            identity.context("its meta port wants a certificate of the cluster, which isn't here")?;
        let pem = identity.pem();
        let (certificate, key) = &*pem;
        let client = client
            .tls_certs_only([Certificate::from_pem(identity.ca_pem().as_bytes())?])
            .identity(reqwest::Identity::from_pem(format!("{certificate}\n{key}").as_bytes())?)
            .resolve(SERVER_NAME, node.meta);
        Ok(Self { client: client.build()?, base: format!("https://{SERVER_NAME}:{}", node.meta.port()) })
    }

    /// A page of it.
    pub(crate) fn url(&self, page: &str, query: &[(&str, &str)]) -> anyhow::Result<Url> {
        Ok(Url::parse_with_params(&format!("{}/{page}", self.base), query)?)
    }
}
