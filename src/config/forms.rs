//! Forms of text that values have: how each is described, how it is read, and what somebody may have meant who typed it otherwise.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;

use crate::{
    config::{fault::nearest, spec::ListenAddress, units},
    id::FleetName,
    time::Span,
};

/// One form.
pub(super) struct Form<T> {
    /// What it looks like, after "must be".
    pub(super) wanted: &'static str,
    pub(super) parse: fn(&str) -> Option<T>,
    /// Candidates for what was meant, the likeliest first; they need not be of the form.
    guesses: fn(&str) -> Vec<String>,
}

impl<T> Form<T> {
    /// What may have been meant; always of the form.
    pub(super) fn guess(&self, typed: &str) -> Option<String> {
        (self.guesses)(typed.trim())
            .into_iter()
            .find(|guess| (self.parse)(guess).is_some())
    }
}

pub(super) const SPAN: Form<Span> = Form {
    wanted: units::SPAN_FORM,
    parse: units::span,
    guesses: spans,
};

pub(super) const SIZE: Form<u64> = Form {
    wanted: units::SIZE_FORM,
    parse: units::size,
    guesses: sizes,
};

/// A size as a limit of the kernel.
pub(super) const LIMIT: Form<u64> = Form {
    wanted: "a size such as \"64MiB\", or \"infinity\"",
    parse: |text| match text {
        "infinity" => Some(u64::MAX),
        size => units::size(size),
    },
    guesses: |typed| match typed {
        "unlimited" | "inf" | "max" | "-1" => vec!["infinity".to_owned()],
        typed => sizes(typed),
    },
};

pub(super) const RATE: Form<u64> = Form {
    wanted: "a rate such as \"20/s\"",
    parse: units::rate_per_kilosecond,
    guesses: |typed| {
        let typed = squeezed(typed).replace("per", "/");
        let (number, unit) = typed.split_once('/').unwrap_or((&typed, "s"));
        vec![format!("{number}/{}", unit.get(..1).unwrap_or(""))]
    },
};

/// A share, in parts per million.
pub(super) const PERCENT: Form<u32> = Form {
    wanted: "a percentage from 0% to 100%, such as \"80%\"",
    parse: units::percent,
    guesses: |typed| {
        let typed = squeezed(typed).replace("percent", "%");
        let share = typed.parse().ok().filter(|share: &f64| *share < 1.0);
        let share = share.map(|share| format!("{}%", share * 100.0));
        [share, Some(format!("{}%", typed.trim_end_matches('%')))]
            .into_iter()
            .flatten()
            .collect()
    },
};

/// Cores, in thousandths of one.
pub(super) const CORES: Form<u32> = Form {
    wanted: "a number of cores such as 2 or \"0.5\"",
    parse: units::cores,
    guesses: |typed| vec![squeezed(typed).replace(',', ".")],
};

pub(super) const SPAN_RANGE: Form<(Span, Span)> = Form {
    wanted: "a range such as \"500ms..60s\"",
    parse: units::span_range,
    guesses: |typed| {
        let typed = squeezed(typed)
            .replace("...", "..")
            .replace(['-', '\u{2026}'], "..");
        let whole = |text: &str| {
            let fits = units::span(text).is_some().then(|| text.to_owned());
            fits.or_else(|| SPAN.guess(text))
        };
        let range = match typed.split_once("..") {
            Some((low, high)) => whole(low).zip(whole(high)),
            None => whole(&typed).map(|low| {
                let short = units::span(&low).is_some_and(|low| low <= Span::secs(30));
                if short {
                    (low, "30s".to_owned())
                } else {
                    ("200ms".to_owned(), low)
                }
            }),
        };
        range
            .map(|(low, high)| format!("{low}..{high}"))
            .into_iter()
            .collect()
    },
};

pub(super) const PORTS: Form<(u16, u16)> = Form {
    wanted: "a range such as \"18000-18063\"",
    parse: units::port_range,
    guesses: |typed| {
        let typed = squeezed(typed).replace("..", "-").replace(':', "-");
        vec![backwards(&typed), typed]
    },
};

pub(super) const CPUS: Form<Vec<u32>> = Form {
    wanted: "a list such as \"0-1,3\"",
    parse: units::cpus,
    guesses: |typed| {
        let typed = squeezed(typed).replace("..", "-");
        let forwards = |part: &str| {
            let turned = backwards(part);
            let fits = units::cpus(part).is_some();
            if fits { part.to_owned() } else { turned }
        };
        let parts: Vec<String> = typed.split(',').map(forwards).collect();
        vec![parts.join(",")]
    },
};

/// An octal mode; `{:0>4}` because that is how people write them.
pub(super) const MODE: Form<u32> = Form {
    wanted: "an octal mode such as \"0027\"",
    parse: units::mode,
    guesses: |typed| {
        let digits = typed.strip_prefix("0o").unwrap_or(typed);
        vec![format!("{digits:0>4}")]
    },
};

/// The mode of a socket's file.
pub(super) const SOCKET_MODE: Form<u32> = Form {
    wanted: "an octal mode such as \"0660\"",
    ..MODE
};

/// The name of a lock.
pub(super) const LOCK: Form<FleetName> = Form {
    wanted: "a name of 1 to 64 letters, digits, `-`, `_` or `.` that starts with a letter or digit",
    parse: |text| text.parse().ok(),
    guesses: |typed| vec![typed.replace([' ', '/', ':'], "-")],
};

pub(super) const SIGNAL: Form<i32> = Form {
    wanted: "a signal such as \"SIGTERM\" or \"SIGQUIT\"",
    parse: units::signal,
    guesses: |typed| {
        let upper = typed.to_ascii_uppercase();
        let full = format!("SIG{}", upper.strip_prefix("SIG").unwrap_or(&upper));
        // Nobody stops a worker by freezing it.
        let all = Signal::iterator().filter(|signal| *signal != Signal::SIGSTOP);
        let names = all.map(Signal::as_str);
        let near = nearest(&full, names).map(str::to_owned);
        let number = typed.parse().ok().map(units::signal_name);
        number.into_iter().chain(near).collect()
    },
};

/// What the server of `[http]` listens on.
pub(super) const TCP_ADDRESS: Form<SocketAddr> = Form {
    wanted: "an IP address and a port, such as \"127.0.0.1:9640\"",
    parse: |text| text.parse().ok(),
    guesses: addresses,
};

/// What HAProxy asks an agent at: others must know the port.
pub(super) const AGENT_ADDRESS: Form<SocketAddr> = Form {
    wanted: "an IP address and a port, such as \"127.0.0.1:9101\"",
    parse: |text| {
        text.parse()
            .ok()
            .filter(|address: &SocketAddr| address.port() > 0)
    },
    guesses: addresses,
};

/// Where others reach this machine; every address of it is none.
pub(super) const HOST: Form<String> = Form {
    wanted: "an address or a name of this machine without a port, such as \"10.0.0.5\"",
    parse: host,
    guesses: |typed| {
        let bare = typed.rsplit_once(':').map_or(typed, |(host, _)| host);
        vec![bare.trim_matches(['[', ']']).to_owned()]
    },
};

/// What a socket listens on.
pub(super) const LISTEN: Form<ListenAddress> = Form {
    wanted: "an IP address and a port, such as \"127.0.0.1:8080\", or an absolute path",
    parse: |text| {
        let path = || {
            text.starts_with('/')
                .then(|| ListenAddress::Unix(text.to_owned()))
        };
        text.parse().ok().map(ListenAddress::Tcp).or_else(path)
    },
    guesses: |typed| {
        let mut all = addresses(typed);
        all.extend(typed.strip_prefix("unix:").map(str::to_owned));
        all
    },
};

/// What a tcp probe asks.
pub(super) const PROBE_ADDRESS: Form<String> = Form {
    wanted: "a host and a port, such as \"127.0.0.1:8080\"",
    parse: probe_address,
    guesses: addresses,
};

/// What an http probe asks: address and path.
pub(super) const PROBE_URL: Form<(String, String)> = Form {
    wanted: "a URL such as \"http://127.0.0.1:8080/healthz\"",
    parse: probe_url,
    guesses: |typed| {
        let typed = typed.trim_start_matches('/');
        let plain = !typed.contains("://") && typed.contains(':');
        plain
            .then(|| format!("http://{typed}"))
            .into_iter()
            .collect()
    },
};

fn host(text: &str) -> Option<String> {
    let is_host = match text.parse::<IpAddr>() {
        Ok(ip) => !ip.is_unspecified(),
        // A number that is no address is no name either.
        Err(_) => {
            let label = |label: &str| {
                let clean = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
                !label.is_empty() && label.bytes().all(clean)
            };
            text.split('.').all(label) && text.bytes().any(|b| b.is_ascii_alphabetic())
        }
    };
    is_host.then(|| text.to_owned())
}

fn probe_address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port_ok = port.contains("{{") || port.parse::<u16>().is_ok_and(|port| port > 0);
    (!host.is_empty() && port_ok).then(|| text.to_owned())
}

fn probe_url(text: &str) -> Option<(String, String)> {
    let rest = text.strip_prefix("http://")?;
    let (address, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address = if address.contains(':') {
        address.to_owned()
    } else {
        format!("{address}:80")
    };
    let clean = !path.contains(|c: char| c.is_whitespace() || c.is_control());
    probe_address(&address)
        .filter(|_| clean)
        .map(|address| (address, path.to_owned()))
}

/// `30` and `30 seconds` for `30s`.
fn spans(typed: &str) -> Vec<String> {
    const NAMES: [(&str, &str); 8] = [
        ("millisecond", "ms"),
        ("msec", "ms"),
        ("second", "s"),
        ("sec", "s"),
        ("minute", "m"),
        ("min", "m"),
        ("hour", "h"),
        ("day", "d"),
    ];
    let bare = squeezed(typed);
    let mut short = bare.clone();
    for (name, unit) in NAMES {
        short = short.replace(&format!("{name}s"), unit).replace(name, unit);
    }
    vec![format!("{bare}s"), bare, short]
}

/// `65536`, `64k` and `64 kib` for `64KiB`.
fn sizes(typed: &str) -> Vec<String> {
    let bare = squeezed(typed);
    let at = bare
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(bare.len());
    let (number, unit) = bare.split_at(at);
    let unit = match unit {
        "" => {
            return number
                .parse()
                .ok()
                .map(units::show_size)
                .into_iter()
                .collect();
        }
        "k" | "kib" => "KiB",
        "m" | "mib" => "MiB",
        "g" | "gib" => "GiB",
        "t" | "tib" => "TiB",
        "kb" => "kB",
        "mb" => "MB",
        "gb" => "GB",
        "tb" => "TB",
        "b" | "byte" | "bytes" => "B",
        _ => return Vec::new(),
    };
    vec![format!("{number}{unit}")]
}

/// `8080`, `:8080` and `localhost:8080` for `127.0.0.1:8080`.
fn addresses(typed: &str) -> Vec<String> {
    let (host, port) = typed.rsplit_once(':').unwrap_or(("localhost", typed));
    match host {
        "localhost" => vec![format!("127.0.0.1:{port}")],
        "" | "*" => vec![format!("0.0.0.0:{port}")],
        _ => Vec::new(),
    }
}

/// In small letters, without blanks and the `_` of TOML's numbers.
fn squeezed(typed: &str) -> String {
    typed
        .to_lowercase()
        .replace(|c: char| c.is_whitespace() || c == '_', "")
}

/// `3-1` the other way round.
fn backwards(range: &str) -> String {
    match range.split_once('-') {
        Some((high, low)) => format!("{low}-{high}"),
        None => range.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_what_was_meant() {
        let guess = |typed| SPAN.guess(typed).unwrap_or_default();
        assert_eq!(guess("30"), "30s");
        assert_eq!(guess("0.5"), "0.5s");
        assert_eq!(guess("5 minutes"), "5m");
        assert_eq!(guess("200 msecs"), "200ms");
        assert_eq!(guess("soon"), "");
        assert_eq!(SIZE.guess("65_536").as_deref(), Some("64KiB"));
        assert_eq!(SIZE.guess("8m").as_deref(), Some("8MiB"));
        assert_eq!(SIZE.guess("8mb").as_deref(), Some("8MB"));
        assert_eq!(LIMIT.guess("unlimited").as_deref(), Some("infinity"));
        assert_eq!(RATE.guess("20 per second").as_deref(), Some("20/s"));
        assert_eq!(RATE.guess("20").as_deref(), Some("20/s"));
        assert_eq!(SPAN_RANGE.guess("1").as_deref(), Some("1s..30s"));
        assert_eq!(SPAN_RANGE.guess("1-5s").as_deref(), Some("1s..5s"));
        assert_eq!(SPAN_RANGE.guess("2m").as_deref(), Some("200ms..2m"));
        assert_eq!(PORTS.guess("9-8").as_deref(), Some("8-9"));
        assert_eq!(PORTS.guess("8..9").as_deref(), Some("8-9"));
        assert_eq!(CPUS.guess("5-2,1").as_deref(), Some("2-5,1"));
        assert_eq!(MODE.guess("22").as_deref(), Some("0022"));
        assert_eq!(MODE.guess("0o27").as_deref(), Some("0027"));
        assert_eq!(MODE.guess("9"), None);
        assert_eq!(SIGNAL.guess("15").as_deref(), Some("SIGTERM"));
        assert_eq!(SIGNAL.guess("sigtrem").as_deref(), Some("SIGTERM"));
        assert_eq!(
            LISTEN.guess("localhost:80").as_deref(),
            Some("127.0.0.1:80")
        );
        assert_eq!(LISTEN.guess(":80").as_deref(), Some("0.0.0.0:80"));
        assert_eq!(LISTEN.guess("localhost"), None);
        assert_eq!(
            PROBE_URL.guess("127.0.0.1:80/x").as_deref(),
            Some("http://127.0.0.1:80/x")
        );
    }
}
