//! Connections that had one request each, and then nothing.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, stdin};
use tokio::net::TcpStream;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Opens the connections one after the other, says "ready", and holds them until stdin ends.
pub(crate) async fn run(address: SocketAddr, connections: usize, path: &str, tls: bool) -> Result<()> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: idle\r\nAccept: */*\r\n\r\n");
    let connector = crate::tls::connector()?;
    let mut held: Vec<Box<dyn Stream>> = Vec::with_capacity(connections);
    for opened in 0..connections {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("after {opened} connections"))?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = match tls {
            true => Box::new(connector.connect(crate::tls::server_name(), stream).await?),
            false => Box::new(stream),
        };
        ask(&mut stream, &request).await.with_context(|| format!("after {opened} connections"))?;
        held.push(stream);
    }
    println!("ready");
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// One request, and its answer to the last byte.
async fn ask(stream: &mut Box<dyn Stream>, request: &str) -> Result<()> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(4096);
    let whole = loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
        if let Some(whole) = length(&answer)? {
            break whole;
        }
    };
    while answer.len() < whole {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
    }
    Ok(())
}

/// The length of head and body, once the head is there.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200"), "answered with {head}");
    let length = head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    Ok(Some(end + 4 + length.context("an answer without Content-Length")??))
}
