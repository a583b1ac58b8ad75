//! `protoplex route`: where a request would go, step by step, by the proxy's own rules.

mod considered;

use anyhow::Context;
use http::header::HOST;
use http::{HeaderMap, Method, StatusCode};
use protoplex_proxy::key::{self, Facts, Fields};
use protoplex_proxy::table::{self, Handler, Placement, Table};
use protoplex_proxy::{placement, target};
use protoplex_wire::proto::{self, ExplainRequest};
use serde::Serialize;

use self::considered::{Considered, consider};
use crate::cli::{Common, Route};
use crate::cluster::Cluster;
use crate::handler::{now, similar};
use crate::output::{columns, print};

/// Each step is empty where the way ends before it.
#[derive(Default, Serialize)]
struct Way {
    method: String,
    host: String,
    path: String,
    /// Why which handlers match, and which don't: those that come nearest, the chosen one first.
    considered: Vec<Considered>,
    /// Further handlers, none of which matches.
    not_shown: usize,
    handler: String,
    placement: &'static str,
    /// What the key is made by.
    template: String,
    key: String,
    pool: String,
    members: Vec<String>,
    /// Who would answer now; for an owned key without an owner it is chosen by the first request.
    member: String,
    address: String,
    epoch: u64,
    /// Who an owned key without an owner would be given to, if it was asked for now.
    next_member: String,
    outcome: Outcome,
    /// The answer's, where the proxy gives it itself.
    status: Option<u16>,
    why: String,
}

/// What comes of it, for scripts.
#[derive(Clone, Copy, Default, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// A member answers.
    #[default]
    Relayed,
    /// The seed waits for who owned the key to say so.
    Recovering,
    BadRequest,
    /// No handler matches.
    NotFound,
    /// Nobody in the pool can take it.
    NoMember,
}

impl Way {
    fn ends(&mut self, outcome: Outcome, why: String) {
        let status = match outcome {
            Outcome::Relayed | Outcome::Recovering => None,
            Outcome::BadRequest => Some(StatusCode::BAD_REQUEST),
            Outcome::NotFound => Some(StatusCode::NOT_FOUND),
            Outcome::NoMember => Some(StatusCode::SERVICE_UNAVAILABLE),
        };
        (self.outcome, self.status, self.why) = (outcome, status.map(|status| status.as_u16()), why);
    }
}

/// What is asked about, in the proxy's terms.
struct Request {
    headers: Fields,
    query: String,
    form: String,
    client_ip: std::net::IpAddr,
    zone: String,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Route) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let way = explain(&cluster, command).await?;
    print(common.json, &way, text)?;
    Ok(())
}

/// The steps of a request, in the proxy's order; each may be the last.
async fn explain(cluster: &Cluster, route: Route) -> anyhow::Result<Way> {
    let (mut way, request) = read(route)?;
    if let Err(error) = target::check(&way.path) {
        way.ends(Outcome::BadRequest, format!("{error}: the answer is 400"));
        return Ok(way);
    }
    let list = now(cluster).await?;
    let sent = sent_table(cluster, &list).await?;
    let (table, _) = Table::compile(&sent, &Table::default());
    let found = table.find(&way.host, &way.path);
    let chosen = found.as_ref().map(|(handler, _)| &*handler.name);
    (way.considered, way.not_shown) = consider(&list.handlers, &way.host, &way.path, chosen);
    let Some((handler, captures)) = found else {
        way.ends(Outcome::NotFound, unmatched(&way.considered));
        return Ok(way);
    };
    way.handler = handler.name.to_string();
    way.template = sent
        .handlers
        .iter()
        .find(|it| *it.name == *handler.name)
        .map(|it| it.key.clone())
        .unwrap_or_default();
    way.pool = handler.pool.name.to_string();
    way.members = handler.pool.members.iter().map(|member| member.id.to_string()).collect();
    let template = match &handler.placement {
        Placement::Owned(template) | Placement::Hash(template) => Some(template),
        Placement::Spread => None,
    };
    way.placement = placement_name(handler);
    if let Some(template) = template {
        let facts = Facts {
            host: &way.host,
            path: &way.path,
            captures: &captures,
            query: &request.query,
            form: request.form.as_bytes(),
            headers: &request.headers,
            client_ip: request.client_ip,
        };
        match key::key(template, &facts, handler.placement.max_key_bytes()) {
            Ok(key) => way.key = key,
            Err(error) => {
                way.ends(Outcome::BadRequest, format!("{error}: the answer is 400"));
                if key::reads_form(template) && request.form.is_empty() {
                    way.why.push_str(" (--form gives the fields of a form)");
                }
                return Ok(way);
            }
        }
    }
    if way.members.is_empty() {
        way.ends(Outcome::NoMember, lonely(&way.pool, &sent.pools));
        return Ok(way);
    }
    let asker = Asker { zone: &request.zone, pool: sent.pools.iter().find(|pool| pool.name == way.pool) };
    choose(cluster, handler, asker, &mut way).await?;
    Ok(way)
}

/// Whose request it is.
#[derive(Clone, Copy)]
struct Asker<'a> {
    /// Empty where that is not said.
    zone: &'a str,
    /// The pool that it is for, where there is one.
    pool: Option<&'a proto::Pool>,
}

impl Asker<'_> {
    /// What makes this member the one that gets a new key.
    fn why(self, member: &str) -> String {
        let Self { zone, pool } = self;
        let members = pool.map(|pool| &pool.members[..]).unwrap_or_default();
        let is_near = |it: &&proto::Member| it.zone == zone;
        match () {
            () if zone.is_empty() => "the least loaded".to_owned(),
            () if members.iter().filter(is_near).any(|it| it.id == member) => {
                format!("the least loaded of zone {zone}")
            }
            () if members.iter().any(|it| is_near(&it)) => format!(
                "the least loaded of all: those of zone {zone} have far more than their share, too much to do, or are about \
                 to leave"
            ),
            () => format!("the least loaded of all, as nobody is in zone {zone}"),
        }
    }
}

/// Which member gets it.
async fn choose(cluster: &Cluster, handler: &Handler, asker: Asker<'_>, way: &mut Way) -> anyhow::Result<()> {
    match &handler.placement {
        Placement::Owned(_) => owner(cluster, asker, way).await?,
        Placement::Hash(_) => {
            if let Some(member) =
                placement::hash(&handler.pool.members, &way.key, None, tokio::time::Instant::now())
            {
                way.member = member.id.to_string();
                way.address = member.address.to_string();
                way.why = "the key's hash falls on this member".to_owned();
            }
        }
        Placement::Spread => way.why = "each request goes to the less busy of two members".to_owned(),
    }
    Ok(())
}

fn read(route: Route) -> anyhow::Result<(Way, Request)> {
    let Route { url, headers, method, form, client_ip, zone } = route;
    let headers: HeaderMap = headers.into_iter().collect();
    let named = headers.get(HOST).map(|host| host.to_str()).transpose().context("Host is no text")?;
    let named = named.or(url.authority().map(|authority| authority.as_str()));
    let host = table::host(named).with_context(|| format!("{:?} is no host", named.unwrap_or_default()))?;
    let method = method.unwrap_or(if form.is_some() { Method::POST } else { Method::GET });
    let way = Way {
        method: method.to_string(),
        host: host.into_owned(),
        path: url.path().to_owned(),
        ..Way::default()
    };
    let (query, form) = (url.query().unwrap_or_default().to_owned(), form.unwrap_or_default());
    Ok((way, Request { headers: Fields::from(&headers), query, form, client_ip, zone }))
}

async fn owner(cluster: &Cluster, asker: Asker<'_>, way: &mut Way) -> anyhow::Result<()> {
    let question =
        ExplainRequest { pool: way.pool.clone(), key: way.key.clone(), zone: asker.zone.to_owned() };
    let told = cluster.answer(cluster.operator().await?.explain(question)).await?;
    let next = told.next.map(|owner| owner.member).unwrap_or_default();
    let outcome = match &told.owner {
        None if told.recovering => Outcome::Recovering,
        None if next.is_empty() => Outcome::NoMember,
        _ => Outcome::Relayed,
    };
    let why = match told.owner {
        Some(owner) => {
            way.member = owner.member;
            way.address = owner.address;
            way.epoch = owner.epoch;
            format!("it owns the key since epoch {}", owner.epoch)
        }
        None if told.recovering => "the seed is recovering: it waits for the last owner's report".to_owned(),
        None if next.is_empty() => {
            "nobody owns the key now, and no member can take it: the answer is 503".to_owned()
        }
        None if next == told.last_member => {
            format!("nobody owns the key now; {next} had it last, and would get it again")
        }
        None if told.last_member.is_empty() => {
            format!(
                "nobody owns the key yet: now the first request would give it to {next}, {}",
                asker.why(&next)
            )
        }
        None => format!("nobody owns the key now; {} had it last, and {next} would get it", told.last_member),
    };
    way.ends(outcome, why);
    way.next_member = next;
    Ok(())
}

/// The routing table as a proxy gets it: without what is disabled.
async fn sent_table(cluster: &Cluster, list: &proto::HandlerList) -> anyhow::Result<proto::Table> {
    let pools = cluster.status().await?.pools.into_iter().map(|pool| proto::Pool {
        name: pool.name,
        members: pool.members.into_iter().filter_map(|status| status.member).collect(),
    });
    let handlers = list.handlers.iter().filter(|handler| !handler.disabled).cloned().collect();
    Ok(proto::Table { version: list.table_version, handlers, pools: pools.collect() })
}

fn unmatched(considered: &[Considered]) -> String {
    let none = "no handler matches this host and path: the answer is 404";
    match considered.first() {
        Some(nearest) => format!("{none}; the nearest is {}: {}", nearest.handler, nearest.verdict),
        None => format!("{none}; there is no handler at all"),
    }
}

fn lonely(pool: &str, pools: &[proto::Pool]) -> String {
    let none = format!("pool {pool} has no member now: the answer is 503");
    let others = pools.iter().filter(|other| !other.members.is_empty()).map(|other| other.name.as_str());
    match similar(pool, others) {
        Some(other) => format!("{none} (there is a pool {other}, which has some)"),
        None => none,
    }
}

fn placement_name(handler: &Handler) -> &'static str {
    match &handler.placement {
        Placement::Owned(_) => "owned",
        Placement::Hash(_) => "hash",
        Placement::Spread => "spread",
    }
}

fn text(way: &Way) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut step = |name: &str, text: String| rows.push([name.to_owned(), text]);
    step("request", format!("{} (handlers don't look at the method)", way.method));
    step("host", way.host.clone());
    step("path", way.path.clone());
    for (n, it) in way.considered.iter().enumerate() {
        let name = if n == 0 { "handlers" } else { "" };
        step(name, format!("{} for {} {}: {}", it.handler, it.host, it.path, it.verdict));
    }
    if way.not_shown > 0 {
        step("", format!("and {} more, none of which matches", way.not_shown));
    }
    if !way.handler.is_empty() {
        step("handler", way.handler.clone());
        step("placement", format!("{}: {}", way.placement, meaning(way.placement)));
        if !way.key.is_empty() {
            step("key", format!("{} (made by {})", way.key, way.template));
        }
        let members = if way.members.is_empty() { "nobody now".to_owned() } else { way.members.join(", ") };
        step("pool", format!("{} ({members})", way.pool));
    }
    if !way.member.is_empty() {
        step("member", format!("{} at {}", way.member, way.address));
    }
    step("why", way.why.clone());
    columns(&rows)
}

fn meaning(placement: &str) -> &'static str {
    match placement {
        "owned" => "exactly one member owns a key",
        "hash" => "the key's hash chooses the member",
        _ => "any member may answer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_what_the_zone_had_to_do_with_it() {
        let member = |id: &str, zone: &str| proto::Member {
            id: id.to_owned(),
            zone: zone.to_owned(),
            ..proto::Member::default()
        };
        let members = vec![member("one", "a"), member("two", "b"), member("three", "")];
        let pool = proto::Pool { name: "rooms".to_owned(), members };
        let why = |zone, member| Asker { zone, pool: Some(&pool) }.why(member);
        assert_eq!(why("", "three"), "the least loaded");
        assert_eq!(why("a", "one"), "the least loaded of zone a");
        assert!(why("a", "two").starts_with("the least loaded of all: those of zone a have far more"));
        assert_eq!(why("c", "two"), "the least loaded of all, as nobody is in zone c");
        assert_eq!(Asker { zone: "", pool: None }.why("one"), "the least loaded");
    }
}
