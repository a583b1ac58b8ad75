//! What `protoplex up` tells once everything runs: what is where, a token, and four commands to copy.

use std::path::{Path, PathBuf};

use protoplex_runtime::running::Running;
use serde_json::json;

use crate::output::columns;

/// Everything that the text names.
pub(super) struct Welcome<'a> {
    pub data: &'a Path,
    pub logs: &'a Path,
    pub nodes: &'a [Running],
}

impl Welcome<'_> {
    /// The text, or the same facts as one JSON object.
    pub(super) fn text(&self, token: &str, json: bool) -> serde_json::Result<String> {
        let http = self.http();
        let https = self.origin("https", 443);
        if json {
            let facts = json!({
                "http": http, "https": https, "ca": self.authority(), "data": self.data, "logs": self.logs,
                "token": token, "nodes": self.nodes, "commands": self.commands(&http, token),
            });
            return Ok(serde_json::to_string_pretty(&facts)? + "\n");
        }
        let mut text = format!("Protoplex {} is up.\n\n", env!("CARGO_PKG_VERSION"));
        text.push_str(&self.table());
        text.push_str(&format!("\nPublic     {http}  {https}\n"));
        if let Some(authority) = self.authority() {
            let authority = quoted(&authority);
            text.push_str(&format!("           HTTPS by a local authority: curl --cacert {authority}\n"));
        }
        text.push_str(&format!("Data       {}\nLogs       {}\n", self.data.display(), self.logs.display()));
        text.push_str(&format!("Token      {}\n           uploads below /files/, for 24 hours\n", token));
        text.push_str("\nTo try, from another terminal:\n");
        let captions = [
            format!("1. The demo app; in a browser: {http}/#token={}", token),
            "2. Watch an upload live, and upload a file of yours with the token.".to_owned(),
            "3. Get it back.".to_owned(),
            "4. Two servers of your own: one key, one server.".to_owned(),
        ];
        for (caption, commands) in captions.iter().zip(self.commands(&http, token)) {
            text.push_str(&format!("\n  # {caption}\n"));
            for command in commands {
                text.push_str(&format!("  {command}\n"));
            }
        }
        text.push_str("\nCtrl-C drains and ends everything; the next `up` finds it all again.\n");
        Ok(text)
    }

    /// Where browsers on this machine find the proxy; empty where it serves HTTPS alone.
    pub(crate) fn http(&self) -> String {
        self.origin("http", 80)
    }

    /// The certificate of the authority that a proxy without a configured one made.
    fn authority(&self) -> Option<PathBuf> {
        let file = self.data.join("tls/ca.pem");
        file.exists().then_some(file)
    }

    fn commands(&self, http: &str, token: &str) -> [Vec<String>; 4] {
        // An id belongs to the token that used it first, and each `up` has a token of its own.
        let id = format!("first-{:08x}", rand::random::<u32>());
        let program = std::env::current_exe().unwrap_or_else(|_| "protoplex".into());
        let program = format!("{} --data {}", quoted(&program), quoted(self.data));
        [
            vec![format!("curl {http}/")],
            vec![
                format!("curl -N '{http}/.well-known/mercure?topic=upload/{id}'"),
                format!(
                    "curl -T big.iso -H 'Authorization: Bearer {}' -H 'Upload-Id: {id}' {http}/files/big.iso",
                    token
                ),
            ],
            vec![format!("curl --compressed -o big.copy {http}/files/big.iso")],
            vec![
                format!("{program} join --pool rooms --backend http://127.0.0.1:3000"),
                format!("{program} join --pool rooms --backend http://127.0.0.1:3001"),
                format!(
                    "{program} handler add rooms --path '/room/{{room}}/{{*rest}}' --key 'room:{{room}}' --pool rooms"
                ),
                format!("curl {http}/room/42/"),
            ],
        ]
    }

    /// The proxy's address as a browser on this machine would write it.
    fn origin(&self, scheme: &str, usual_port: u16) -> String {
        let proxies = self.nodes.iter().filter(|node| node.kind == "proxy");
        let mut addresses = proxies.flat_map(|node| &node.addresses).filter(|address| address.name == scheme);
        let Some(address) = addresses.next().map(|address| address.address) else { return String::new() };
        let local = address.ip().is_loopback() || address.ip().is_unspecified();
        let host = match address {
            _ if local => "localhost".to_owned(),
            std::net::SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
            std::net::SocketAddr::V4(v4) => v4.ip().to_string(),
        };
        if address.port() == usual_port {
            format!("{scheme}://{host}")
        } else {
            format!("{scheme}://{host}:{}", address.port())
        }
    }

    fn table(&self) -> String {
        let rows: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let mut listens: Vec<String> = Vec::new();
                for address in node.addresses.iter().filter(|address| address.child.is_none()) {
                    let listen = format!("{} {}", address.name, address.address);
                    if !listens.contains(&listen) {
                        listens.push(listen);
                    }
                }
                [node.node.clone(), format!("pid {}", node.pid), listens.join("  ")]
            })
            .collect();
        columns(&rows)
    }
}

/// As a shell reads it back, whatever is in it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
