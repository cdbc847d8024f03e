//! The pages of a server that serves metrics, asked for as plainly as can be.
#![allow(dead_code, unreachable_pub)] // Every test program uses its own part of this.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use super::Server;

/// Where a server that was started with `--metrics` says that it serves them.
pub fn metrics_address(server: &Server) -> SocketAddr {
    let line = server.announcement().lines().find(|line| line.starts_with("to look at: ")).unwrap();
    let (address, _) = line["to look at: http://".len()..].split_once('/').unwrap();
    address.parse().unwrap()
}

/// Asks for a page; returns the head and the body of the answer.
pub fn ask(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Asks for a page that is there.
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> String {
    let (head, body) = ask(address, "GET", path);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body
}
