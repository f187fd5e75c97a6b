//! An author, a registry and a lab in folders of their own, for tests of publishing and trusting.
//!
//! The command runs with settings and caches of its own, so nothing of the person who runs the tests matters.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::{espalier, workspace};

/// The name that the published plugin has for itself, and the version behind it in the component's data.
const IDENTITY: &[u8] = b"espalier-plugin-magnitude0.1.0";

/// The component of the repository's `magnitude`, built once for each test program.
///
/// # Panics
/// If it does not build.
pub fn magnitude() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| built("magnitude"))
}

/// The component of a plugin of the repository.
///
/// # Panics
/// If it does not build.
pub fn built(name: &str) -> Vec<u8> {
    let output = Command::new(espalier())
        .args(["plugin", "build", "--json"])
        .arg(workspace().join("plugins").join(name))
        .current_dir(workspace())
        .output()
        .expect("espalier starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let value: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let file = value["file"].as_str().expect("a file");
    std::fs::read(workspace().join(file)).expect("the component")
}

/// `magnitude` with another version of the same length in its data: what a rebuild would give, in no time.
///
/// # Panics
/// If the component does not hold its identity once.
pub fn magnitude_of(version: &str) -> Vec<u8> {
    let mut bytes = magnitude().to_vec();
    let places: Vec<usize> = bytes
        .windows(IDENTITY.len())
        .enumerate()
        .filter(|(_, window)| *window == IDENTITY)
        .map(|(at, _)| at)
        .collect();
    assert_eq!((places.len(), version.len()), (1, 5), "{places:?}");
    let at = places[0] + IDENTITY.len() - version.len();
    bytes[at..at + version.len()].copy_from_slice(version.as_bytes());
    bytes
}

/// The folders of one test, removed with this value: `lab` with somebody's registry, `project`, `home`.
pub struct Market {
    folder: PathBuf,
}

impl Market {
    /// Empty folders, a project without plugins, and no key.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn new(name: &str) -> Market {
        let folder =
            std::env::temp_dir().join(format!("espalier-market-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        for part in ["lab", "project", "home"] {
            std::fs::create_dir_all(folder.join(part)).expect("a folder");
        }
        let market = Market {
            folder: folder.canonicalize().expect("the folder"),
        };
        market.write("project/registry.toml", b"# Our plugins.\nschema = 1\n");
        market
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file's text.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Writes a file and the folders above it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let file = self.path(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, bytes).expect("a file");
        file
    }

    /// Changes a file's text.
    ///
    /// # Panics
    /// If the text does not hold what is to be changed.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        let text = self.text(name);
        assert!(text.contains(from), "{name} has no {from}:\n{text}");
        self.write(name, text.replace(from, to).as_bytes());
    }

    /// The command, in the project's folder, with settings and caches of this market.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(espalier());
        command
            .args(args)
            .current_dir(self.path("project"))
            .env("XDG_CONFIG_HOME", self.path("home/config"))
            .env("XDG_CACHE_HOME", self.path("home/cache"))
            .env("DOCKER_CONFIG", self.path("home/docker"))
            .env_remove("ESPALIER_KEY_PASSWORD")
            .env_remove("ESPALIER_OCI_USERNAME");
        command
    }

    /// Runs the command.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("espalier starts")
    }

    /// Runs the command, which must succeed; gives standard output.
    ///
    /// # Panics
    /// With what it said, if it fails.
    pub fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}\n{error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the command, which must answer 2 and print nothing on standard output; gives its words, with folders and
    /// keys of this market and digests in a form that does not change.
    ///
    /// # Panics
    /// If it succeeds or fails otherwise.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}\n{error}");
        assert!(
            output.stdout.is_empty(),
            "{args:?} printed on standard output"
        );
        self.plain(&error)
    }

    /// Words without what differs from run to run.
    pub fn plain(&self, text: &str) -> String {
        let mut text = text.replace(&self.folder.display().to_string(), "[market]");
        for (key, name) in [("author", "[author's key]"), ("other", "[other key]")] {
            if let Ok(public) = std::fs::read_to_string(self.path(&format!("home/{key}.key.pub"))) {
                let key = public.lines().last().unwrap_or("").to_string();
                text = text.replace(&key, name);
            }
        }
        // Digests follow from the compiler; two that differ keep different names.
        let mut seen: Vec<String> = Vec::new();
        let mut plain = String::new();
        let mut hex = String::new();
        for c in text.chars().chain(std::iter::once('\n')) {
            if c.is_ascii_digit() || ('a'..='f').contains(&c) {
                hex.push(c);
                continue;
            }
            if hex.len() == 64 {
                let at = seen
                    .iter()
                    .position(|known| *known == hex)
                    .unwrap_or_else(|| {
                        seen.push(hex.clone());
                        seen.len() - 1
                    });
                plain.push_str(&format!("[digest {}]", at + 1));
            } else {
                plain.push_str(&hex);
            }
            hex.clear();
            plain.push(c);
        }
        plain.pop();
        plain
    }

    /// Makes a key without a password; gives its public half.
    pub fn key(&self, name: &str) -> String {
        let file = self.path(&format!("home/{name}.key"));
        let said = self.good(&["key", "new", "--no-password", "--out", &shown(&file)]);
        said.trim().to_string()
    }

    /// Publishes component bytes into the lab's registry, signed by the key `name` if one is given.
    pub fn publish(&self, bytes: &[u8], key: Option<&str>, more: &[&str]) -> Output {
        let file = self.write("lab/incoming.wasm", bytes);
        let registry = shown(&self.path("lab/registry.toml"));
        let (file, key) = (
            shown(&file),
            key.map(|name| shown(&self.path(&format!("home/{name}.key")))),
        );
        let mut args = vec![
            "plugin",
            "publish",
            &file,
            "--registry",
            &registry,
            "--licence",
            "MIT",
        ];
        if let Some(key) = &key {
            args.extend(["--sign", key]);
        }
        args.extend(more);
        self.run(&args)
    }

    /// A lab with `magnitude` 0.1.0, 0.1.1 and 0.2.0, signed by a key that the user trusts for it. Published once
    /// for each test program, and copied.
    ///
    /// # Panics
    /// If it cannot be published.
    pub fn with_magnitude(name: &str) -> Market {
        static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
        let files = FILES.get_or_init(|| {
            let market = Market::new("template");
            let key = market.key("author");
            for version in ["0.1.0", "0.1.1", "0.2.0"] {
                let output = market.publish(&magnitude_of(version), Some("author"), &[]);
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{error}");
            }
            market.good(&[
                "key",
                "trust",
                &key,
                "--for",
                "magnitude",
                "--owner",
                "The author",
            ]);
            let read = |name: &str| {
                (
                    name.to_string(),
                    std::fs::read(market.path(name)).expect(name),
                )
            };
            [
                "home/author.key",
                "home/author.key.pub",
                "home/config/espalier/trust.toml",
                "lab/registry.toml",
                "lab/components/magnitude-0.1.0.wasm",
                "lab/components/magnitude-0.1.1.wasm",
                "lab/components/magnitude-0.2.0.wasm",
            ]
            .map(read)
            .to_vec()
        });
        let market = Market::new(name);
        for (file, bytes) in files {
            market.write(file, bytes);
        }
        market
    }

    /// The same, with a version of it added to the project and a run file that uses it.
    pub fn with_added(name: &str, version: &str) -> Market {
        let market = Market::with_magnitude(name);
        market.good(&[
            "plugin",
            "add",
            &format!("magnitude@={version}"),
            "--from",
            "../lab",
        ]);
        market.run_file();
        market
    }

    /// Where the store keeps the component of `magnitude` of this version.
    pub fn stored(&self, version: &str) -> String {
        let sha256 = espalier_runtime::component::sha256(&magnitude_of(version));
        format!("home/cache/espalier/store/{sha256}.wasm")
    }

    /// Writes a run file that prunes with `magnitude` and trains with the repository's `backprop`, and adds that one's
    /// component to the project.
    pub fn run_file(&self) {
        static BACKPROP: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = BACKPROP.get_or_init(|| built("backprop"));
        self.write("project/backprop.wasm", bytes);
        if !self.text("project/registry.toml").contains("\"backprop\"") {
            let sha256 = espalier_runtime::component::sha256(bytes);
            let entry = format!(
                "\n[[plugin]]\nname = \"backprop\"\nversion = \"0.1.0\"\nslot = \"trainer\"\nsummary = \"s\"\ninterface = \"0.1\"\nlicence = \"MIT\"\nsource = {{ file = \"backprop.wasm\", sha256 = \"{sha256}\" }}\n"
            );
            let text = self.text("project/registry.toml") + &entry;
            self.write("project/registry.toml", text.as_bytes());
        }
        self.write(
            "project/run.toml",
            b"[data]\nsource = \"digits\"\ntrain-limit = 64\n[model]\nlayers = [{ kind = \"flatten\" }, { kind = \"linear\", features = 10 }]\n[schedule]\nepochs = 1\n[trainer]\nplugin = \"backprop\"\n[pruner]\nplugin = \"magnitude\"\n",
        );
    }
}

/// A path as an argument.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Drop for Market {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A web server on this machine for the files of a folder, until it is dropped.
pub struct Web {
    /// Its address, without a slash at the end.
    pub address: String,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Web {
    /// Serves `folder`. Of files whose name ends in `.wasm` it sends `most` bytes at most, and promises all of them.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn serve(folder: &Path, most: usize) -> Web {
        use std::io::{BufRead, BufReader, Write};
        use std::sync::atomic::{AtomicBool, Ordering};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (folder, stopped) = (folder.to_path_buf(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut reader = BufReader::new(stream.try_clone().expect("the stream"));
                let mut first = String::new();
                let _ = reader.read_line(&mut first);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let name = first
                    .split(' ')
                    .nth(1)
                    .unwrap_or("/")
                    .trim_start_matches('/');
                let _ = match std::fs::read(folder.join(name)) {
                    Ok(bytes) => {
                        let head = format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                            bytes.len()
                        );
                        let sent = if name.ends_with(".wasm") {
                            bytes.len().min(most)
                        } else {
                            bytes.len()
                        };
                        stream
                            .write_all(head.as_bytes())
                            .and_then(|()| stream.write_all(&bytes[..sent]))
                    }
                    Err(_) => stream.write_all(
                        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    ),
                };
            }
        });
        Web {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // A last visitor, so that the loop looks up.
        let _ = std::net::TcpStream::connect(self.address.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
