//! How a method of a node is called: `POST /rpc/METHOD` on its meta port.

use protoplex_runtime::meta::OPERATOR;
use protoplex_wire::identity::Identity;
use reqwest::{ClientBuilder, StatusCode};
use serde_json::Value;

use crate::cli::{Common, Usage};
use crate::cluster::{self, Unreachable};
use crate::handler::operator;
use crate::meta::{Meta, refusal};
use crate::nodes::Found;
use crate::settings::Settings;

/// How one node is asked.
#[derive(Clone)]
pub(crate) struct Caller {
    node: String,
    found: Found,
    meta: Meta,
}

impl Caller {
    /// Nothing is connected yet.
    pub(crate) fn of(
        (node, found): (&str, &Found),
        identity: Option<&Identity>,
        client: ClientBuilder,
    ) -> anyhow::Result<Self> {
        let meta = Meta::of(found, identity, client)?;
        Ok(Self { node: node.to_owned(), found: found.clone(), meta })
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether it still reaches that node.
    pub(crate) fn is_for(&self, found: &Found) -> bool {
        self.found.meta == found.meta && self.found.is_local == found.is_local
    }

    /// Calls a method with an object of JSON as its arguments.
    pub(crate) async fn call(
        &self,
        method: &str,
        arguments: &str,
        trace: Option<&str>,
    ) -> anyhow::Result<Value> {
        let answer = self.send(method, arguments, trace).await;
        let (status, body) = answer
            .map_err(|error| Unreachable::new(format!("{} does not answer: {}", self.node, why(&error))))?;
        if status == StatusCode::OK {
            return Ok(serde_json::from_str(&body)?);
        }
        let said = refusal(status, &body);
        match status {
            StatusCode::BAD_REQUEST => Err(Usage(format!("{}: {said}", self.node)).into()),
            _ => anyhow::bail!("{}: {said}", self.node),
        }
    }

    /// Calls a method; gives the status and the whole body of the answer.
    pub(crate) async fn send(
        &self,
        method: &str,
        arguments: &str,
        trace: Option<&str>,
    ) -> reqwest::Result<(StatusCode, String)> {
        // Of another machine's node a loopback address may be known only, where another one answers.
        let url = self.meta.url(&format!("rpc/{method}"), &[("node", &self.node)]);
        let request = self.meta.client.post(url).header(OPERATOR, operator::in_header());
        let request = match trace {
            Some(trace) => request.header("traceparent", trace),
            None => request,
        };
        let answer = request.body(arguments.to_owned()).send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

/// Of the operator, for nodes of other machines.
pub(crate) fn identity(common: &Common) -> anyhow::Result<Option<Identity>> {
    Ok(cluster::identity(common, &Settings::load(common)?))
}

/// The innermost cause says it in the fewest words.
pub(crate) fn why(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}
