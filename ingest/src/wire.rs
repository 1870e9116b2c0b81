//! A client's connection, below actix.
//!
//! Some requests never reach a handler: actix answers by itself what is no HTTP, a head that is too
//! large or too slow, and has no hook for it. Its answers have no body and are counted nowhere. Here
//! they get the problem body that every other refusal has, and a label. A head is also held to a size
//! here, before actix reads it: actix panics on a header name of more than 64 KiB.
//!
//! Only the first head of a connection is measured, as only a good signature keeps a connection for
//! another one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::rt::net::TcpStream;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{answer::Answer, metrics::Metrics};

/// Bytes of a request line and its headers. The webhook headers take 5 KiB at most.
pub const MAX_HEAD: usize = 32 * 1024;

/// A connection that a client opened.
pub struct Wire {
    stream: TcpStream,
    metrics: Metrics,
    head: Head,
    /// What is written in place of an answer of actix.
    refusal: Bytes,
}

/// How far the first head of the connection has come.
#[derive(Debug)]
enum Head {
    Reading {
        length: usize,
        /// Empty lines before the request line are skipped, as actix skips them.
        has_begun: bool,
        line_is_empty: bool,
    },
    Read,
    TooLarge,
}

impl Head {
    /// Takes further bytes; what follows the head does not matter.
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

impl Wire {
    /// A new connection.
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

    /// What actix meant to refuse with this status.
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

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.head.read(&buffer.filled()[before..]);
        if matches!(self.head, Head::TooLarge) && buffer.filled().len() > before {
            // This byte is not allowed anywhere in a head, so actix refuses the request.
            buffer.set_filled(before);
            buffer.put_slice(b"\0");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
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
            // Answers to earlier requests. The refusal comes again, at the beginning.
            return Pin::new(&mut self.stream).poll_write(context, &bytes[..start]);
        }
        let answer = self.refused(status);
        self.metrics.refused_unread(&answer);
        self.refusal = answer.into_bytes().into();
        // What does not go out at once goes with the flush.
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

/// Where an answer that actix gave by itself starts, and its status. It is the last one of its
/// connection, an error without a body. All of ours have a body, except to HEAD and OPTIONS.
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
