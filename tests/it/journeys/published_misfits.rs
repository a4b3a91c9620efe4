//! Published images that do not fit, or that a stranger has changed: each says why, and the rows are loaded.

use camino::Utf8PathBuf;
use seedbed::published::Image;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Project;
use super::images::{native_with_reflinks, shell};
use super::published::{did_not, images_on, make, native, newcomer, published, store_of, took};
use crate::harness::{self, require, strace};

fn document(project: &Project) -> Utf8PathBuf {
    Utf8PathBuf::from(shell(&format!("ls {}/images/*.json", store_of(project))))
}

/// The document with this change, its checksum as it has to be.
fn resealed(document: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let text = String::from_utf8(document.to_vec()).expect("JSON is text");
    let end = text.rfind(",\"checksum\":\"").expect("it was sealed");
    let mut value: Value = serde_json::from_str(&format!("{}}}", &text[..end])).expect("JSON");
    change(&mut value);
    let mut text = value.to_string();
    assert_eq!(text.pop(), Some('}'));
    let checksum: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{text},\"checksum\":\"{checksum}\"}}\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_difference_of_the_servers_is_said_and_the_rows_are_loaded() {
    let (maker, contents) = published().await;
    let path = document(&maker);
    let whole = fs_err::read(&path).expect("readable");
    let elsewhere = "it is of another kind of server or machine";
    for (field, value, why) in [
        ("libc", json!("1.0"), "it sorts text by the C library's 1.0, not "),
        ("icu", json!("1.0"), "it sorts text by ICU 1.0, not "),
        ("extensions", json!([["beside", "7"]]), "it needs the extension `beside` 7"),
        ("major", json!(9), elsewhere),
        ("layout", json!(["1"]), elsewhere),
        ("machine", json!("vax-vms"), elsewhere),
    ] {
        let changed = resealed(&whole, |image| image["platform"][field] = value);
        let image = Image::read(&changed).expect("a document");
        fs_err::remove_file(&path).expect("is there");
        let renamed = store_of(&maker).join(image.object());
        fs_err::write(&renamed, &changed).expect("writable");
        let project = newcomer(&maker, &native(), "always");
        let up = project.run(&["up"]).succeeds();
        did_not(&up, &format!("loading rows, not a published image: {why}"));
        assert_eq!(project.contents().await, contents, "{field}");
        fs_err::remove_file(&renamed).expect("is there");
        fs_err::write(&path, &whole).expect("writable");
    }
    took(&newcomer(&maker, &native(), "always").run(&["up"]).succeeds());
}

/// Where only bytes are compared an image fits whatever the library's version is.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_sorts_text_binds_an_image_to_the_library_that_does() {
    let by_icu = "collate \"und-x-icu\"";
    for (script, is_bound) in [
        ("create table shop.note (body text);".to_owned(), false),
        (
            "create type shop.span as range (subtype = text, collation = \"und-x-icu\");"
                .to_owned(),
            true,
        ),
        (format!("create table shop.note (body text check (body < 'm' {by_icu}));"), true),
        (format!("create index on shop.item (cents) where label < 'm' {by_icu};"), true),
        (
            format!(
                "create materialized view shop.first as
                 select item_id from shop.item where label < 'm' {by_icu};"
            ),
            true,
        ),
    ] {
        let mut maker = Project::native().with_snapshot().await;
        images_on(&mut maker, "never");
        maker.sandbox.write("sql/V3__sorted.sql", &script);
        make(&maker);
        let image = fs_err::read(document(&maker)).expect("readable");
        let platform = Image::read(&image).expect("a document").platform;
        assert_eq!(platform.icu.is_some(), is_bound, "{script}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f27_a_document_that_names_files_elsewhere_is_not_taken_whoever_has_sealed_it() {
    let (maker, contents) = published().await;
    let path = document(&maker);
    let whole = fs_err::read(&path).expect("readable");
    for name in ["../outside", "base/1/../../../outside", "/outside"] {
        let changed = resealed(&whole, |image| image["files"][0]["name"] = json!(name));
        fs_err::write(&path, changed).expect("writable");
        let project = newcomer(&maker, &native(), "always");
        let up = project.run(&["up"]).succeeds();
        did_not(&up, "it cannot be read");
        assert!(up.stderr.contains("it says what cannot be: the file `"), "{}", up.stderr);
        assert_eq!(project.contents().await, contents, "{name}");
        let left = shell(&format!("find {}/.. -name outside", project.sandbox.project()));
        assert_eq!(left, "", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_with_lz4_is_not_given_to_a_server_that_was_built_without_it() {
    let of = |project: &Project| {
        let image = fs_err::read(document(project)).expect("readable");
        Image::read(&image).expect("a document").platform.lz4
    };
    let mut packed = Project::native().with_snapshot().await;
    images_on(&mut packed, "never");
    packed
        .sandbox
        .write("sql/V3__packed.sql", "create table shop.packed (body text compression lz4);");
    make(&packed);
    assert!(of(&packed), "a column says so");
    let mut packed = Project::native().with_snapshot().await;
    images_on(&mut packed, "never");
    let default = "alter role ${owner} set default_toast_compression = 'lz4';";
    packed.sandbox.write("sql/V3__packed.sql", default);
    make(&packed);
    assert!(of(&packed), "an account's rows may be");

    let Some(poor) = harness::Server::start_without_lz4() else { return };
    let engine = format!("kind = \"native\"\nbin_dir = \"{}\"\n", poor.bin_dir.display());
    let mut maker = Project::on_its_own(&engine).with_snapshot().await;
    images_on(&mut maker, "never");
    make(&maker);
    assert!(!of(&maker));
    took(&newcomer(&maker, &engine, "always").run(&["up"]).succeeds());
    let path = document(&maker);
    let whole = fs_err::read(&path).expect("readable");
    let changed = resealed(&whole, |image| image["platform"]["lz4"] = json!(true));
    fs_err::write(&path, changed).expect("writable");
    let up = newcomer(&maker, &engine, "always").run(&["up"]).succeeds();
    did_not(&up, "values in it are compressed with lz4, which this server was built without");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_refused_in_the_end_leaves_the_server_to_the_rows() {
    if !require("strace", strace::is_here()) {
        return;
    }
    let (maker, contents) = published().await;
    let Some(mut project) = native_with_reflinks().await else { return };
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    // FICLONE, by which blocks are shared.
    let (run, hit) = strace::failing(&project.sandbox, "ioctl", "EIO", None).run(&["up"]);
    let run = run.succeeds();
    assert!(hit.iter().any(|call| call.contains("FICLONE")), "{hit:?}");
    assert!(run.stderr.contains("loading rows, the published image"), "{}", run.stderr);
    assert!(run.stderr.contains("restore tables"), "{}", run.stderr);
    assert_eq!(project.contents().await, contents);
}
