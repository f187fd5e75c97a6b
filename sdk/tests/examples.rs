//! Every public item of the SDK has an example in its documentation. Whether the examples compile is the doc tests'
//! business; that there is one is checked here, in the source, because rustdoc's own lint for it is not stable.
//!
//! Not looked at: fields, variants and the functions of traits (the example of the type or the trait shows them), and
//! what is re-exported from the generated bindings, whose words are `wit/`'s.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Generated, hidden, or without items of their own.
const LEFT_OUT: [&str; 4] = ["bindings.rs", "guest.rs", "lib.rs", "export.rs"];

/// Line numbers and first lines of public items without an example.
fn without_example(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut example, mut hidden) = (false, false);
    // Inside `unary! { .. }` and `binary! { .. }` a function is its documentation and its name.
    let mut names_only = false;
    for (number, line) in source.lines().enumerate() {
        let words = line.trim();
        if words == "#[cfg(test)]" {
            break;
        }
        if words.starts_with("///") {
            example |= words.contains("```");
            continue;
        }
        if words.starts_with("#[") {
            hidden |= words.contains("doc(hidden)");
            continue;
        }
        names_only = match words {
            "unary! {" | "binary! {" => true,
            "}" => false,
            _ => names_only,
        };
        let is_name = !words.is_empty() && words.chars().all(|c| c.is_alphanumeric() || c == '_');
        let public = words.strip_prefix("pub ").is_some_and(|rest| {
            let rest = rest.strip_prefix("const ").unwrap_or(rest);
            let kinds = ["fn ", "struct ", "enum ", "trait ", "type "];
            kinds.iter().any(|kind| rest.starts_with(kind)) && !rest.contains('$')
        });
        if (public || names_only && is_name) && !example && !hidden {
            found.push((number + 1, words.to_string()));
        }
        (example, hidden) = (false, false);
    }
    found
}

#[test]
fn every_public_item_has_an_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect();
    files.sort();
    assert!(files.len() > LEFT_OUT.len());
    let mut missing = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if LEFT_OUT.contains(&name.as_str()) {
            continue;
        }
        for (line, item) in without_example(&std::fs::read_to_string(&path).unwrap()) {
            missing.push(format!("sdk/src/{name}:{line}: {item}"));
        }
    }
    assert!(
        missing.is_empty(),
        "without an example:\n{}",
        missing.join("\n")
    );
}

#[test]
fn an_item_without_an_example_is_found() {
    let source = "/// One.\npub fn one() {}\n/// Two.\n///\n/// ```\n/// ```\n#[inline]\npub fn two() {}\n\
                  #[doc(hidden)]\npub fn three() {}\nunary! {\n    /// Sine.\n    sin\n}\npub(crate) fn four() {}\n";
    let found = without_example(source);
    assert_eq!(
        found,
        [(2, "pub fn one() {}".into()), (13, "sin".to_string())]
    );
}
