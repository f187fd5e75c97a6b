//! CSV files: a header, numbers, and one column to predict.

use std::path::Path;

use super::{Error, Raw, Result, Table, Targets, Values, list, open};

/// All columns but the target, in the file's order, as f32 [count, columns]. Classes are numbered in the
/// order of their labels: by number if every label is one, else by text.
pub(super) fn read(path: &Path, target: &str, classes: bool) -> Result<Raw> {
    let wrong = |problem: String| Error::Format {
        path: path.into(),
        problem,
    };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(open(path)?);
    let unreadable = |error: csv::Error| {
        let line = error
            .position()
            .map(|place| format!("line {}: ", place.line()))
            .unwrap_or_default();
        wrong(format!("{line}{error}"))
    };
    let header: Vec<String> = reader
        .headers()
        .map_err(unreadable)?
        .iter()
        .map(str::to_owned)
        .collect();
    if header.iter().all(String::is_empty) {
        return Err(wrong(
            "the file is empty; expected a header line and one line a sample".into(),
        ));
    }
    if let Some(twice) = header
        .iter()
        .enumerate()
        .find_map(|(at, n)| header[..at].contains(n).then_some(n))
    {
        return Err(wrong(format!(
            "line 1: column `{twice}` stands twice in the header; rename one"
        )));
    }
    let Some(target_at) = header.iter().position(|name| name == target) else {
        let hint = match crate::diagnostic::nearest(target, header.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "set target in [data]".into(),
        };
        return Err(wrong(format!(
            "no column `{target}` to predict; the header has {}; {hint}",
            list(&header)
        )));
    };
    if header.len() < 2 {
        return Err(wrong(format!(
            "`{target}` is the only column; expected at least one column of inputs"
        )));
    }
    let (mut inputs, mut labels, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != header.len() {
            return Err(wrong(format!(
                "line {line}: {} fields, the header has {}; a comma inside a field needs quotes around the field",
                record.len(),
                header.len()
            )));
        }
        for (at, (text, column)) in record.iter().zip(&header).enumerate() {
            let bad = |problem| Error::Field {
                path: path.into(),
                line,
                column: column.clone(),
                problem,
            };
            if at == target_at && classes {
                if text.is_empty() {
                    return Err(bad(
                        "the class is empty; fill it in or leave the line out".into()
                    ));
                }
                labels.push(text.to_owned());
                continue;
            }
            let number = match text.parse::<f32>() {
                Ok(number) if number.is_finite() => number,
                Ok(_) => {
                    return Err(bad(format!(
                        "`{text}` is not finite; fill in a number or leave the line out"
                    )));
                }
                Err(_) if text.is_empty() => {
                    return Err(bad(
                        "the field is empty; fill in a number or leave the line out".into(),
                    ));
                }
                Err(_) if at == target_at => {
                    return Err(bad(format!(
                        "`{text}` is not a number; for text labels set classes = true"
                    )));
                }
                Err(_) => {
                    return Err(bad(format!(
                        "`{text}` is not a number; leave the column out or write its values as numbers"
                    )));
                }
            };
            if at == target_at {
                &mut values
            } else {
                &mut inputs
            }
            .push(number);
        }
    }
    let count = labels.len().max(values.len());
    if count == 0 {
        return Err(wrong("there is a header but no sample below it".into()));
    }
    let targets = if classes {
        number_classes(&labels)
    } else {
        Targets::Values { values, width: 1 }
    };
    let shape = vec![header.len() - 1];
    Ok(Raw {
        train: Table {
            count,
            shape,
            inputs: Values::Floats(inputs),
            targets,
        },
        test: None,
    })
}

fn number_classes(labels: &[String]) -> Targets {
    let mut names: Vec<&String> = labels.iter().collect();
    names.sort_unstable();
    names.dedup();
    let numbers: Option<Vec<f64>> = names.iter().map(|name| name.parse().ok()).collect();
    if let Some(numbers) = numbers {
        let mut pairs: Vec<(f64, &String)> = numbers.into_iter().zip(names).collect();
        // Stable, so `1` and `1.0` stay two classes in the order of their text.
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        names = pairs.into_iter().map(|(_, name)| name).collect();
    }
    let place: std::collections::BTreeMap<&String, i64> = names.iter().copied().zip(0..).collect();
    Targets::Classes {
        labels: labels.iter().map(|label| place[label]).collect(),
        classes: names.len() as u32,
    }
}
