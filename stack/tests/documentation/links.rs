//! Links in the documents lead to existing files and headings, and named tests and files exist.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files of the repository with this suffix.
fn files(ending: &str) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .arg(format!("*{ending}"))
        .current_dir(root())
        .output()
        .expect("git is there");
    let names = String::from_utf8(listed.stdout).expect("names are text");
    names.lines().map(|name| root().join(name)).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The targets of a document's links to other files and to its own headings.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://"))
}

/// The anchor of a heading's link.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut dead = Vec::new();
    let documents = files(".md");
    assert!(documents.len() > 10, "{documents:?}");
    for document in documents {
        let text = read(&document);
        for target in links(&text) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => document.clone(),
                file => document.parent().expect("a folder").join(file),
            };
            let has_heading = || {
                let text = read(&path);
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                headings.any(|line| anchor(line) == heading)
            };
            if !path.exists() || !heading.is_empty() && !has_heading() {
                dead.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// ARCHITECTURE.md names the test of each invariant and the file of each part, the threat model the test of
/// each boundary.
#[test]
fn the_tests_and_files_that_the_documentation_names_are_there() {
    let sources = files(".rs");
    let code: String = sources.iter().map(|file| read(file)).collect();
    let pages = ["ARCHITECTURE.md", "docs/threat-model.md"].map(|page| read(&root().join(page)));
    let mut missing = Vec::new();
    for quoted in pages
        .iter()
        .flat_map(|page| page.split('`').skip(1).step_by(2))
    {
        let is_plain = |part: &str, others: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || others.contains(c);
            part.chars().all(fits)
        };
        let is_test = is_plain(quoted, "_…") && quoted.matches('_').count() >= 4;
        if is_test && !code.contains(&format!("fn {}", quoted.trim_end_matches('…'))) {
            missing.push(quoted);
        }
        let is_file = is_plain(quoted, "_-./") && quoted.contains('/') && quoted.ends_with(".rs");
        if is_file && !sources.iter().any(|file| file.ends_with(quoted)) {
            missing.push(quoted);
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
