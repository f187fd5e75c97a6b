//! The network, as far as plugins come from there: registries and components over HTTPS, and OCI (`oci`).
//!
//! What comes in is bounded in size and time, and believed no further than its digest. Plain HTTP is for this machine
//! alone. A download that ends early is an error, never a short file.

use std::io::Read;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body};

use crate::diagnostic::Diagnostic;
use crate::oci;
use crate::store;

/// The largest registry file, in bytes.
pub const LARGEST_REGISTRY: u64 = 4 << 20;

/// Longest wait for a connection, and for the first byte of an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest time for one file.
const LONGEST: Duration = Duration::from_secs(600);

/// Most times a server may send us elsewhere.
const REDIRECTS: u32 = 5;

/// True if this names a place in the network.
pub fn is_address(text: &str) -> bool {
    ["http://", "https://", "oci://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
}

/// The address of `name` in the folder of the file at `base`; `name` may be a whole address itself.
pub fn join(base: &str, name: &str) -> String {
    if is_address(name) {
        return name.to_string();
    }
    let scheme = base.find("://").map_or(0, |at| at + 3);
    let folder = match base.rfind('/') {
        Some(slash) if slash > scheme => &base[..slash],
        _ => base,
    };
    if let Some(absolute) = name.strip_prefix('/') {
        let host = base[scheme..]
            .find('/')
            .map_or(base.len(), |at| scheme + at);
        return format!("{}/{absolute}", &base[..host]);
    }
    let mut folder = folder;
    let mut name = name;
    loop {
        if let Some(rest) = name.strip_prefix("./") {
            name = rest;
        } else if let Some(rest) = name.strip_prefix("../") {
            name = rest;
            folder = match folder.rfind('/') {
                Some(slash) if slash > scheme => &folder[..slash],
                _ => folder,
            };
        } else {
            return format!("{folder}/{name}");
        }
    }
}

/// A client that answers every status and follows redirects within the rules.
pub(crate) fn agent(address: &str) -> Result<Agent, Diagnostic> {
    let plain = address.starts_with("http://");
    if plain && !is_this_machine(address) {
        return Err(Diagnostic::new("plain HTTP is for this machine alone")
            .at(address)
            .expected("https://"));
    }
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(!plain)
        .max_redirects(REDIRECTS)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_global(Some(LONGEST))
        .user_agent(concat!("espalier/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(config.new_agent())
}

/// True for addresses that do not leave the machine.
pub(crate) fn is_this_machine(address: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or("");
    // A user's name before the host would make `localhost@elsewhere` of it.
    if host.contains('@') {
        return false;
    }
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    host == "localhost" || host == "::1" || host == "127.0.0.1"
}

/// What went wrong on the way to `address`.
pub(crate) fn failed(address: &str, error: &dyn std::error::Error) -> Diagnostic {
    Diagnostic::new("the download failed")
        .detail("address", address)
        .because(error)
        .help("try again; if it goes on, ask whoever runs that server")
}

/// Reads an answer to its end: at most `most` bytes, and all that the server promised.
pub(crate) fn body(
    address: &str,
    answer: Response<Body>,
    most: u64,
) -> Result<Vec<u8>, Diagnostic> {
    let promised = answer.body().content_length();
    let too_large = |found: String| {
        Diagnostic::new("the download is too large")
            .detail("address", address)
            .expected(format!("at most {most} bytes"))
            .found(found)
    };
    if let Some(promised) = promised.filter(|promised| *promised > most) {
        return Err(too_large(format!("{promised} bytes")));
    }
    let mut bytes = Vec::new();
    let mut reader = answer.into_body().into_reader().take(most + 1);
    let read = reader.read_to_end(&mut bytes);
    let length = bytes.len() as u64;
    let short = promised.is_some_and(|promised| length < promised);
    if short || read.is_err() {
        let error = Diagnostic::new("the download was cut short").detail("address", address);
        let error = match promised {
            Some(promised) => error
                .expected(format!("{promised} bytes"))
                .found(format!("{length} bytes")),
            None => error.found(format!("{length} bytes and no end")),
        };
        return Err(error.help("try again; nothing of it was kept"));
    }
    if length > most {
        return Err(too_large("more than that".into()));
    }
    Ok(bytes)
}

/// Downloads a file of at most `most` bytes.
pub fn get(address: &str, most: u64) -> Result<Vec<u8>, Diagnostic> {
    let answer = agent(address)?
        .get(address)
        .call()
        .map_err(|error| failed(address, &error))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(Diagnostic::new("the server does not give this file")
            .detail("address", address)
            .found(format!(
                "status {} {}",
                status.as_u16(),
                status.canonical_reason().unwrap_or("")
            )));
    }
    body(address, answer, most)
}

/// Downloads a component; `size` is what its entry says, if it does.
pub fn component(address: &str, size: Option<u64>) -> Result<Vec<u8>, Diagnostic> {
    let most = size.unwrap_or(store::LARGEST).min(store::LARGEST);
    if address.starts_with(oci::SCHEME) {
        return oci::pull(address);
    }
    get(address, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_join_as_in_a_browser() {
        let base = "https://lab.example/plugins/registry.toml";
        for (name, want) in [
            ("c/x.wasm", "https://lab.example/plugins/c/x.wasm"),
            ("./x.wasm", "https://lab.example/plugins/x.wasm"),
            ("../x.wasm", "https://lab.example/x.wasm"),
            ("../../x.wasm", "https://lab.example/x.wasm"),
            ("/x.wasm", "https://lab.example/x.wasm"),
            ("https://other.example/x", "https://other.example/x"),
        ] {
            assert_eq!(join(base, name), want, "{name}");
        }
    }

    #[test]
    fn plain_http_does_not_leave_the_machine() {
        for good in [
            "http://localhost:5000/x",
            "http://127.0.0.1/x",
            "http://[::1]:80/",
        ] {
            assert!(agent(good).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/x",
            "http://localhost.example.com/",
            "http://localhost@example.com/",
            "http://localhost:80@example.com/",
        ] {
            assert!(agent(bad).is_err(), "{bad}");
        }
    }
}
