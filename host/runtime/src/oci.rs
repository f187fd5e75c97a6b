//! Plugins in OCI registries, in the form that wasm-pkg-tools reads and writes.
//!
//! One manifest a version, its tag; one layer of type `application/wasm`, the component; a configuration of type
//! `application/vnd.wasm.config.v0+json`. What a registry file would say stands in the manifest's annotations. The
//! distribution protocol is a handful of calls, made here with the client that fetches everything else.
//! <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use semver::Version;
use serde::{Deserialize, Serialize};
use ureq::Body;
use ureq::http::Response;

use crate::component::{self, Loaded};
use crate::diagnostic::Diagnostic;
use crate::fetch;
use crate::plan::Slot;
use crate::registry::{Entry, Source};
use crate::store;
use crate::trust::PublicKey;

/// The scheme of addresses that this module reads.
pub const SCHEME: &str = "oci://";

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";

/// The largest manifest or list that is read, in bytes.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// Most pages of a list of tags.
const PAGES: usize = 50;

/// Variables with a user's name and password for registries that ask.
const USER: &str = "ESPALIER_OCI_USERNAME";
const PASSWORD: &str = "ESPALIER_OCI_PASSWORD";

const TITLE: &str = "org.opencontainers.image.title";
const VERSION: &str = "org.opencontainers.image.version";
const DESCRIPTION: &str = "org.opencontainers.image.description";
const LICENCES: &str = "org.opencontainers.image.licenses";
const URL: &str = "org.opencontainers.image.url";

/// A place in an OCI registry: `oci://HOST/REPOSITORY`, with `:TAG` for one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
}

impl Reference {
    /// Reads an address.
    pub fn parse(address: &str) -> Result<Reference, Diagnostic> {
        let wrong = || {
            Diagnostic::new("this is no place in an OCI registry")
                .expected("oci://HOST/FOLDER, or oci://HOST/FOLDER/NAME:VERSION for one version")
                .found(address)
        };
        let rest = address.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
        let path = path.trim_end_matches('/');
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_string())),
            None => (path, None),
        };
        let part = |part: &str| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
            !part.is_empty()
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(plain)
        };
        let host_ok = !host.is_empty()
            && host
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
        let tag_ok = tag.as_deref().is_none_or(|tag| {
            !tag.is_empty()
                && tag
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        });
        if !host_ok || !tag_ok || !repository.split('/').all(part) {
            return Err(wrong());
        }
        Ok(Reference {
            host: host.to_string(),
            repository: repository.to_string(),
            tag,
        })
    }

    /// The plugin `name` in this folder.
    pub fn plugin(&self, name: &str) -> Reference {
        Reference {
            host: self.host.clone(),
            repository: format!("{}/{name}", self.repository),
            tag: None,
        }
    }

    /// This plugin's version.
    pub fn version(&self, version: &str) -> Reference {
        Reference {
            tag: Some(tag_of(version)),
            ..self.clone()
        }
    }

    fn url(&self, what: &str) -> String {
        let scheme = match fetch::is_this_machine(&self.host) {
            true => "http",
            false => "https",
        };
        format!("{scheme}://{}/v2/{}/{what}", self.host, self.repository)
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// A tag has no `+`; as others do, an underscore stands for it.
fn tag_of(version: &str) -> String {
    version.replace('+', "_")
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn of(bytes: &[u8], media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest: format!("sha256:{}", component::sha256(bytes)),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }
}

/// One conversation with a registry: what it asked for as proof of who we are is given again.
struct Client {
    authorization: Option<String>,
}

/// What a call sends.
struct Call<'a> {
    method: &'a str,
    url: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: Option<&'a [u8]>,
}

impl Client {
    fn new() -> Client {
        Client {
            authorization: None,
        }
    }

    fn get(&mut self, url: &str, accept: &str) -> Result<Response<Body>, Diagnostic> {
        self.call(&Call {
            method: "GET",
            url,
            headers: &[("accept", accept)],
            body: None,
        })
    }

    /// Makes a call; a registry that asks who we are is answered once.
    fn call(&mut self, call: &Call<'_>) -> Result<Response<Body>, Diagnostic> {
        let answer = self.once(call)?;
        if answer.status() != 401 {
            return Ok(answer);
        }
        let challenge = header(&answer, "www-authenticate").unwrap_or_default();
        let Some(authorization) = authorize(call.url, &challenge)? else {
            return Ok(answer);
        };
        self.authorization = Some(authorization);
        self.once(call)
    }

    fn once(&self, call: &Call<'_>) -> Result<Response<Body>, Diagnostic> {
        let agent = fetch::agent(call.url)?;
        let mut request = ureq::http::Request::builder()
            .method(call.method)
            .uri(call.url);
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let sent = match call.body {
            Some(body) => request.body(body).map(|request| agent.run(request)),
            None => request.body(&[][..]).map(|request| agent.run(request)),
        };
        sent.map_err(|error| fetch::failed(call.url, &error))?
            .map_err(|error| fetch::failed(call.url, &error))
    }
}

fn header(answer: &Response<Body>, name: &str) -> Option<String> {
    let value = answer.headers().get(name)?.to_str().ok()?;
    Some(value.to_string())
}

/// What a status that was not wanted means.
fn unwanted(what: &str, url: &str, answer: Response<Body>) -> Diagnostic {
    let status = answer.status();
    let said = fetch::body(url, answer, 64 << 10).unwrap_or_default();
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        code: String,
        #[serde(default)]
        message: String,
    }
    let error = Diagnostic::new(what).detail("address", url).found(format!(
        "status {} {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("")
    ));
    let error = match serde_json::from_slice::<Errors>(&said) {
        Ok(Errors { errors }) => errors.into_iter().fold(error, |error, fault| {
            let text = format!("{} {}", fault.code, fault.message);
            error.detail("because", crate::host::guest::shown(&text))
        }),
        Err(_) => error,
    };
    match status.as_u16() {
        401 | 403 => error.help(format!(
            "give a name and password in {USER} and {PASSWORD}, or log in with docker"
        )),
        _ => error,
    }
}

/// The answer to `WWW-Authenticate`: none if there is nothing to answer with.
fn authorize(url: &str, challenge: &str) -> Result<Option<String>, Diagnostic> {
    let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
    let basic = credentials(url).map(|secret| format!("Basic {secret}"));
    if scheme.eq_ignore_ascii_case("basic") {
        return Ok(basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Ok(None);
    }
    let fields = challenge_fields(rest);
    let Some(realm) = fields.get("realm") else {
        return Ok(None);
    };
    let mut address = realm.clone();
    for name in ["service", "scope"] {
        if let Some(value) = fields.get(name) {
            let joint = if address.contains('?') { '&' } else { '?' };
            address = format!("{address}{joint}{name}={}", escaped(value));
        }
    }
    let client = Client {
        authorization: basic,
    };
    let answer = client.once(&Call {
        method: "GET",
        url: &address,
        headers: &[],
        body: None,
    })?;
    if !answer.status().is_success() {
        return Err(unwanted(
            "the OCI registry does not let you in",
            &address,
            answer,
        ));
    }
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let said = fetch::body(&address, answer, LARGEST_MANIFEST)?;
    let token: Option<Token> = serde_json::from_slice(&said).ok();
    let token = token.and_then(|token| token.token.or(token.access_token));
    Ok(token.map(|token| format!("Bearer {token}")))
}

/// `a="b",c="d, e"` as a map.
fn challenge_fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.insert(name, value.to_string());
        rest = after;
    }
    fields
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Name and password in base64: from the environment, else from docker's file for this host.
fn credentials(url: &str) -> Option<String> {
    if let (Ok(user), Ok(password)) = (std::env::var(USER), std::env::var(PASSWORD)) {
        return Some(base64(format!("{user}:{password}").as_bytes()));
    }
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: BTreeMap<String, Login>,
    }
    #[derive(Deserialize)]
    struct Login {
        auth: Option<String>,
    }
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = match folder {
        Some(folder) => folder,
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    let text = std::fs::read(folder.join("config.json")).ok()?;
    let file: File = serde_json::from_slice(&text).ok()?;
    let host = url.split_once("://")?.1.split('/').next()?;
    file.auths.get(host)?.auth.clone()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |word, (i, byte)| {
            word | u32::from(*byte) << (16 - 8 * i)
        });
        for digit in 0..4 {
            if digit <= chunk.len() {
                let index = (word >> (18 - 6 * digit)) & 63;
                text.push(char::from(DIGITS[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The versions of a plugin: those of its tags that are versions, the highest first. None if there is no such plugin.
pub fn versions(plugin: &Reference) -> Result<Vec<Version>, Diagnostic> {
    #[derive(Deserialize)]
    struct Tags {
        tags: Option<Vec<String>>,
    }
    let mut client = Client::new();
    let mut versions = Vec::new();
    let mut url = plugin.url("tags/list?n=1000");
    for _ in 0..PAGES {
        let answer = client.get(&url, "application/json")?;
        if answer.status() == 404 {
            return Ok(Vec::new());
        }
        if !answer.status().is_success() {
            return Err(unwanted("the OCI registry lists no versions", &url, answer));
        }
        let next = header(&answer, "link").and_then(|link| {
            let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
            rest.contains("next").then(|| fetch::join(&url, target))
        });
        let said = fetch::body(&url, answer, LARGEST_MANIFEST)?;
        let tags: Tags = serde_json::from_slice(&said).map_err(|error| {
            Diagnostic::new("the OCI registry's list of versions cannot be read")
                .detail("address", &url)
                .because(&error)
        })?;
        let tags = tags.tags.unwrap_or_default();
        versions.extend(
            tags.iter()
                .filter_map(|tag| Version::parse(&tag.replace('_', "+")).ok()),
        );
        match next {
            Some(next) => url = next,
            None => break,
        }
    }
    versions.sort();
    versions.reverse();
    Ok(versions)
}

fn manifest(client: &mut Client, version: &Reference) -> Result<Manifest, Diagnostic> {
    let tag = version.tag.as_deref().unwrap_or("latest");
    let url = version.url(&format!("manifests/{tag}"));
    let answer = client.get(&url, MANIFEST_TYPE)?;
    if !answer.status().is_success() {
        return Err(unwanted(
            "the OCI registry has no such version",
            &url,
            answer,
        ));
    }
    let said = fetch::body(&url, answer, LARGEST_MANIFEST)?;
    let wrong = || {
        Diagnostic::new("this is no WebAssembly component of an OCI registry")
            .at(version.to_string())
    };
    let manifest: Manifest =
        serde_json::from_slice(&said).map_err(|error| wrong().because(&error))?;
    if manifest.config.media_type != CONFIG_TYPE {
        return Err(wrong()
            .expected(format!("a configuration of type {CONFIG_TYPE}"))
            .found(crate::host::guest::shown(&manifest.config.media_type)));
    }
    match manifest.layers.as_slice() {
        [layer] if layer.media_type == LAYER_TYPE => Ok(manifest),
        [layer] => Err(wrong()
            .expected(format!("a layer of type {LAYER_TYPE}"))
            .found(crate::host::guest::shown(&layer.media_type))),
        layers => Err(wrong()
            .expected("one layer")
            .found(format!("{} layers", layers.len()))),
    }
}

/// The digest of a manifest's only layer, in plain hexadecimal; another algorithm than SHA-256 is an error.
fn layer_digest(manifest: &Manifest, version: &Reference) -> Result<(String, u64), Diagnostic> {
    let layer = manifest.layers.first();
    let digest = layer.map_or("", |layer| layer.digest.as_str());
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    match (hex, layer) {
        (Some(hex), Some(layer)) => Ok((hex.to_string(), layer.size)),
        _ => Err(
            Diagnostic::new("this component has a digest of another algorithm")
                .at(version.to_string())
                .expected("sha256: and 64 hexadecimal digits")
                .found(crate::host::guest::shown(digest)),
        ),
    }
}

/// The entry of a version as its annotations say it; none for one that another program pushed without them.
pub fn entry(version: &Reference) -> Result<Option<Entry>, Diagnostic> {
    let manifest = manifest(&mut Client::new(), version)?;
    let (sha256, size) = layer_digest(&manifest, version)?;
    let text = |key: &str| {
        manifest
            .annotations
            .get(key)
            .map(|text| crate::host::guest::shown(text))
    };
    let Some(slot) = text("espalier.slot") else {
        return Ok(None);
    };
    let place = version.to_string();
    let missing = |what: &str| {
        Diagnostic::new(format!("the annotations of this component have no {what}"))
            .at(place.clone())
            .help("ask its author to publish it again")
    };
    let slot = Slot::ALL
        .into_iter()
        .find(|known| known.as_str() == slot)
        .ok_or_else(|| missing("slot that this espalier knows"))?;
    let told = text(VERSION).filter(|text| Version::parse(text).is_ok());
    let told = told.ok_or_else(|| missing("version"))?;
    let name = text(TITLE).ok_or_else(|| missing("name"))?;
    if Some(tag_of(&told)) != version.tag || version.repository.rsplit('/').next() != Some(&name) {
        return Err(
            Diagnostic::new("this tag holds another component than it says")
                .at(place)
                .expected(format!("{version}"))
                .found(format!("{name} {told}"))
                .help("ask whoever runs that registry; an old version under a new tag is how a mended fault comes back"),
        );
    }
    let key = text("espalier.key");
    if key
        .as_deref()
        .is_some_and(|key| PublicKey::parse(key).is_none())
    {
        return Err(missing("key that is one"));
    }
    // Line ends are part of a signature's form, so this one is taken as it is; it is parsed, never shown.
    let signature = manifest.annotations.get("espalier.signature").cloned();
    if key.is_some() != signature.is_some() {
        return Err(missing("signature with a key, or key with a signature"));
    }
    Ok(Some(Entry {
        name,
        version: told,
        slot,
        summary: text(DESCRIPTION).unwrap_or_default(),
        interface: text("espalier.interface").ok_or_else(|| missing("interface version"))?,
        licence: text(LICENCES).ok_or_else(|| missing("licence"))?,
        paper: text(URL),
        size: Some(size),
        toolchain: text("espalier.toolchain"),
        source: Source::Fetched {
            from: place.clone(),
            sha256,
        },
        key,
        signature,
        registry: place,
        line: 0,
        own: false,
        pinned: false,
    }))
}

/// Downloads a version's component. Its bytes are those of the manifest's digest.
pub fn pull(address: &str) -> Result<Vec<u8>, Diagnostic> {
    let version = Reference::parse(address)?;
    let mut client = Client::new();
    let manifest = manifest(&mut client, &version)?;
    let (sha256, size) = layer_digest(&manifest, &version)?;
    if size > store::LARGEST {
        return Err(Diagnostic::new("the download is too large")
            .detail("address", address)
            .expected(format!("at most {} bytes", store::LARGEST))
            .found(format!("{size} bytes")));
    }
    let url = version.url(&format!("blobs/sha256:{sha256}"));
    let answer = client.get(&url, LAYER_TYPE)?;
    if !answer.status().is_success() {
        return Err(unwanted(
            "the OCI registry does not give this component",
            &url,
            answer,
        ));
    }
    let bytes = fetch::body(&url, answer, size)?;
    let found = component::sha256(&bytes);
    if found != sha256 {
        return Err(Diagnostic::new(
            "the OCI registry gave another component than its manifest says",
        )
        .detail("address", &url)
        .expected(format!("sha256 {sha256}"))
        .found(format!("sha256 {found}"))
        .help("try again; if it goes on, ask whoever runs that registry"));
    }
    Ok(bytes)
}

/// Pushes a version: the component, the configuration, then the manifest, which makes both visible at once.
pub fn push(
    version: &Reference,
    entry: &Entry,
    bytes: &[u8],
    loaded: &Loaded,
) -> Result<(), Diagnostic> {
    let mut client = Client::new();
    let mut layer = Descriptor::of(bytes, LAYER_TYPE);
    let kind = loaded.component().component_type();
    let names = |items: Vec<&str>| -> Vec<String> { items.into_iter().map(String::from).collect() };
    let engine = loaded.engine();
    let configuration = serde_json::json!({
        // Always the same, so that the same component makes the same manifest.
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [&layer.digest],
        "component": {
            "exports": names(kind.exports(engine).map(|(name, _)| name).collect()),
            "imports": names(kind.imports(engine).map(|(name, _)| name).collect()),
        },
    })
    .to_string();
    let config = Descriptor::of(configuration.as_bytes(), CONFIG_TYPE);
    layer
        .annotations
        .insert(TITLE.into(), format!("{}.wasm", entry.name));
    let mut annotations = BTreeMap::from([
        (TITLE.to_string(), entry.name.clone()),
        (VERSION.into(), entry.version.clone()),
        (DESCRIPTION.into(), entry.summary.clone()),
        (LICENCES.into(), entry.licence.clone()),
        ("espalier.slot".into(), entry.slot.to_string()),
        ("espalier.interface".into(), entry.interface.clone()),
    ]);
    let more = [
        (URL, &entry.paper),
        ("espalier.toolchain", &entry.toolchain),
        ("espalier.key", &entry.key),
        ("espalier.signature", &entry.signature),
    ];
    for (key, value) in more {
        if let Some(value) = value {
            annotations.insert(key.into(), value.clone());
        }
    }
    blob(&mut client, version, &layer.digest, bytes)?;
    blob(
        &mut client,
        version,
        &config.digest,
        configuration.as_bytes(),
    )?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.into(),
        config,
        layers: vec![layer],
        annotations,
    };
    let text = serde_json::to_vec(&manifest)
        .map_err(|error| Diagnostic::new("the manifest cannot be written").because(&error))?;
    let tag = version.tag.as_deref().unwrap_or("latest");
    let url = version.url(&format!("manifests/{tag}"));
    let answer = client.call(&Call {
        method: "PUT",
        url: &url,
        headers: &[("content-type", MANIFEST_TYPE)],
        body: Some(&text),
    })?;
    if !answer.status().is_success() {
        return Err(unwanted(
            "the OCI registry does not take the plugin",
            &url,
            answer,
        ));
    }
    Ok(())
}

/// Uploads bytes under their digest unless the registry has them.
fn blob(
    client: &mut Client,
    version: &Reference,
    digest: &str,
    bytes: &[u8],
) -> Result<(), Diagnostic> {
    let refused =
        |url: &str, answer| unwanted("the OCI registry does not take the plugin", url, answer);
    let url = version.url(&format!("blobs/{digest}"));
    let there = client.call(&Call {
        method: "HEAD",
        url: &url,
        headers: &[],
        body: None,
    })?;
    if there.status().is_success() {
        return Ok(());
    }
    let url = version.url("blobs/uploads/");
    let begun = client.call(&Call {
        method: "POST",
        url: &url,
        headers: &[],
        body: Some(&[]),
    })?;
    let place = header(&begun, "location");
    let Some(place) = place.filter(|_| begun.status().is_success()) else {
        return Err(refused(&url, begun));
    };
    let place = fetch::join(&url, &place);
    let joint = if place.contains('?') { '&' } else { '?' };
    let place = format!("{place}{joint}digest={digest}");
    let headers = [("content-type", "application/octet-stream")];
    let call = Call {
        method: "PUT",
        url: &place,
        headers: &headers,
        body: Some(bytes),
    };
    // A registry may keep its blobs elsewhere; the proof of who we are is for the registry alone.
    let host = |url: &str| {
        url.split('/')
            .take(3)
            .map(str::to_string)
            .collect::<Vec<_>>()
    };
    let answer = match host(&place) == host(&url) {
        true => client.call(&call)?,
        false => Client::new().once(&call)?,
    };
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(refused(&place, answer))
    }
}

/// True if an address is one of an OCI registry.
pub fn is_address(text: &Path) -> bool {
    text.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_has_a_host_a_folder_and_perhaps_a_version() {
        let folder = Reference::parse("oci://localhost:5000/lab/plugins").unwrap();
        let version = folder.plugin("snip").version("1.2.0+x");
        assert_eq!(
            version.to_string(),
            "oci://localhost:5000/lab/plugins/snip:1.2.0_x"
        );
        assert_eq!(Reference::parse(&version.to_string()).unwrap(), version);
        assert_eq!(
            version.url("tags/list"),
            "http://localhost:5000/v2/lab/plugins/snip/tags/list"
        );
        let elsewhere = Reference::parse("oci://ghcr.io/lab").unwrap();
        assert!(elsewhere.url("").starts_with("https://ghcr.io/"));
        for wrong in [
            "oci://",
            "oci://host",
            "oci://host/",
            "https://host/x",
            "oci://host/../x",
            "oci://host/a//b",
            "oci://host/a:",
            "oci://user@host/a",
            "oci://host/A b",
        ] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_challenge_is_read_field_by_field() {
        let fields = challenge_fields(
            "realm=\"https://auth.example/token\",service=\"r\",scope=\"repository:a/b:pull,push\"",
        );
        assert_eq!(fields["realm"], "https://auth.example/token");
        assert_eq!(fields["scope"], "repository:a/b:pull,push");
        assert_eq!(
            escaped(&fields["scope"]),
            "repository%3Aa%2Fb%3Apull%2Cpush"
        );
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let want = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (text, encoded) in want {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
