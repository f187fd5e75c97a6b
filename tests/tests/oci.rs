//! Publishing to and adding from a real OCI registry: Debian's `docker-registry` on a port of this machine.
//!
//! Without that program these tests say that they skip, and fail where `ESPALIER_OCI_TESTS=1` promises it. What `wkg`
//! pulls and pushes is the affair of `tests/wkg.sh`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use espalier_tests::market::{Market, magnitude, magnitude_of, shown};

/// A registry of its own for one test, ended with this value.
struct Server {
    child: Child,
    /// `oci://localhost:PORT/lab`.
    address: String,
    port: u16,
}

impl Server {
    /// None, with a word about it, where the program is not installed.
    fn start(market: &Market) -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: 127.0.0.1:{port} }}\n",
            shown(&market.path("registry"))
        );
        let file = market.write("registry.yml", config.as_bytes());
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                assert!(
                    std::env::var_os("ESPALIER_OCI_TESTS").is_none(),
                    "docker-registry was promised: {error}"
                );
                eprintln!(
                    "SKIPPED: docker-registry is not installed (apt-get install docker-registry)"
                );
                return None;
            }
        };
        let server = Server {
            child,
            address: format!("oci://localhost:{port}/lab"),
            port,
        };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "docker-registry does not answer"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    fn publish(&self, market: &Market, bytes: &[u8], more: &[&str]) -> std::process::Output {
        let file = shown(&market.write("magnitude.wasm", bytes));
        let key = shown(&market.path("home/author.key"));
        let mut args = vec![
            "plugin",
            "publish",
            &file,
            "--registry",
            &self.address,
            "--licence",
            "MIT",
            "--sign",
            &key,
        ];
        args.extend(more);
        market.run(&args)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_published_to_an_oci_registry_is_added_from_it_byte_for_byte() {
    let market = Market::new("oci");
    let Some(server) = Server::start(&market) else {
        return;
    };
    let key = market.key("author");
    market.good(&["key", "trust", &key, "--for", "magnitude"]);
    for version in ["0.1.0", "0.2.0"] {
        let output = server.publish(&market, &magnitude_of(version), &[]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    market.good(&["plugin", "add", "magnitude@0.1", "--from", &server.address]);
    let kept = market.path(&market.stored("0.1.0"));
    assert_eq!(fs::read(&kept).unwrap(), magnitude());
    // A later run on another machine fetches it again.
    fs::remove_file(&kept).unwrap();
    market.run_file();
    market.good(&["run", "run.toml"]);
    let lock = market.text("project/espalier.lock");
    assert!(
        lock.contains(&format!("from {}/magnitude:0.1.0", server.address)),
        "{lock}"
    );
    market.good(&["plugin", "add", "magnitude", "--from", &server.address]);
    assert!(
        market
            .text("project/registry.toml")
            .contains("version = \"0.2.0\"")
    );
    let error = market.refused(&["plugin", "add", "magnitude@0.3", "--from", &server.address]);
    assert!(error.contains("0.2.0, 0.1.0"), "{error}");
    let error = market.refused(&["plugin", "add", "wanda", "--from", &server.address]);
    assert!(
        error.starts_with("error: unknown plugin `wanda`\n"),
        "{error}"
    );
}

#[test]
fn an_oci_registry_takes_no_version_that_is_not_higher_and_no_other_slot() {
    let market = Market::new("oci-follow");
    let Some(server) = Server::start(&market) else {
        return;
    };
    market.key("author");
    assert!(
        server
            .publish(&market, &magnitude_of("0.2.0"), &[])
            .status
            .success()
    );
    for version in ["0.2.0", "0.1.0"] {
        let output = server.publish(&market, &magnitude_of(version), &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2));
        assert!(error.contains("expected  a version above 0.2.0"), "{error}");
    }
    let output = server.publish(
        &market,
        &espalier_tests::market::built("backprop"),
        &["--name", "magnitude"],
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.starts_with("error: plugin `magnitude` changes its slot\n"),
        "{error}"
    );
}

/// Puts a manifest under a tag, as whoever runs the registry could.
fn put_manifest(server: &Server, tag: &str, manifest: &str) {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let request = format!(
        "PUT /v2/lab/magnitude/manifests/{tag} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\ncontent-length: {}\r\n\r\n{manifest}",
        manifest.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

fn get_manifest(server: &Server, tag: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let request = format!(
        "GET /v2/lab/magnitude/manifests/{tag} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_string()
}

#[test]
fn what_the_keeper_of_an_oci_registry_changes_is_refused() {
    let market = Market::new("oci-tampered");
    let Some(server) = Server::start(&market) else {
        return;
    };
    let key = market.key("author");
    market.good(&["key", "trust", &key, "--for", "magnitude"]);
    for version in ["0.1.0", "0.2.0"] {
        assert!(
            server
                .publish(&market, &magnitude_of(version), &[])
                .status
                .success()
        );
    }
    let old = get_manifest(&server, "0.1.0");
    let add = ["plugin", "add", "magnitude", "--from", &server.address];
    // The old component under a new tag.
    put_manifest(&server, "0.3.0", &old);
    let error = market.refused(&add);
    assert!(
        error.starts_with("error: this tag holds another component than it says\n"),
        "{error}"
    );
    // The same with its annotation changed to fit.
    let fitting = old.replace("image.version\":\"0.1.0\"", "image.version\":\"0.3.0\"");
    assert_ne!(old, fitting);
    put_manifest(&server, "0.3.0", &fitting);
    let error = market.refused(&add);
    assert!(
        error.starts_with("error: the entry of plugin `magnitude` is not what its author signed\n"),
        "{error}"
    );
    // The new one's words over the old one's bytes.
    let new = get_manifest(&server, "0.2.0");
    let digest = |version: &str| espalier_runtime::component::sha256(&magnitude_of(version));
    let swapped = new.replace(&digest("0.2.0"), &digest("0.1.0"));
    // The signature holds the digest too, but it is in an annotation whose bytes would then be another signature's.
    put_manifest(&server, "0.2.0", &swapped);
    let error = market.refused(&[
        "plugin",
        "add",
        "magnitude@=0.2.0",
        "--from",
        &server.address,
    ]);
    assert!(
        error.starts_with("error: the signature of plugin `magnitude` does not hold\n"),
        "{error}"
    );
    assert!(!market.text("project/registry.toml").contains("magnitude"));
}
