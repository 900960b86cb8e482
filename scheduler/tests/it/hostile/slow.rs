//! Answers that take their time, or never end.

use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::hostile::After;
use crate::hostile::answer::{OK, chunked};

/// The answer of a path, while the client listens.
pub async fn answer(stream: &mut TcpStream, path: &str) -> Result<After> {
    let drip = async |stream: &mut TcpStream, bytes: &[u8], every: Duration| -> Result<After> {
        loop {
            for byte in bytes {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(every).await;
            }
        }
    };
    let pour = async |stream: &mut TcpStream, bytes: &[u8]| -> Result<After> {
        loop {
            stream.write_all(bytes).await?;
        }
    };
    match path {
        "/slow/head" => drip(stream, OK.as_bytes(), Duration::from_millis(100)).await,
        "/slow/headers" => {
            stream.write_all(OK.as_bytes()).await?;
            pour(stream, "x-one-more: header\r\n".repeat(100).as_bytes()).await
        }
        // Ten thousand a second: faster, and a debug build would do nothing else.
        "/slow/continue" => loop {
            stream.write_all("HTTP/1.1 100 Continue\r\n\r\n".repeat(100).as_bytes()).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        },
        "/slow/body" => {
            stream.write_all(format!("{OK}\r\n<title>{path}</title>").as_bytes()).await?;
            drip(stream, b".", Duration::from_millis(100)).await
        }
        // Not slow enough to be cut for that.
        "/slow/long-body" => {
            stream.write_all(format!("{OK}\r\n<title>{path}</title>").as_bytes()).await?;
            loop {
                stream.write_all(&[b'.'; 100]).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        "/slow/stalls" => {
            stream.write_all(format!("{OK}content-length: 1000\r\n\r\n<title>{path}</title>").as_bytes()).await?;
            Ok(After::Silence)
        }
        "/slow/endless" => {
            stream.write_all(format!("{OK}\r\n<title>{path}</title>").as_bytes()).await?;
            pour(stream, &[b'.'; 10_000]).await
        }
        "/slow/chunks" => {
            stream.write_all(&chunked("")).await?;
            pour(stream, format!("10\r\n{}\r\n", ".".repeat(16)).repeat(1000).as_bytes()).await
        }
        "/slow/trailers" => {
            stream.write_all(&chunked("0\r\n")).await?;
            pour(stream, "x-one-more: trailer\r\n".repeat(100).as_bytes()).await
        }
        "/slow/extension" => {
            stream.write_all(&chunked("5;")).await?;
            pour(stream, &[b'x'; 1000]).await
        }
        _ => {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
            Ok(After::Keep)
        }
    }
}
