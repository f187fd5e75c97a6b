//! Keys, publishing into a registry folder, adding from it, includes, and the lock beside a run file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use espalier_tests::market::{Market, Web, built, magnitude, magnitude_of, shown};

const ADD: [&str; 5] = ["plugin", "add", "magnitude", "--from", "../lab"];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_key_is_for_its_owners_eyes_and_never_written_over() {
    let market = Market::new("key");
    let public = market.key("author");
    let file = market.path("home/author.key");
    let about = fs::metadata(&file).unwrap();
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    assert_eq!(market.good(&["key", "show", &shown(&file)]).trim(), public);
    let before = fs::read(&file).unwrap();
    let error = market.refused(&["key", "new", "--no-password", "--out", &shown(&file)]);
    assert!(error.contains("a key is never written over"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_key_under_a_password_signs_with_it_and_not_without() {
    let market = Market::new("password");
    let file = shown(&market.path("home/author.key"));
    let mut command = market.command(&["key", "new", "--out", &file]);
    let output = command
        .env("ESPALIER_KEY_PASSWORD", "correct horse")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let component = market.write("magnitude.wasm", magnitude());
    let registry = shown(&market.path("lab/registry.toml"));
    let component = shown(&component);
    let args = [
        "plugin",
        "publish",
        &component,
        "--registry",
        &registry,
        "--licence",
        "MIT",
        "--sign",
        &file,
    ];
    let sign = |password: &str| {
        market
            .command(&args)
            .env("ESPALIER_KEY_PASSWORD", password)
            .output()
            .unwrap()
    };
    let output = sign("wrong");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("Wrong password"),
        "{}",
        said(&output)
    );
    assert!(!market.path("lab/registry.toml").exists());
    let output = sign("correct horse");
    assert!(output.status.success(), "{}", said(&output));
    assert!(market.text("lab/registry.toml").contains("\nsignature = "));
}

#[test]
fn publishing_keeps_what_people_wrote_in_the_registry() {
    let market = Market::new("comments");
    let before = "# The lab's plugins; ask Ada.\nschema = 1 # since 2026\n";
    market.write("lab/registry.toml", before.as_bytes());
    let output = market.publish(magnitude(), None, &["--paper", "Han et al. 2015"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = market.text("lab/registry.toml");
    assert!(text.starts_with(before), "{text}");
    for line in [
        "name = \"magnitude\"",
        "version = \"0.1.0\"",
        "slot = \"pruner\"",
        "licence = \"MIT\"",
        "paper = \"Han et al. 2015\"",
        &format!("size = {}", magnitude().len()),
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
    assert_eq!(
        fs::read(market.path("lab/components/magnitude-0.1.0.wasm")).unwrap(),
        magnitude()
    );
}

#[test]
fn a_version_that_is_not_higher_another_slot_and_no_licence_are_refused() {
    let market = Market::with_magnitude("follow");
    let before = market.text("lab/registry.toml");
    for version in ["0.2.0", "0.1.5"] {
        let output = market.publish(&magnitude_of(version), None, &[]);
        let error = said(&output);
        assert_eq!(output.status.code(), Some(2));
        assert!(error.contains("expected  a version above 0.2.0"), "{error}");
        assert!(error.contains(&format!("found     {version}")), "{error}");
    }
    let output = market.publish(&built("backprop"), None, &["--name", "magnitude"]);
    assert!(
        said(&output).starts_with("error: plugin `magnitude` changes its slot\n"),
        "{}",
        said(&output)
    );
    let component = shown(&market.write("magnitude.wasm", &magnitude_of("0.3.0")));
    let registry = shown(&market.path("lab/registry.toml"));
    let error = market.refused(&["plugin", "publish", &component, "--registry", &registry]);
    assert!(
        error.starts_with("error: plugin `magnitude` has no licence\n"),
        "{error}"
    );
    assert_eq!(market.text("lab/registry.toml"), before);
}

#[test]
fn a_publish_that_fails_leaves_nothing_behind() {
    let market = Market::new("whole");
    market.write("lab/registry.toml", b"schema = 1\n");
    // Where the folder of components should be there is a file.
    market.write("lab/components", b"");
    let output = market.publish(magnitude(), None, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(market.text("lab/registry.toml"), "schema = 1\n");
    fs::remove_file(market.path("lab/components")).unwrap();
    market.write(
        "lab/registry.toml",
        b"schema = 1\n[[plugin]]\nname = \"x\"\n",
    );
    let output = market.publish(magnitude(), None, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(!market.path("lab/components").exists());
}

#[test]
fn publishing_at_once_loses_nothing() {
    let market = Market::new("at-once");
    let component = shown(&market.write("magnitude.wasm", magnitude()));
    let registry = shown(&market.path("lab/registry.toml"));
    let names = ["a", "b", "c", "d"];
    let publish = |name| {
        let args = [
            "plugin",
            "publish",
            &component,
            "--registry",
            &registry,
            "--licence",
            "MIT",
            "--name",
            name,
        ];
        market.command(&args).spawn().unwrap()
    };
    for mut child in names.map(publish) {
        assert!(child.wait().unwrap().success());
    }
    let text = market.text("lab/registry.toml");
    for name in names {
        assert!(text.contains(&format!("name = \"{name}\"")), "{text}");
    }
}

#[test]
fn the_highest_version_that_was_asked_for_is_added_and_kept() {
    let market = Market::with_magnitude("semver");
    let version = |asked: &str| {
        let output = market.good(&["plugin", "add", asked, "--from", "../lab", "--json"]);
        let added: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(added["signed_by"], "The author");
        added["entry"]["version"].as_str().unwrap().to_string()
    };
    assert_eq!(version("magnitude@=0.1.0"), "0.1.0");
    assert_eq!(version("magnitude@0.1"), "0.1.1");
    assert_eq!(version("magnitude"), "0.2.0");
    let error = market.refused(&["plugin", "add", "magnitude@0.3", "--from", "../lab"]);
    assert!(error.contains("0.1.0 (interface 0.1.0)"), "{error}");
    let error = market.refused(&["plugin", "add", "magnitud", "--from", "../lab"]);
    assert!(error.contains("did you mean `magnitude`?"), "{error}");
    let text = market.text("project/registry.toml");
    assert!(text.starts_with("# Our plugins.\nschema = 1\n"), "{text}");
    assert_eq!(text.matches("[[plugin]]").count(), 1, "{text}");
    // What was added does not need its registry any more.
    fs::remove_dir_all(market.path("lab")).unwrap();
    market.run_file();
    market.good(&["run", "run.toml"]);
}

#[test]
fn a_registry_on_the_web_is_added_from_and_fetched_from_again() {
    let market = Market::with_magnitude("web");
    let web = Web::serve(&market.path("lab"), usize::MAX);
    let from = format!("{}/registry.toml", web.address);
    market.good(&["plugin", "add", "magnitude", "--from", &from]);
    let kept = market.path(&market.stored("0.2.0"));
    assert_eq!(fs::read(&kept).unwrap(), magnitude_of("0.2.0"));
    let entry = market.text("project/registry.toml");
    assert!(
        entry.contains(&format!(
            "from = \"{}/components/magnitude-0.2.0.wasm\"",
            web.address
        )),
        "{entry}"
    );
    fs::remove_file(&kept).unwrap();
    market.good(&["plugin", "inspect", "magnitude"]);
    assert!(kept.is_file());
    let error = market.refused(&[
        "plugin",
        "add",
        "magnitude",
        "--from",
        &format!("{}/no.toml", web.address),
    ]);
    assert!(error.contains("status 404"), "{error}");
}

#[test]
fn a_bare_component_needs_its_digest_and_its_licence() {
    let market = Market::new("bare");
    market.write("lab/magnitude.wasm", magnitude());
    let add = [
        "plugin",
        "add",
        "magnitude",
        "--from",
        "../lab/magnitude.wasm",
    ];
    let error = market.refused(&add);
    assert!(
        error.starts_with("error: nobody has signed plugin `magnitude`\n"),
        "{error}"
    );
    let digest = espalier_runtime::component::sha256(magnitude());
    let mut args = add.to_vec();
    args.extend(["--sha256", &digest]);
    let error = market.refused(&args);
    assert!(
        error.starts_with("error: plugin `magnitude` has no licence\n"),
        "{error}"
    );
    args.extend(["--licence", "MIT"]);
    market.good(&args);
    market.run_file();
    market.good(&["run", "run.toml"]);
}

#[test]
fn included_registries_offer_their_signed_plugins() {
    let market = Market::with_magnitude("include");
    market.write(
        "project/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../lab/registry.toml\"\n",
    );
    market.run_file();
    market.good(&["run", "run.toml"]);
    // The highest version runs.
    assert!(
        market
            .text("project/espalier.lock")
            .contains("version = \"0.2.0\"")
    );
    // Unsigned entries are as good as the digest of the file that holds them.
    let text = market.text("lab/registry.toml");
    let start = text.find("key = \"RW").unwrap();
    market.write("lab/registry.toml", &text.as_bytes()[..start]);
    fs::remove_file(market.path("project/espalier.lock")).unwrap();
    let error = market.refused(&["run", "run.toml"]);
    assert!(
        error.starts_with("error: nobody has signed plugin `magnitude`\n"),
        "{error}"
    );
    let digest = espalier_runtime::component::sha256(market.text("lab/registry.toml").as_bytes());
    market.replace(
        "project/registry.toml",
        "registry.toml\"\n",
        &format!("registry.toml\"\nsha256 = \"{digest}\"\n"),
    );
    market.good(&["run", "run.toml"]);
    market.replace(
        "lab/registry.toml",
        "schema = 1\n",
        "# A word.\nschema = 1\n",
    );
    let error = market.refused(&["run", "run.toml"]);
    assert!(
        error.starts_with("error: an included registry was changed\n"),
        "{error}"
    );
}

#[test]
fn registries_that_include_each_other_are_refused() {
    let market = Market::new("circle");
    market.write(
        "project/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../lab/registry.toml\"\n",
    );
    market.write(
        "lab/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../project/registry.toml\"\n",
    );
    let error = market.refused(&["plugin", "list"]);
    assert!(
        error.starts_with("error: registries include each other in a circle\n"),
        "{error}"
    );
}

#[test]
fn a_name_in_two_included_registries_is_nobodys() {
    let market = Market::with_magnitude("confused");
    let text = market.text("lab/registry.toml");
    market.write("other/registry.toml", text.as_bytes());
    market.write(
        "project/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../lab/registry.toml\"\n\n[[include]]\npath = \"../other/registry.toml\"\n",
    );
    let error = market.refused(&["plugin", "inspect", "magnitude"]);
    assert!(
        error.starts_with("error: two included registries have a plugin `magnitude`\n"),
        "{error}"
    );
}

#[test]
fn the_lock_holds_versions_and_locked_runs_refuse_to_differ() {
    let market = Market::with_added("lock", "0.1.0");
    let locked = ["run", "run.toml", "--locked"];
    let error = market.refused(&locked);
    assert!(
        error.starts_with("error: there is no lock to hold to\n"),
        "{error}"
    );
    market.good(&["run", "run.toml"]);
    let lock = market.text("project/espalier.lock");
    assert!(
        lock.contains("version = \"0.1.0\"") && lock.contains("source = \"from ../lab/"),
        "{lock}"
    );
    market.good(&locked);
    market.good(&ADD);
    let error = market.refused(&locked);
    assert!(
        error.starts_with("error: plugin `magnitude` is not as it was locked\n"),
        "{error}"
    );
    assert!(
        error.contains("magnitude 0.1.0, pruner") && error.contains("magnitude 0.2.0, pruner"),
        "{error}"
    );
    assert_eq!(market.text("project/espalier.lock"), lock);
    market.good(&["run", "run.toml"]);
    assert!(
        market
            .text("project/espalier.lock")
            .contains("version = \"0.2.0\"")
    );
}

#[test]
fn a_run_keeps_the_locked_version_while_the_registry_has_it() {
    let market = Market::with_magnitude("keep");
    market.write(
        "project/registry.toml",
        b"schema = 1\n\n[[include]]\npath = \"../lab/registry.toml\"\n",
    );
    market.run_file();
    market.good(&["run", "run.toml"]);
    let digest = |version: &str| espalier_runtime::component::sha256(&magnitude_of(version));
    let lock = market.text("project/espalier.lock");
    let older = lock
        .replace("\"0.2.0\"", "\"0.1.1\"")
        .replace(&digest("0.2.0"), &digest("0.1.1"));
    let older = older.replace("magnitude-0.2.0", "magnitude-0.1.1");
    assert_ne!(lock, older);
    market.write("project/espalier.lock", older.as_bytes());
    market.good(&["run", "run.toml", "--locked"]);
    // The same version with other bytes is refused even where nothing was locked.
    market.write(
        "project/espalier.lock",
        older.replace(&digest("0.1.1"), &digest("0.1.0")).as_bytes(),
    );
    let error = market.refused(&["run", "run.toml"]);
    assert!(
        error.starts_with("error: plugin `magnitude` 0.1.1 was changed since it was locked\n"),
        "{error}"
    );
}
