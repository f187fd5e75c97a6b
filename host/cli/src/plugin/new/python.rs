//! A plugin in Python: one module and a `pyproject.toml`.

use espalier_runtime::diagnostic::Diagnostic;

use super::{File, filled, no_template, shown};
use crate::args::{New, NewSlot, Template};

/// The module's text and its world.
fn source(slot: NewSlot, template: Template) -> Option<(&'static str, &'static str)> {
    match (slot, template) {
        (NewSlot::Normalizer, Template::Blank) => Some((
            include_str!("../../../templates/normalizer-blank.py"),
            "normalizer",
        )),
        (NewSlot::Pruner, Template::Blank) => {
            Some((include_str!("../../../templates/pruner-blank.py"), "pruner"))
        }
        _ => None,
    }
}

/// The module, its `pyproject.toml`, and what git must not keep.
pub(super) fn files(args: &New) -> Result<Vec<File>, Diagnostic> {
    let Some((module, world)) = source(args.slot, args.template) else {
        let wanted = format!("{} --template {}", args.slot.slot(), shown(args.template));
        return Err(no_template(
            &format!("in Python for --slot {wanted}"),
            args.slot.slot(),
            &[
                "--slot normalizer",
                "--slot pruner",
                "each with --template blank",
            ],
        ));
    };
    let project = format!(
        "[project]\nname = \"espalier-plugin-{}\"\nversion = \"0.1.0\"\nrequires-python = \">=3.10\"\nlicense = \"MIT OR Apache-2.0\"\n\n# How `espalier plugin build` makes a component of it.\n[tool.espalier]\nmodule = {:?}\nworld = {world:?}\n",
        args.name,
        args.name.replace('-', "_"),
    );
    Ok(vec![
        File::text("pyproject.toml", project),
        File::text(".gitignore", "/build\n/runs\n__pycache__/\n"),
        File::text(
            &format!("{}.py", args.name.replace('-', "_")),
            filled(module, args),
        ),
    ])
}
