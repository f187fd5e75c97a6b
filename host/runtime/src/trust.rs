//! Who vouches for a component: keys, signatures over an entry's statement, and the user's policy.
//!
//! A signature is minisign's (ed25519 over BLAKE2b-512), so `minisign -V` can check it. What is signed is one
//! line, the [`Statement`]: name, version, slot, interface, digest and licence. The same line is the signature's trusted
//! comment, so a signature tells by itself what its author signed, and an entry that says something else can be shown
//! beside it. docs/security.md has the reasons for the policy, docs/registry.md the formats.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::diagnostic::{Diagnostic, one_of};
use crate::document::{Document, Reader};
use crate::plan::Slot;

/// The only format of a policy file that this host reads.
const SCHEMA: u64 = 1;

/// The policy's file name, beside a registry or in the user's own folder.
pub const FILE_NAME: &str = "trust.toml";

/// The variable that holds the password of a secret key where nobody can be asked.
pub const PASSWORD_VARIABLE: &str = "ESPALIER_KEY_PASSWORD";

/// What an author signs: who the component says it is, and its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The plugin's name in the registry.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The slot it fills.
    pub slot: Slot,
    /// The interface version it was built for.
    pub interface: String,
    /// SHA-256 of the component, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Its licence.
    pub licence: String,
}

impl fmt::Display for Statement {
    /// The canonical line. Only the licence, which is last, may hold spaces, so it reads in one way only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "espalier-plugin-1 name={} version={} slot={} interface={} sha256={} licence={}",
            self.name, self.version, self.slot, self.interface, self.sha256, self.licence
        )
    }
}

impl Statement {
    /// The bytes under the signature: the line and its end.
    fn signed(&self) -> String {
        format!("{self}\n")
    }
}

/// The facts of a line on rows of their own, for an error that shows two. The line may be a stranger's.
fn rows(line: &str) -> String {
    let line = &crate::host::guest::shown(line);
    let Some(rest) = line.strip_prefix("espalier-plugin-1 ") else {
        return line.to_string();
    };
    let (words, licence) = rest.split_once(" licence=").unwrap_or((rest, ""));
    let mut rows: Vec<String> = words
        .split(' ')
        .map(|word| word.replacen('=', " ", 1))
        .collect();
    rows.push(format!("licence {licence}"));
    rows.join("\n")
}

/// An author's public key, as minisign writes it: 56 characters that begin with `RW`.
#[derive(Clone)]
pub struct PublicKey {
    text: String,
    key: minisign::PublicKey,
}

impl PublicKey {
    /// Reads a key's line of base64.
    pub fn parse(text: &str) -> Option<PublicKey> {
        let text = text.trim();
        let key = minisign::PublicKey::from_base64(text).ok()?;
        Some(PublicKey {
            text: text.to_string(),
            key,
        })
    }

    /// Reads a public key's file: minisign's, two lines of which the second is the key.
    pub fn load(file: &Path) -> Result<PublicKey, Diagnostic> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Diagnostic::new("cannot read the public key")
                .at(file.display().to_string())
                .because_io(&error)
        })?;
        let line = text
            .lines()
            .find(|line| !line.starts_with("untrusted comment:"));
        line.and_then(PublicKey::parse).ok_or_else(|| {
            Diagnostic::new("this is no public key")
                .at(file.display().to_string())
                .expected("a minisign public key: 56 characters of base64 that begin with RW")
                .help("`espalier key new` writes one beside each secret key, ending in .pub")
        })
    }

    /// The key as people copy it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Checks that this key signed the statement; `place` is where the entry stands.
    pub fn check(
        &self,
        statement: &Statement,
        signature: &str,
        place: &str,
    ) -> Result<(), Diagnostic> {
        let name = &statement.name;
        let wrong = |because: &str| {
            Diagnostic::new(format!("the signature of plugin `{name}` does not hold"))
                .at(place)
                .detail("key", &self.text)
                .detail("because", because)
        };
        let help = "get the entry again from where its author published it";
        let read = minisign::SignatureBox::from_string(signature.trim());
        let Ok(read) = read else {
            return Err(wrong("it is no minisign signature").help(help));
        };
        let Ok(comment) = read.trusted_comment() else {
            return Err(wrong("it does not say what was signed").help(help));
        };
        let signed = std::io::Cursor::new(format!("{comment}\n"));
        if minisign::verify(&self.key, &read, signed, true, false, false).is_err() {
            return Err(
                wrong("this key did not sign what the signature says it signs")
                    .detail("claimed", rows(&comment))
                    .help(help),
            );
        }
        if comment != statement.to_string() {
            return Err(Diagnostic::new(format!(
                "the entry of plugin `{name}` is not what its author signed"
            ))
            .at(place)
            .detail("key", &self.text)
            .detail("signed", rows(&comment))
            .detail("found", rows(&statement.to_string()))
            .help(help));
        }
        Ok(())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for PublicKey {}

/// An author's secret key, ready to sign. Never printed.
pub struct SecretKey {
    secret: minisign::SecretKey,
    public: PublicKey,
}

impl SecretKey {
    /// Reads a secret key's file. An encrypted one needs its password: from `ESPALIER_KEY_PASSWORD`, or else from
    /// the terminal.
    pub fn load(file: &Path) -> Result<SecretKey, Diagnostic> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Diagnostic::new("cannot read the secret key")
                .at(file.display().to_string())
                .because_io(&error)
                .help("`espalier key new` makes one")
        })?;
        let none = |error: &dyn std::error::Error| {
            Diagnostic::new("this secret key cannot be used")
                .at(file.display().to_string())
                .because(error)
        };
        let read =
            |text: &str| minisign::SecretKeyBox::from_string(text).map_err(|error| none(&error));
        // Whether it is encrypted stands in the file; trying without a password asks for nothing.
        let secret = match read(&text)?.into_unencrypted_secret_key() {
            Ok(secret) => secret,
            Err(_) => {
                let password = std::env::var(PASSWORD_VARIABLE).ok();
                read(&text)?
                    .into_secret_key(password)
                    .map_err(|error| none(&error))?
            }
        };
        SecretKey::of(secret)
    }

    /// Makes a key pair and writes `file`, for its owner's eyes only, and `file` with `.pub` added. Neither may
    /// exist. With `encrypted`, the password comes as for [`SecretKey::load`].
    pub fn create(file: &Path, encrypted: bool) -> Result<PublicKey, Diagnostic> {
        let failed = |file: &Path, error: &std::io::Error| {
            let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
            let failed = Diagnostic::new("cannot write the key").at(file.display().to_string());
            if exists {
                failed
                    .found("a file that is there already; a key is never written over")
                    .help("name another file with --out FILE, or move that one away")
            } else {
                failed.because_io(error)
            }
        };
        let public_file = public_file(file);
        // Before anybody types a password for nothing.
        for file in [file, &public_file] {
            if std::fs::symlink_metadata(file).is_ok() {
                return Err(failed(file, &std::io::ErrorKind::AlreadyExists.into()));
            }
        }
        let broken = |error: minisign::PError| {
            Diagnostic::new("the key could not be made")
                .because(&error)
                .help(format!(
                    "without a terminal, give the password in {PASSWORD_VARIABLE}, or use --no-password"
                ))
        };
        let pair = if encrypted {
            minisign::KeyPair::generate_encrypted_keypair(std::env::var(PASSWORD_VARIABLE).ok())
        } else {
            minisign::KeyPair::generate_unencrypted_keypair()
        };
        let pair = pair.map_err(broken)?;
        let comment = Some("espalier author's secret key");
        let secret = pair.sk.to_box(comment).map_err(broken)?.into_string();
        let public = pair.pk.to_base64();
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        }
        write_new(file, secret.as_bytes(), 0o600).map_err(|error| failed(file, &error))?;
        let text = format!("untrusted comment: espalier author's public key\n{public}\n");
        write_new(&public_file, text.as_bytes(), 0o644).map_err(|error| {
            // A secret key whose public half is lost is of no use.
            let _ = std::fs::remove_file(file);
            failed(&public_file, &error)
        })?;
        PublicKey::parse(&public).ok_or_else(|| Diagnostic::new("the key could not be made"))
    }

    fn of(secret: minisign::SecretKey) -> Result<SecretKey, Diagnostic> {
        let public = minisign::PublicKey::from_secret_key(&secret)
            .ok()
            .and_then(|key| PublicKey::parse(&key.to_base64()))
            .ok_or_else(|| Diagnostic::new("this secret key has no public half"))?;
        Ok(SecretKey { secret, public })
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a statement; gives minisign's four lines.
    pub fn sign(&self, statement: &Statement) -> Result<String, Diagnostic> {
        let line = statement.to_string();
        if line.chars().any(char::is_control) {
            return Err(
                Diagnostic::new("a statement with control characters cannot be signed")
                    .found(format!("{line:?}")),
            );
        }
        let data = std::io::Cursor::new(statement.signed());
        let comment = Some("signature of an espalier plugin");
        minisign::sign(None, &self.secret, data, Some(&line), comment)
            .map(|signature| signature.into_string())
            .map_err(|error| Diagnostic::new("the plugin could not be signed").because(&error))
    }
}

/// Where the public half of the key in `file` is.
pub fn public_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Writes a file that must be new; the rights are set before anything is in it.
fn write_new(file: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The user's own folder of settings: `$XDG_CONFIG_HOME/espalier` or `~/.config/espalier`.
pub fn config_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = match base.filter(|path| path.is_absolute()) {
        Some(base) => base,
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(base.join("espalier"))
}

/// What becomes of a component that nobody signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unsigned {
    /// Taken from anywhere.
    Allow,
    /// Taken where the project itself states its digest: the default.
    #[default]
    Pinned,
    /// Never taken.
    Refuse,
}

const UNSIGNED: [(&str, Unsigned); 3] = [
    ("allow", Unsigned::Allow),
    ("pinned", Unsigned::Pinned),
    ("refuse", Unsigned::Refuse),
];

/// A key that the user trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// The key.
    pub key: PublicKey,
    /// Whose it is, for people.
    pub owner: String,
    /// Names it may sign; `*` stands for any characters.
    pub names: Vec<String>,
}

/// The user's policy: which keys may sign which names, and what becomes of the unsigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The files it was read from; none where there are none.
    pub files: Vec<PathBuf>,
    /// Trusted keys, in the order of the files.
    pub keys: Vec<Trusted>,
    /// Keys that are refused whatever else is said of them.
    pub refused: Vec<PublicKey>,
    /// The rule for components that nobody signed.
    pub unsigned: Unsigned,
}

impl Policy {
    /// The policy for a registry in `project`: of `file` alone if one is given, else of `trust.toml` beside the
    /// registry and in the user's folder. Their keys count together; of two rules for the unsigned the stricter
    /// holds.
    pub fn load(project: &Path, file: Option<&Path>) -> Result<Policy, Diagnostic> {
        if let Some(file) = file {
            return Policy::of(vec![Policy::read(file)?]);
        }
        let user = config_folder().map(|folder| folder.join(FILE_NAME));
        let files = [Some(project.join(FILE_NAME)), user];
        let files = files.into_iter().flatten().filter(|file| file.exists());
        let read = files.map(|file| Policy::read(&file));
        Policy::of(read.collect::<Result<_, _>>()?)
    }

    fn of(parts: Vec<(Policy, Option<Unsigned>)>) -> Result<Policy, Diagnostic> {
        let mut whole = Policy::default();
        let mut unsigned: Option<Unsigned> = None;
        for (part, rule) in parts {
            whole.files.extend(part.files);
            whole.keys.extend(part.keys);
            whole.refused.extend(part.refused);
            unsigned = unsigned.max(rule);
        }
        whole.unsigned = unsigned.unwrap_or_default();
        Ok(whole)
    }

    fn read(file: &Path) -> Result<(Policy, Option<Unsigned>), Diagnostic> {
        let document = Document::load(file, "trust policy")?;
        let reader = Reader::new(&document);
        let policy = Policy::fields(&reader, file);
        reader.finish(policy)
    }

    fn fields(reader: &Reader<'_>, file: &Path) -> Option<(Policy, Option<Unsigned>)> {
        let root = reader.root(&["schema", "unsigned", "refuse", "key"]);
        match root.get("schema") {
            Some(field) => drop(field.integer(SCHEMA, SCHEMA)),
            None => root.error(
                Diagnostic::new("the trust policy does not say its format")
                    .help("add `schema = 1` at the top"),
            ),
        }
        let key = |field: &crate::document::Field<'_, '_>| {
            PublicKey::parse(field.text()?).or_else(|| {
                field.malformed("a minisign public key: 56 characters that begin with RW")
            })
        };
        let unsigned = root
            .get("unsigned")
            .and_then(|field| field.choice("rule", &UNSIGNED.map(|(name, _)| name)))
            .map(|index| UNSIGNED[index].1);
        let refused = root.get("refuse").and_then(|field| field.list("keys"));
        let refused = refused.unwrap_or_default();
        let mut policy = Policy {
            files: vec![file.to_path_buf()],
            refused: refused.iter().filter_map(key).collect(),
            ..Policy::default()
        };
        let keys = root
            .get("key")
            .and_then(|field| field.list("[[key]] tables"));
        for item in keys.unwrap_or_default() {
            let Some(fields) = item.table(&["key", "owner", "names"], &|_| None) else {
                continue;
            };
            let key = fields
                .require(
                    "key",
                    "add key = \"RW...\", as `espalier key show` prints it",
                )
                .and_then(|field| key(&field));
            let owner = fields.get("owner").and_then(|field| field.text());
            let names = fields
                .require("names", "add names = [\"NAME\", \"LAB-*\"]")
                .and_then(|field| field.list("names of plugins"));
            let names: Option<Vec<String>> = names
                .and_then(|names| names.iter().map(|n| n.text().map(str::to_string)).collect());
            if let (Some(key), Some(names)) = (key, names) {
                policy.keys.push(Trusted {
                    key,
                    owner: owner.unwrap_or("").to_string(),
                    names,
                });
            }
        }
        Some((policy, unsigned))
    }

    /// The trusted key if it may sign this name.
    pub fn trusts(&self, key: &PublicKey, name: &str) -> Option<&Trusted> {
        if self.refused.contains(key) {
            return None;
        }
        let may = |trusted: &&Trusted| {
            &trusted.key == key && trusted.names.iter().any(|pattern| fits(pattern, name))
        };
        self.keys.iter().find(may)
    }

    /// Checks who vouches for an entry before its bytes are used. `signed` holds key and signature where the entry
    /// has them; `pinned` says that the project itself states the digest.
    pub fn admit(
        &self,
        statement: &Statement,
        signed: Option<(&str, &str)>,
        pinned: bool,
        place: &str,
    ) -> Result<(), Diagnostic> {
        let name = &statement.name;
        let Some((key, signature)) = signed else {
            if self.unsigned == Unsigned::Allow || (pinned && self.unsigned == Unsigned::Pinned) {
                return Ok(());
            }
            let error = Diagnostic::new(format!("nobody has signed plugin `{name}`")).at(place);
            return Err(if pinned {
                error
                    .detail("rule", "unsigned = \"refuse\"")
                    .detail("policy", self.named())
                    .help("ask its author for a signed version, or change the rule")
            } else {
                error
                    .expected("a signature by a key that you trust, or a digest in your own registry")
                    .found(format!("sha256 {}", statement.sha256))
                    .help(format!(
                        "if you know by other means that this is the right component: espalier plugin add {name} --sha256 {} ...",
                        statement.sha256
                    ))
            });
        };
        let key = PublicKey::parse(key).ok_or_else(|| {
            Diagnostic::new(format!("the key of plugin `{name}` is no key"))
                .at(place)
                .found(key)
        })?;
        key.check(statement, signature, place)?;
        if self.trusts(&key, name).is_some() {
            return Ok(());
        }
        let error = Diagnostic::new(format!(
            "plugin `{name}` is signed by a key that you do not trust for it"
        ))
        .at(place)
        .detail("key", key.as_str());
        let error = if self.refused.contains(&key) {
            return Err(error
                .detail("because", "the policy refuses this key")
                .detail("policy", self.named()));
        } else if let Some(known) = self.keys.iter().find(|trusted| trusted.key == key) {
            error.detail(
                "because",
                format!(
                    "it may sign {}",
                    one_of(known.names.iter().map(String::as_str))
                ),
            )
        } else {
            error
        };
        Err(error.detail("policy", self.named()).help(format!(
            "if its author has told you this key: espalier key trust {} --for {name}",
            key.as_str()
        )))
    }

    fn named(&self) -> String {
        if self.files.is_empty() {
            return "none; no key is trusted".into();
        }
        let files: Vec<String> = self.files.iter().map(|f| f.display().to_string()).collect();
        files.join(", ")
    }
}

/// True if the pattern, in which `*` stands for any characters, is this name.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(left) = name.strip_prefix(start) else {
        return false;
    };
    // At every place where the star may end. Names are short.
    (0..=left.len()).any(|at| left.is_char_boundary(at) && fits(rest, &left[at..]))
}

/// Adds a key to a policy file, which is made if it is missing; comments and order stay.
pub fn trust_key(
    file: &Path,
    key: &PublicKey,
    owner: &str,
    names: &[String],
) -> Result<(), Diagnostic> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "# Which keys may sign which plugins; docs/security.md explains it.\nschema = 1\n"
                .into()
        }
        Err(error) => {
            return Err(Diagnostic::new("cannot read the trust policy")
                .at(file.display().to_string())
                .because_io(&error));
        }
    };
    if file.exists() {
        // A file with errors is shown with all of them, and not touched.
        Policy::read(file)?;
    }
    let mut document: toml_edit::DocumentMut = text.parse().map_err(|error| {
        Diagnostic::new("the trust policy is not TOML")
            .at(file.display().to_string())
            .because(&error)
    })?;
    let mut table = toml_edit::Table::new();
    table.insert("key", toml_edit::value(key.as_str()));
    if !owner.is_empty() {
        table.insert("owner", toml_edit::value(owner));
    }
    let names: toml_edit::Array = names.iter().map(String::as_str).collect();
    table.insert("names", toml_edit::value(names));
    let keys = document
        .entry("key")
        .or_insert(toml_edit::Item::ArrayOfTables(Default::default()));
    let Some(keys) = keys.as_array_of_tables_mut() else {
        return Err(
            Diagnostic::new("`key` of the trust policy is no list of tables")
                .at(file.display().to_string())
                .expected("[[key]] tables"),
        );
    };
    keys.push(table);
    crate::store::replace(file, document.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn statement() -> Statement {
        Statement {
            name: "snip".into(),
            version: "1.2.0".into(),
            slot: Slot::Pruner,
            interface: "0.1.0".into(),
            sha256: "ab".repeat(32),
            licence: "MIT OR Apache-2.0".into(),
        }
    }

    fn key() -> SecretKey {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        SecretKey::of(pair.sk).unwrap()
    }

    fn policy(key: &PublicKey, names: &[&str]) -> Policy {
        Policy {
            keys: vec![Trusted {
                key: key.clone(),
                owner: String::new(),
                names: names.iter().map(|name| name.to_string()).collect(),
            }],
            ..Policy::default()
        }
    }

    #[test]
    fn a_signature_holds_for_its_statement_and_no_other() {
        let key = key();
        let signature = key.sign(&statement()).unwrap();
        key.public().check(&statement(), &signature, "r:1").unwrap();
        let changes: [fn(&mut Statement); 6] = [
            |s| s.name = "snap".into(),
            |s| s.version = "1.3.0".into(),
            |s| s.slot = Slot::Trainer,
            |s| s.interface = "0.2.0".into(),
            |s| s.sha256 = "cd".repeat(32),
            |s| s.licence = "MIT".into(),
        ];
        for change in changes {
            let mut changed = statement();
            change(&mut changed);
            let error = key.public().check(&changed, &signature, "r:1").unwrap_err();
            assert_eq!(
                error.what,
                format!(
                    "the entry of plugin `{}` is not what its author signed",
                    changed.name
                )
            );
            let signed = &error.details.iter().find(|(l, _)| l == "signed").unwrap().1;
            let found = &error.details.iter().find(|(l, _)| l == "found").unwrap().1;
            assert_ne!(signed, found);
        }
    }

    #[test]
    fn a_comment_put_on_another_signature_is_refused() {
        let key = key();
        let mut other = statement();
        other.version = "1.3.0".into();
        let lines = |text: String| text.lines().map(str::to_string).collect::<Vec<_>>();
        let mut mixed = lines(key.sign(&statement()).unwrap());
        mixed[2] = lines(key.sign(&other).unwrap())[2].clone();
        let error = key.public().check(&other, &mixed.join("\n"), "r:1");
        assert!(error.unwrap_err().what.ends_with("does not hold"));
        // minisign's old form has two lines and no comment.
        let error = key
            .public()
            .check(&statement(), &mixed[..2].join("\n"), "r:1");
        assert!(error.unwrap_err().what.ends_with("does not hold"));
    }

    #[test]
    fn another_key_does_not_vouch() {
        let signature = key().sign(&statement()).unwrap();
        let error = key().public().check(&statement(), &signature, "r:1");
        assert!(error.unwrap_err().what.ends_with("does not hold"));
    }

    #[test]
    fn a_key_is_trusted_for_the_names_it_was_given_and_no_others() {
        let key = key();
        let signature = key.sign(&statement()).unwrap();
        let signed = Some((key.public().as_str(), signature.as_str()));
        let admit = |policy: &Policy| policy.admit(&statement(), signed, true, "r:1");
        admit(&policy(key.public(), &["snip"])).unwrap();
        admit(&policy(key.public(), &["other", "sn*"])).unwrap();
        let error = admit(&policy(key.public(), &["other"])).unwrap_err();
        assert_eq!(
            error.what,
            "plugin `snip` is signed by a key that you do not trust for it"
        );
        admit(&Policy::default()).unwrap_err();
        let mut refused = policy(key.public(), &["*"]);
        refused.refused.push(key.public().clone());
        admit(&refused).unwrap_err();
    }

    #[test]
    fn the_unsigned_are_taken_as_the_rule_says() {
        let admit = |unsigned: Unsigned, pinned: bool| {
            let policy = Policy {
                unsigned,
                ..Policy::default()
            };
            policy.admit(&statement(), None, pinned, "r:1").is_ok()
        };
        assert!(admit(Unsigned::Pinned, true));
        assert!(!admit(Unsigned::Pinned, false));
        assert!(!admit(Unsigned::Refuse, true));
        assert!(admit(Unsigned::Allow, false));
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(fits("*", "snip") && fits("lab-*", "lab-snip") && fits("*-x-*", "a-x-b"));
        assert!(!fits("lab-*", "snip") && !fits("snip", "snipe") && !fits("*-x", "a-x-b"));
    }

    #[test]
    fn of_two_rules_the_stricter_holds_and_keys_count_together() {
        let (a, b) = (key(), key());
        let parts = vec![
            (policy(a.public(), &["a"]), Some(Unsigned::Refuse)),
            (policy(b.public(), &["b"]), Some(Unsigned::Allow)),
        ];
        let whole = Policy::of(parts).unwrap();
        assert_eq!(whole.unsigned, Unsigned::Refuse);
        assert!(whole.trusts(a.public(), "a").is_some() && whole.trusts(b.public(), "b").is_some());
        assert_eq!(Policy::of(Vec::new()).unwrap().unsigned, Unsigned::Pinned);
    }
}
