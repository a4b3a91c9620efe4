//! `deploy/` and the README: every command in them is taken out of its file and run, against a
//! production and a bucket that give it the rights that `deploy/` asks for, and no more.

mod documents;
mod files;
mod image;
mod jobs;
mod world;

use camino::{Utf8Path, Utf8PathBuf};

/// A file of this repository.
fn file(path: &str) -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    let path = file(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {path}: {error}"))
}

/// The documents of a YAML file, if Python's tools are here.
fn yaml(path: &str) -> Option<Vec<serde_json::Value>> {
    let python = crate::harness::python_tool("python");
    if !crate::harness::require("Python's tools (installed by scripts/test)", python.is_some()) {
        return None;
    }
    let script =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = std::process::Command::new(python?)
        .args(["-c", script])
        .arg(file(path))
        .output()
        .expect("it was found");
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("json.dumps writes JSON"))
}

/// An array of strings.
fn words(value: &serde_json::Value) -> Vec<&str> {
    let words = value.as_array().unwrap_or_else(|| panic!("no list: {value}"));
    words.iter().map(|word| word.as_str().expect("words are strings")).collect()
}
