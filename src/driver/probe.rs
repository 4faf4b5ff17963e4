//! Asking workers over the network, and reading their environment files.

use std::{fs, io, time::Duration};

use http_body_util::{BodyExt, Collected, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{config::spec::EnvFile, engine::effect::ProbeTarget, time::Span};

/// Asks, and never takes longer than `timeout`.
pub(super) async fn ask(target: ProbeTarget, timeout: Span) -> Result<(), String> {
    let limit = Duration::from(timeout);
    match tokio::time::timeout(limit, ask_without_end(&target)).await {
        Ok(answer) => answer.map_err(|error| format!("{}: {error}", words(&target))),
        Err(_) => Err(format!("{}: no answer in {timeout}", words(&target))),
    }
}

fn words(target: &ProbeTarget) -> String {
    match target {
        ProbeTarget::Tcp(address) => format!("tcp {address}"),
        ProbeTarget::Http { address, path } => format!("http://{address}{path}"),
    }
}

async fn ask_without_end(target: &ProbeTarget) -> io::Result<()> {
    match target {
        ProbeTarget::Tcp(address) => TcpStream::connect(address).await.map(|_| ()),
        ProbeTarget::Http { address, path } => get(address, path).await,
    }
}

/// Of an answer with a number so many bytes are read.
const BODY_MAX: usize = 16_384;

/// One GET; the status line is all that matters.
async fn get(address: &str, path: &str) -> io::Result<()> {
    let mut stream = begin(address, path).await?;
    let mut head = Vec::new();
    let mut chunk = [0; 256];
    while !head.contains(&b'\n') && head.len() < 4_096 {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            break;
        }
        head.extend_from_slice(&chunk[..n]);
    }
    is_well(&String::from_utf8_lossy(&head))
}

/// One GET, and what it answers.
pub(super) async fn get_body(address: &str, path: &str) -> io::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::get(path)
        .header(header::HOST, address)
        .header(header::USER_AGENT, "leasehold")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if !status.is_success() {
            return Ok(Err(format!("answered {}", status.as_u16())));
        }
        let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
        Ok::<_, hyper::Error>(
            body.map(Collected::to_bytes)
                .map_err(|error| error.to_string()),
        )
    };
    // Whoever ends first: an answer that is there is not waited for any longer.
    let answer = tokio::select! {
        answer = answer => answer,
        Err(error) = connection => Err(error),
    };
    let body = answer
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

async fn begin(address: &str, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: leasehold\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Does an answer begin with a good status?
fn is_well(answer: &str) -> io::Result<()> {
    let line = answer.lines().next().unwrap_or_default().trim();
    match line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse::<u16>().ok())
    {
        Some(200..=399) => Ok(()),
        Some(code) => Err(io::Error::other(format!("answered {code}"))),
        None => Err(io::Error::other(format!(
            "answered {line:?}, which is not HTTP"
        ))),
    }
}

/// `KEY=value` lines; `#` comments; quotes around a value are taken off (systemd.exec(5) EnvironmentFile, without its escapes).
pub(super) fn read_env_files(files: &[EnvFile]) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for file in files {
        let text = match fs::read_to_string(&file.path) {
            Ok(text) => text,
            Err(e) if file.optional && e.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("cannot read env_file {}: {error}", file.path)),
        };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
                continue;
            }
            let (name, value) = parse_line(line)
                .ok_or_else(|| format!("{}:{}: not KEY=value: {line:?}", file.path, number + 1))?;
            all.push((name, value));
        }
    }
    Ok(all)
}

fn parse_line(line: &str) -> Option<(String, String)> {
    let (name, value) = line
        .strip_prefix("export ")
        .unwrap_or(line)
        .split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let quoted = ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
    let clean = !name.is_empty()
        && !name.contains(char::is_whitespace)
        && !value.contains('\0')
        && !name.starts_with("LEASEHOLD_");
    clean.then(|| (name.to_owned(), quoted.unwrap_or(value).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        fs::write(&path, "# c\nA=1\nexport B = \"two words\"\n\nC='x=y'\n").unwrap();
        let file = |path: &std::path::Path, optional| EnvFile {
            path: path.display().to_string(),
            optional,
        };
        let read =
            read_env_files(&[file(&path, false), file(&dir.path().join("none"), true)]).unwrap();
        let pairs: Vec<(&str, &str)> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "two words"), ("C", "x=y")]);
        fs::write(&path, "A=1\nnonsense\n").unwrap();
        assert!(
            read_env_files(&[file(&path, false)])
                .unwrap_err()
                .ends_with("env:2: not KEY=value: \"nonsense\"")
        );
    }
}
