//! One keep-alive HTTP/1.1 connection. A client library would use a large part of two cores itself; this
//! one costs about as much as the kernel does.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than ingest's own deadline, so that its answer arrives.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const MAX_HEADERS: usize = 16;

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// 202, and a new event.
    Accepted,
    /// 202, and a duplicate.
    Duplicate,
    /// Anything else.
    Refused(u16),
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            read: Vec::with_capacity(1_024),
        })
    }

    /// Sends a whole request and reads the whole answer.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        timeout(ANSWER_WITHIN, async {
            self.stream.write_all(request).await?;
            self.read.clear();
            loop {
                if self.stream.read_buf(&mut self.read).await? == 0 {
                    bail!("the connection was closed instead of an answer");
                }
                if let Some(answer) = parse(&self.read)? {
                    return Ok(answer);
                }
            }
        })
        .await
        .context("no answer in time")?
    }
}

/// `None` while the answer is not complete.
fn parse(bytes: &[u8]) -> Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else {
        return Ok(None);
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |header| {
            std::str::from_utf8(header.value)?
                .parse::<usize>()
                .context("an odd content-length")
        })?;
    let Some(body) = bytes.get(head..head + length) else {
        return Ok(None);
    };
    Ok(Some(match response.code.context("no status")? {
        202 if body.windows(9).any(|part| part == b"duplicate") => Answer::Duplicate,
        202 => Answer::Accepted,
        status => Answer::Refused(status),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_complete() {
        let whole =
            b"HTTP/1.1 202 Accepted\r\ncontent-length: 22\r\n\r\n{\"status\":\"duplicate\"}";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]).expect("well formed"), None, "{cut}");
        }
        assert_eq!(parse(whole).expect("well formed"), Some(Answer::Duplicate));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(
            parse(refused).expect("well formed"),
            Some(Answer::Refused(503))
        );
    }
}
