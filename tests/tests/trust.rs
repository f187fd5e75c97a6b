//! What was tampered with is refused, in words that say why, and none of it is loaded.
//!
//! Each case's words are in `tests/trust/NAME.txt`; to write them anew after a change of words, set
//! `ESPALIER_WRITE_EXPECTED=1` and read the difference. Folders, keys and digests are written as `[market]`,
//! `[author's key]` and `[digest 1]`, the same digest always with the same number.

#![allow(clippy::unwrap_used)]

use std::{env, fs};

use espalier_tests::market::{Market, Web, magnitude_of};
use espalier_tests::workspace;

const ADD: [&str; 5] = ["plugin", "add", "magnitude", "--from", "../lab"];
const RUN: [&str; 2] = ["run", "run.toml"];

/// The command is refused in the case's words, and nothing of it has come about: no run, no change of the registry.
fn refused(market: &Market, name: &str, args: &[&str]) {
    let before = market.text("project/registry.toml");
    let said = market.refused(args);
    assert_eq!(market.text("project/registry.toml"), before, "{name}");
    assert!(!market.path("project/runs").exists(), "{name} left a run");
    assert!(
        !market.path("project/espalier.lock").exists(),
        "{name} left a lock"
    );
    let file = workspace().join("tests/trust").join(format!("{name}.txt"));
    if env::var_os("ESPALIER_WRITE_EXPECTED").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &said).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or("(no such file)".into());
    assert_eq!(said, expected, "{name}");
}

/// The text between two marks, the marks included.
fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let at = text.find(start).unwrap();
    let to = text[at..].find(end).unwrap();
    &text[at..at + to + end.len()]
}

/// The entry of a version in a registry's text, from its header to its last line.
fn entry_of<'t>(text: &'t str, version: &str) -> &'t str {
    let starts = text.match_indices("[[plugin]]").map(|(at, _)| at);
    let mut entries = starts.map(|at| between(&text[at..], "[[plugin]]", "\n\"\"\"\n"));
    let line = format!("\nversion = \"{version}\"");
    entries.find(|entry| entry.contains(&line)).unwrap()
}

#[test]
fn an_honest_registry_is_added_and_runs() {
    let market = Market::with_added("honest", "0.2.0");
    market.good(&RUN);
    assert!(market.path("project/runs/run/lock.toml").is_file());
}

#[test]
fn a_flipped_byte_is_refused_when_added_and_when_run() {
    let market = Market::with_added("flipped", "0.2.0");
    let name = "lab/components/magnitude-0.2.0.wasm";
    let mut bytes = fs::read(market.path(name)).unwrap();
    bytes[1000] ^= 1;
    market.write(name, &bytes);
    fs::remove_file(market.path(&market.stored("0.2.0"))).unwrap();
    refused(&market, "flipped-byte-run", &RUN);
    refused(&market, "flipped-byte-add", &ADD);
}

#[test]
fn an_edited_entry_is_refused_with_both_identities() {
    for (what, from, to) in [
        ("version", "\nversion = \"0.2.0\"", "\nversion = \"0.3.0\""),
        ("slot", "\nslot = \"pruner\"", "\nslot = \"trainer\""),
        (
            "licence",
            "\nlicence = \"MIT\"",
            "\nlicence = \"Unlicense\"",
        ),
        (
            "interface",
            "\ninterface = \"0.1.0\"",
            "\ninterface = \"0.1.9\"",
        ),
    ] {
        let market = Market::with_magnitude(&format!("edited-{what}"));
        let text = market.text("lab/registry.toml");
        let edited = entry_of(&text, "0.2.0").replace(from, to);
        assert!(edited.contains(to));
        // Alone, or the slot would disagree with the other versions' first.
        market.write(
            "lab/registry.toml",
            format!("schema = 1\n\n{edited}").as_bytes(),
        );
        refused(&market, &format!("edited-{what}"), &ADD);
    }
}

#[test]
fn an_entry_under_another_name_is_refused_in_the_projects_own_registry_too() {
    let market = Market::with_added("renamed", "0.2.0");
    market.replace(
        "project/registry.toml",
        "name = \"magnitude\"\n",
        "name = \"magnitudes\"\n",
    );
    market.replace(
        "project/run.toml",
        "plugin = \"magnitude\"",
        "plugin = \"magnitudes\"",
    );
    refused(&market, "edited-name", &RUN);
}

#[test]
fn an_entry_with_another_components_digest_is_refused() {
    let market = Market::with_added("digest", "0.2.0");
    let text = market.text("project/registry.toml");
    let start = text.find("sha256 = \"").unwrap() + 10;
    let old = text[start..start + 64].to_string();
    let other = espalier_runtime::component::sha256(&magnitude_of("0.1.0"));
    market.replace(
        "project/registry.toml",
        &format!("sha256 = \"{old}\""),
        &format!("sha256 = \"{other}\""),
    );
    refused(&market, "edited-digest", &RUN);
}

#[test]
fn an_older_version_does_not_replace_a_newer_one_unless_it_is_meant() {
    let market = Market::with_added("replayed", "0.2.0");
    let text = market.text("lab/registry.toml");
    let old = format!("schema = 1\n\n{}", entry_of(&text, "0.1.0"));
    market.write("lab/registry.toml", old.as_bytes());
    refused(&market, "replayed-older-version", &ADD);
    let mut args = ADD.to_vec();
    args.push("--downgrade");
    market.good(&args);
    assert!(
        market
            .text("project/registry.toml")
            .contains("version = \"0.1.0\"\nslot = \"pruner\"")
    );
}

#[test]
fn an_older_component_under_a_newer_version_is_refused() {
    let market = Market::with_magnitude("masked");
    let text = market.text("lab/registry.toml");
    let masked = entry_of(&text, "0.1.0").replace("\nversion = \"0.1.0\"", "\nversion = \"0.3.0\"");
    market.write(
        "lab/registry.toml",
        format!("schema = 1\n\n{masked}").as_bytes(),
    );
    refused(&market, "replayed-under-a-newer-version", &ADD);
}

#[test]
fn the_signature_of_another_plugin_is_refused() {
    let market = Market::with_magnitude("crossed");
    let output = market.publish(&magnitude_of("0.2.0"), Some("author"), &["--name", "thin"]);
    assert!(output.status.success());
    let text = market.text("lab/registry.toml");
    let thin = text.split("[[plugin]]").last().unwrap();
    let signature = between(thin, "signature = \"\"\"", "\n\"\"\"");
    let mine = entry_of(&text, "0.2.0");
    let crossed = mine.replace(between(mine, "signature = \"\"\"", "\n\"\"\""), signature);
    market.write(
        "lab/registry.toml",
        format!("schema = 1\n\n{crossed}").as_bytes(),
    );
    refused(&market, "signature-of-another-plugin", &ADD);
}

#[test]
fn a_signature_whose_comment_was_edited_is_refused() {
    let market = Market::with_magnitude("comment");
    let text = market.text("lab/registry.toml");
    let edited = entry_of(&text, "0.2.0").replace(" version=0.2.0 ", " version=0.3.0 ");
    let edited = edited.replace("\nversion = \"0.2.0\"", "\nversion = \"0.3.0\"");
    market.write(
        "lab/registry.toml",
        format!("schema = 1\n\n{edited}").as_bytes(),
    );
    refused(&market, "signature-with-an-edited-comment", &ADD);
}

#[test]
fn a_key_that_is_not_trusted_or_not_for_this_name_or_refused_does_not_vouch() {
    let market = Market::with_magnitude("untrusted");
    let policy = "home/config/espalier/trust.toml";
    let trusting = market.text(policy);
    fs::remove_file(market.path(policy)).unwrap();
    refused(&market, "key-not-trusted", &ADD);
    let other = trusting.replace("names = [\"magnitude\"]", "names = [\"wanda\", \"lab-*\"]");
    market.write(policy, other.as_bytes());
    refused(&market, "key-not-trusted-for-this-name", &ADD);
    let key = market.text("home/author.key.pub");
    let key = key.lines().last().unwrap();
    let refusing = trusting.replace(
        "schema = 1\n",
        &format!("schema = 1\nrefuse = [\"{key}\"]\n"),
    );
    market.write(policy, refusing.as_bytes());
    refused(&market, "key-refused", &ADD);
    market.write(policy, trusting.as_bytes());
    market.good(&ADD);
}

#[test]
fn a_key_that_is_no_longer_trusted_does_not_vouch_for_what_is_in_the_store() {
    let market = Market::with_added("revoked", "0.2.0");
    fs::remove_file(market.path("home/config/espalier/trust.toml")).unwrap();
    refused(&market, "key-no-longer-trusted", &RUN);
}

#[test]
fn an_entry_that_nobody_signed_is_refused_unless_its_digest_is_given() {
    let market = Market::with_magnitude("unsigned");
    let text = market.text("lab/registry.toml");
    let entry = entry_of(&text, "0.2.0");
    let unsigned = &entry[..entry.find("key = ").unwrap()];
    market.write(
        "lab/registry.toml",
        format!("schema = 1\n\n{unsigned}").as_bytes(),
    );
    refused(&market, "unsigned", &ADD);
    let wrong = "0".repeat(64);
    let mut args = ADD.to_vec();
    args.extend(["--sha256", &wrong]);
    refused(&market, "unsigned-with-another-digest", &args);
    let right = espalier_runtime::component::sha256(&magnitude_of("0.2.0"));
    let mut args = ADD.to_vec();
    args.extend(["--sha256", &right]);
    market.good(&args);
    market.run_file();
    // A stricter policy holds for what is there already.
    market.write("project/trust.toml", b"schema = 1\nunsigned = \"refuse\"\n");
    refused(&market, "unsigned-and-the-policy-refuses", &RUN);
    fs::remove_file(market.path("project/trust.toml")).unwrap();
    market.good(&RUN);
}

#[test]
fn a_download_that_is_cut_short_is_refused() {
    let market = Market::with_magnitude("cut");
    let web = Web::serve(&market.path("lab"), 1000);
    let from = format!("{}/registry.toml", web.address);
    let said = market.refused(&["plugin", "add", "magnitude", "--from", &from]);
    assert!(
        said.starts_with("error: the download was cut short\n"),
        "{said}"
    );
    assert!(said.contains("found     1000 bytes"), "{said}");
    assert!(!market.text("project/registry.toml").contains("magnitude"));
    assert!(!market.path(&market.stored("0.2.0")).exists());
}

#[test]
fn a_digest_of_another_algorithm_is_refused() {
    for (what, digest) in [
        ("md5", "d41d8cd98f00b204e9800998ecf8427e".to_string()),
        ("sha512", format!("sha512:{}", "ab".repeat(64))),
    ] {
        let market = Market::with_magnitude(&format!("algorithm-{what}"));
        let text = market.text("lab/registry.toml");
        let entry = entry_of(&text, "0.2.0");
        let start = entry.find("sha256 = \"").unwrap() + 10;
        let changed = entry.replace(&entry[start..start + 64], &digest);
        market.write(
            "lab/registry.toml",
            format!("schema = 1\n\n{changed}").as_bytes(),
        );
        refused(&market, &format!("digest-is-{what}"), &ADD);
    }
}

#[test]
fn a_link_in_the_store_is_refused_even_to_the_right_bytes() {
    let market = Market::with_added("link", "0.2.0");
    let elsewhere = market.write("elsewhere.wasm", &magnitude_of("0.2.0"));
    let stored = market.path(&market.stored("0.2.0"));
    fs::remove_file(&stored).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &stored).unwrap();
    refused(&market, "link-in-the-store", &RUN);
}

#[test]
fn a_strangers_registry_cannot_name_files_outside_its_folder() {
    let market = Market::with_magnitude("outside");
    let elsewhere = market.write("elsewhere.wasm", &magnitude_of("0.2.0"));
    let component = market.path("lab/components/magnitude-0.2.0.wasm");
    fs::remove_file(&component).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &component).unwrap();
    refused(&market, "link-out-of-a-registry", &ADD);
    market.replace(
        "lab/registry.toml",
        "components/magnitude-0.2.0.wasm",
        "../elsewhere.wasm",
    );
    refused(&market, "file-outside-a-registry", &ADD);
}

#[test]
fn a_component_that_was_replaced_in_the_store_is_refused() {
    let market = Market::with_added("replaced", "0.2.0");
    // A component that would run as well.
    market.write(&market.stored("0.2.0"), &magnitude_of("0.1.0"));
    refused(&market, "replaced-in-the-store", &RUN);
}

#[test]
fn a_store_that_others_may_write_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let market = Market::with_added("open", "0.2.0");
    let store = market.path("home/cache/espalier/store");
    fs::set_permissions(store, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&market, "store-open-to-others", &RUN);
}

#[test]
fn a_plugin_in_source_of_another_registry_is_not_built() {
    let market = Market::with_magnitude("source");
    market.write(
        "lab/registry.toml",
        b"schema = 1\n\n[[plugin]]\nname = \"magnitude\"\nversion = \"0.1.0\"\nslot = \"pruner\"\nsummary = \"s\"\ninterface = \"0.1\"\nlicence = \"MIT\"\nsource = { path = \"magnitude\" }\n",
    );
    market.write(
        "project/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../lab/registry.toml\"\n",
    );
    market.run_file();
    refused(&market, "source-of-another-registry", &RUN);
}

#[test]
fn words_of_a_stranger_reach_the_terminal_without_control_characters() {
    let market = Market::with_magnitude("terminal");
    market.replace(
        "lab/registry.toml",
        "\nsummary = \"",
        "\nsummary = \"\\u001b[2J",
    );
    market.write(
        "project/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../lab/registry.toml\"\n",
    );
    let said = market.good(&["plugin", "list"]);
    assert!(
        said.contains("magnitude") && !said.contains('\u{1b}'),
        "{said:?}"
    );
}
