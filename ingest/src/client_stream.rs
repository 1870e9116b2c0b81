//! A client's connection, below actix.
//!
//! Some requests never reach a handler: actix itself answers requests that are not HTTP, or whose
//! head is too large or too slow, and offers no hook for these answers. They have no body and are
//! not counted. This module replaces them with the same problem body that every other refusal has,
//! and counts them. It also limits the size of a head before actix parses it, because actix panics
//! on a header name of more than 64 KiB.
//!
//! Only the first head of a connection is limited. Later ones follow a request with a good
//! signature; after any other request the connection is closed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::rt::net::TcpStream;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{answer::Answer, metrics::Metrics};

/// The largest request line and headers, in bytes. The webhook headers take 5 KiB at most.
pub const MAX_HEAD: usize = 32 * 1024;

/// A client's TCP stream.
pub struct ClientStream {
    stream: TcpStream,
    metrics: Metrics,
    head: Head,
    /// Bytes to write instead of actix's own answer.
    refusal: Bytes,
}

/// How much of the connection's first head was read.
#[derive(Debug)]
enum Head {
    Reading {
        length: usize,
        /// Empty lines before the request line are skipped, as actix does.
        has_begun: bool,
        line_is_empty: bool,
    },
    Read,
    TooLarge,
}

impl Head {
    /// Reads more bytes. Everything after the head is ignored.
    fn read(&mut self, bytes: &[u8]) {
        let Self::Reading {
            length,
            has_begun,
            line_is_empty,
        } = self
        else {
            return;
        };
        for &byte in bytes {
            *length += 1;
            match byte {
                b'\n' if *line_is_empty && *has_begun => {
                    *self = Self::Read;
                    return;
                }
                b'\n' => *line_is_empty = true,
                b'\r' => {}
                _ => (*has_begun, *line_is_empty) = (true, false),
            }
            if *length > MAX_HEAD {
                *self = Self::TooLarge;
                return;
            }
        }
    }
}

impl ClientStream {
    /// Wraps a new connection.
    pub fn new(stream: TcpStream, metrics: Metrics) -> Self {
        Self {
            stream,
            metrics,
            head: Head::Reading {
                length: 0,
                has_begun: false,
                line_is_empty: true,
            },
            refusal: Bytes::new(),
        }
    }

    /// The answer that replaces actix's own refusal with this status.
    fn refused(&self, status: u16) -> Answer {
        match (status, &self.head) {
            (_, Head::TooLarge) | (431, _) => Answer::HeadTooLarge(MAX_HEAD),
            (408, _) => Answer::SlowHead,
            _ => Answer::NotHttp,
        }
    }

    fn poll_refusal(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.refusal.has_remaining() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.refusal);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.refusal.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.head.read(&buffer.filled()[before..]);
        if matches!(self.head, Head::TooLarge) && buffer.filled().len() > before {
            // A NUL byte is not allowed in a head, so actix refuses the request.
            buffer.set_filled(before);
            buffer.put_slice(b"\0");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_refusal(context))?;
        let Some((start, status)) = bare_refusal(bytes) else {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        };
        if start > 0 {
            // These bytes answer earlier requests. actix writes the refusal again in its next call,
            // at the start of the buffer.
            return Pin::new(&mut self.stream).poll_write(context, &bytes[..start]);
        }
        let answer = self.refused(status);
        self.metrics.refused_unread(&answer);
        self.refusal = answer.into_bytes().into();
        // Bytes that cannot be written now are written by the next flush.
        match self.poll_refusal(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The offset and status of an answer that actix gave by itself. Such an answer is an error without
/// a body, and the last one of its connection. All of our answers have a body, except those to HEAD
/// and OPTIONS.
fn bare_refusal(bytes: &[u8]) -> Option<(usize, u16)> {
    const START: &[u8] = b"HTTP/1.1 ";
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let start = bytes.windows(START.len()).rposition(|text| text == START)?;
    let status = bytes.get(start + START.len()..)?.get(..3)?;
    match status {
        b"400" => Some((start, 400)),
        b"408" => Some((start, 408)),
        b"431" => Some((start, 431)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}", None)]
    #[case("HTTP/1.1 100 Continue\r\n\r\n", None)]
    #[case("HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 90\r\n\r\n", None)]
    #[case("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}", None)]
    #[case("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", Some((0, 400)))]
    #[case("HTTP/1.1 202 OK\r\n\r\n{}HTTP/1.1 431 Too Large\r\n\r\n", Some((21, 431)))]
    #[case("", None)]
    #[case("\r\n\r\n", None)]
    fn an_answer_of_actix_is_told_from_ours(
        #[case] written: &str,
        #[case] expected: Option<(usize, u16)>,
    ) {
        assert_eq!(bare_refusal(written.as_bytes()), expected);
    }

    #[rstest]
    #[case(&["POST / HTTP/1.1\r\nhost: x\r\n\r\n"], "Read")]
    #[case(&["POST / HTTP/1.1\r\nhost: x\r", "\n\r", "\nbody"], "Read")]
    #[case(&["\r\nPOST / HTTP/1.1\nhost: x\n\n"], "Read")]
    #[case(&["POST / HTTP/1.1\r\nhost: x\r\n"], "Reading")]
    #[case(&["\r\n\r\n\n\nPOST / HTTP/1.1\nhost: x\n"], "Reading")]
    #[case(&["\n\n\nPOST / HTTP/1.1\nhost: x\n\n"], "Read")]
    fn the_end_of_a_head_is_found_in_any_pieces(#[case] pieces: &[&str], #[case] expected: &str) {
        let mut head = Head::Reading {
            length: 0,
            has_begun: false,
            line_is_empty: true,
        };
        for piece in pieces {
            head.read(piece.as_bytes());
        }
        assert!(format!("{head:?}").starts_with(expected), "{head:?}");
    }

    #[rstest]
    #[case(MAX_HEAD - 4, false)]
    #[case(MAX_HEAD, true)]
    fn a_head_is_held_to_its_limit(#[case] length: usize, #[case] too_large: bool) {
        let mut head = Head::Reading {
            length: 0,
            has_begun: false,
            line_is_empty: true,
        };
        for _ in 0..length {
            head.read(b"a");
        }
        head.read(b"\r\n\r\n");
        assert_eq!(matches!(head, Head::TooLarge), too_large, "{head:?}");
    }
}
