//! Published images: made once, taken by everybody whose server and checkout they fit.
//!
//! The shops are small, so that their rows would always be faster: `images.published = "always"`.

use camino::{Utf8Path, Utf8PathBuf};
use seedbed::pg::Session;

use super::branches::on_branch;
use super::images::{in_docker, native_with_reflinks, shell, use_it};
use super::{Production, Project, contents as contents_of, docker_is_here};
use crate::harness::moto::{Account, moto};
use crate::harness::postgres::{newest_bin_dir, query_text};
use crate::harness::{self, Run, unique, watchdog};

pub(super) const TAKEN: &str = "fetch and unpack the published image";

pub(super) fn images_on(project: &mut Project, published: &str) {
    project.sandbox.set("SEEDBED_IMAGES_KIND", "auto");
    project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "1");
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", published);
}

/// A project of the same team: its store is the one of `of`.
pub(super) fn newcomer(of: &Project, engine: &str, published: &str) -> Project {
    let mut project = Project::on_its_own(engine);
    images_on(&mut project, published);
    project.sandbox.set("SEEDBED_STORE_URL", store_of(of).as_str());
    project
}

/// The same text at the end of their users files.
fn add_to_users(projects: [&Project; 2], text: &str) {
    for project in projects {
        let accounts = project.sandbox.read("users/accounts.sql");
        project.sandbox.write("users/accounts.sql", format!("{accounts}{text}\n"));
    }
}

/// A maker whose store has an image, and somebody of the same team on a file system with reflinks; the users files
/// of both have this block.
pub(super) async fn published_with_block(block: &str) -> Option<(Project, Project)> {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let mut project = native_with_reflinks().await?;
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    add_to_users([&maker, &project], block);
    make(&maker);
    Some((maker, project))
}

pub(super) fn native() -> String {
    format!("kind = \"native\"\nbin_dir = \"{}\"\n", newest_bin_dir().display())
}

pub(super) fn store_of(project: &Project) -> Utf8PathBuf {
    project.sandbox.project().join("seed/snapshots")
}

pub(super) fn make(project: &Project) -> serde_json::Value {
    project.run(&["snapshot", "image", "latest", "--json"]).succeeds().json()
}

pub(super) fn took(run: &Run) {
    assert!(run.stderr.contains(TAKEN), "{}", run.stderr);
    assert!(run.stderr.contains("serve it"), "{}", run.stderr);
    assert!(!run.stderr.contains("restore tables"), "{}", run.stderr);
}

pub(super) fn did_not(run: &Run, why: &str) {
    assert!(!run.stderr.contains(TAKEN), "{}", run.stderr);
    assert!(run.stderr.contains(why), "{}", run.stderr);
}

/// A maker with its snapshot and image, and what rows give.
pub(super) async fn published() -> (Project, String) {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let made = make(&maker);
    assert_eq!(made["schema_version"], "2");
    maker.run(&["up"]).succeeds();
    let contents = maker.contents().await;
    (maker, contents)
}

/// Every file of an image, as its pieces hold it.
fn unpacked(store: &Utf8Path) -> Vec<(String, Vec<u8>)> {
    let document = shell(&format!("ls {store}/images/*.json"));
    let image = fs_err::read(document).expect("one image");
    let image = seedbed::published::Image::read(&image).expect("an image");
    let mut bytes = Vec::new();
    for piece in &image.pieces {
        let stored = fs_err::read(store.join(image.object_of(piece))).expect("a piece");
        bytes.extend(zstd::decode_all(stored.as_slice()).expect("a frame"));
    }
    let mut rest = bytes.as_slice();
    let mut files = Vec::new();
    for file in &image.files {
        let (content, behind) = rest.split_at(usize::try_from(file.size).expect("small"));
        files.push((file.name.clone(), content.to_vec()));
        rest = behind;
    }
    assert!(rest.is_empty());
    files
}

fn contains(bytes: &[u8], words: &str) -> bool {
    bytes.windows(words.len()).any(|window| window == words.as_bytes())
}

/// Finds what others than the server's user own or may read, and links.
fn not_the_servers_alone(data: &str) -> String {
    format!(
        "test -s {data}/PG_VERSION && find {data}/ -perm /077 && \
         find {data}/ ! -uid $(stat -L -c %u {data}/PG_VERSION) && find {data}/ -type l"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_takes_the_image_on_any_file_system_and_gets_what_rows_give() {
    let (maker, contents) = published().await;
    let project = newcomer(&maker, &native(), "always");
    let up = project.run(&["up"]).succeeds();
    took(&up);
    assert_eq!(project.contents().await, contents);
    let data = project.text("show data_directory").await;
    assert_eq!(shell(&not_the_servers_alone(&data)), "");
    project.run(&["users", "check"]).succeeds();
    project.run(&["validate"]).succeeds();
    let url = project.run(&["url"]).succeeds().stdout;
    // The accounts have the passwords of this checkout.
    let reader = project.live().with_user(&project.reader, Some("reader word".into()));
    assert_eq!(query_text(&reader, "select count(*) from shop.item").await, "5000");

    use_it(&project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains(TAKEN), "{}", reset.stderr);
    // Without shared blocks the image went into the data, and a template of it was frozen.
    let shared = reset.stderr.contains("serve a clone of the image");
    assert!(shared || reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert!(shared || up.stderr.contains("freeze as template"), "{}", up.stderr);
    assert_eq!(project.contents().await, contents);
    assert_eq!(project.run(&["url"]).succeeds().stdout, url);
    let status = project.run(&["status"]).succeeds().stdout;
    let original = if shared { "image" } else { "template" };
    assert!(status.contains(&format!("a clone of the {original} built 2")), "{status}");

    // What is kept comes back.
    use_it(&project).await;
    let mine = project.contents().await;
    project.run(&["reset", "--keep"]).succeeds();
    assert_eq!(project.contents().await, contents);
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, mine);
}

/// Where copies share no blocks the image is the data itself, and the next reset is its template's.
#[tokio::test(flavor = "multi_thread")]
async fn what_clients_write_at_once_is_not_in_the_template_of_an_image() {
    let (mut maker, _) = published().await;
    let mut project = newcomer(&maker, &native(), "never");
    project.run(&["up"]).succeeds();
    for project in [&maker, &project] {
        project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    }
    images_on(&mut maker, "never");
    make(&maker);
    maker.run(&["reset"]).succeeds();
    let clean = maker.contents().await;

    let target = project.live().with_user(&project.owner, Some("owner word".into()));
    let (stop, _) = tokio::sync::watch::channel(false);
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (target, stopped) = (target.clone(), stop.subscribe());
            tokio::spawn(async move {
                let write = "insert into shop.note values ('too early')";
                while !*stopped.borrow() {
                    let Ok(session) = Session::connect(&target).await else { continue };
                    // Before the reset there is no such table.
                    let _ = session.batch(write).await;
                    session.close().await;
                }
            })
        })
        .collect();
    images_on(&mut project, "always");
    let reset = tokio::task::block_in_place(|| project.run(&["reset"])).succeeds();
    took(&reset);
    let early = "select count(*) > 0 from shop.note where body = 'too early'";
    super::until(&project.live(), early, "t").await;
    stop.send_replace(true);
    for writer in writers {
        writer.await.expect("it ends");
    }
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains(TAKEN), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_machine_that_made_it_is_in_an_image() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    nothing_of_the_machine_is_in_an_image_of(&maker);
    // Its scratch server is gone, and its own database was never touched.
    assert!(!maker.sandbox.project().join(".seedbed/image/.seedbed/native").exists());
    maker.run(&["url"]).exits(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_container_that_made_it_is_in_an_image() {
    let Some((mut maker, _)) = in_docker().await else { return };
    images_on(&mut maker, "never");
    nothing_of_the_machine_is_in_an_image_of(&maker);
    maker.run(&["url"]).exits(4);
}

fn nothing_of_the_machine_is_in_an_image_of(maker: &Project) {
    make(maker);
    let files = unpacked(&store_of(maker));
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"global/pg_control"), "{names:?}");
    let segments = names.iter().filter(|name| name.starts_with("pg_wal/")).count();
    assert_eq!(segments, 1, "one new segment of the log: {names:?}");
    for (name, bytes) in &files {
        for secret in ["SCRAM-SHA-256$", "owner word", "reader word", "superuser word"] {
            assert!(!contains(bytes, secret), "{secret} is in {name}");
        }
        let path = maker.sandbox.project();
        assert!(!contains(bytes, path.as_str()), "the maker's folder is in {name}");
    }
    let of_machine = |name: &&str| name.ends_with(".conf") || name.contains("pg_stat/");
    assert_eq!(names.iter().copied().find(of_machine), None);
}

/// What was taken back leaves its bytes on a page as long as others are in it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_is_not_in_an_image_either() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let accounts = maker.sandbox.read("users/accounts.sql");
    let server = "DO $$ BEGIN
          IF NOT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = 'beside') THEN
            CREATE FOREIGN DATA WRAPPER beside;
            CREATE SERVER beside FOREIGN DATA WRAPPER beside;
            ALTER SERVER beside OWNER TO ${owner};
          END IF;
        END $$;\n";
    maker.sandbox.write("users/accounts.sql", format!("{accounts}{server}"));
    let script = "create user mapping for public server beside options (account 'reader');
        create user mapping for ${owner} server beside options (word 'canary of a mapping');
        drop user mapping for ${owner} server beside;
        alter role ${owner} set work_mem = '8MB';
        alter role ${owner} set application_name = 'canary of a setting';
        alter role ${owner} reset application_name;
        alter server beside options (add host 'canary of a server');
        alter server beside options (set host 'here');";
    maker.sandbox.write("sql/V3__beside.sql", script);
    make(&maker);
    for (name, bytes) in unpacked(&store_of(&maker)) {
        for canary in ["canary of a mapping", "canary of a setting", "canary of a server"] {
            assert!(!contains(&bytes, canary), "{canary} is in {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_a_secret_is_refused_by_its_name() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let accounts = maker.sandbox.read("users/accounts.sql");
    for (statement, said) in [
        (
            "ALTER ROLE ${reader} SET app.signing_key = 'a word';",
            "the value of the setting `app.signing_key`, which looks like a secret,",
        ),
        (
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_foreign_server) THEN
               CREATE FOREIGN DATA WRAPPER beside OPTIONS (api_token 'a word');
             END IF; END $$;",
            "what looks like a secret in the options of the foreign data wrapper `beside`",
        ),
        // It is in the database already when its objects are granted on.
        (
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'late') THEN
               CREATE ROLE late PASSWORD 'a word'; GRANT SELECT ON TABLE shop.item TO late;
             END IF; END $$;",
            "the password of `late`, which a script has set,",
        ),
    ] {
        maker.sandbox.write("users/accounts.sql", format!("{accounts}{statement}\n"));
        let run = maker.run(&["snapshot", "image", "latest"]).exits(12);
        assert!(run.stderr.contains(&format!("{said} would be in it")), "{}", run.stderr);
        assert!(!run.stderr.contains("a word"), "{}", run.stderr);
    }
    let plain = "ALTER ROLE ${reader} SET password_encryption = 'scram-sha-256';\n";
    maker.sandbox.write("users/accounts.sql", format!("{accounts}{plain}"));
    make(&maker);
}

/// A block that makes a role where there is none does nothing where the role has come with an image.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_a_block_has_given_is_there_with_an_image_as_well() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let mut projects = vec![newcomer(&maker, &native(), "always")];
    // Where copies share blocks the image stays, and the next reset is its clone.
    if let Some(mut project) = native_with_reflinks().await {
        images_on(&mut project, "always");
        project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
        projects.push(project);
    }
    let role = unique("guest");
    for project in projects.iter().chain([&maker]) {
        let accounts = project.sandbox.read("users/accounts.sql");
        let block = format!(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
               CREATE ROLE \"{role}\" LOGIN PASSWORD 'guest word';
             END IF; END $$;
             GRANT SELECT ON shop.item TO \"{role}\"; GRANT USAGE ON SCHEMA shop TO \"{role}\";"
        );
        project.sandbox.write("users/accounts.sql", format!("{accounts}{block}\n"));
    }
    make(&maker);
    for project in projects {
        took(&project.run(&["up"]).succeeds());
        let guest = project.live().with_user(&role, Some("guest word".into()));
        assert_eq!(query_text(&guest, "select count(*) from shop.item").await, "5000");
        let reset = project.run(&["reset"]).succeeds();
        assert!(!reset.stderr.contains(TAKEN), "{}", reset.stderr);
        assert_eq!(query_text(&guest, "select count(*) from shop.item").await, "5000");
        project.run(&["up", "--branch", "guests"]).succeeds();
        let guest = on_branch(&project, "guests").with_user(&role, Some("guest word".into()));
        assert_eq!(query_text(&guest, "select count(*) from shop.item").await, "5000");
    }
}

/// What only fails once the image is served, leaves what it was to replace.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_fails_behind_an_image_serves_the_old_database_again() {
    let mut engines = vec![native()];
    if docker_is_here() {
        engines.push("kind = \"docker\"\n".to_owned());
    }
    let stop = tempfile::tempdir().expect("a folder");
    shell(&format!("chmod 755 {}", stop.path().display()));
    let file = stop.path().join("stop");
    // In Docker no file is seen, but only data in the pool lies there.
    let block = format!(
        "DO $$ BEGIN
           IF current_setting('data_directory') LIKE '/seedbed/%'
              OR (pg_stat_file('{}', true)).size IS NOT NULL THEN RAISE EXCEPTION 'not here'; END IF;
           GRANT SELECT ON TABLE shop.item TO ${{reader}};
         END $$;",
        file.display()
    );
    for engine in engines {
        let mut maker = Project::on_its_own(&engine).with_snapshot().await;
        images_on(&mut maker, "never");
        let mut project = newcomer(&maker, &engine, "never");
        add_to_users([&maker, &project], &block);
        project.sandbox.set("SEEDBED_IMAGES_POOL", &unique("seedbed-test-pool"));
        make(&maker);
        project.run(&["up", "--set", "images.kind=template"]).succeeds();
        use_it(&project).await;
        let used = project.contents().await;
        let url = project.run(&["url"]).succeeds().stdout;
        fs_err::write(&file, "").expect("it can be written");
        images_on(&mut project, "always");
        let reset = project.run(&["reset"]).exits(5);
        took(&reset);
        assert!(reset.stderr.contains("not here"), "{}", reset.stderr);
        assert_eq!(project.contents().await, used);
        assert_eq!(project.run(&["url"]).succeeds().stdout, url);
        // The one that failed is neither kept nor served by the next reset.
        project.run(&["undo-reset"]).exits(4);
        project.run(&["reset"]).exits(5);
        assert_eq!(project.contents().await, used);
        fs_err::remove_file(&file).expect("it is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_fails_behind_an_image_leaves_what_was_kept_before() {
    let stop = tempfile::tempdir().expect("a folder");
    shell(&format!("chmod 755 {}", stop.path().display()));
    let file = stop.path().join("stop");
    let block = format!(
        "DO $$ BEGIN
           IF (pg_stat_file('{}', true)).size IS NOT NULL THEN RAISE EXCEPTION 'not here'; END IF;
           GRANT SELECT ON TABLE shop.item TO ${{reader}};
         END $$;",
        file.display()
    );
    let Some((_maker, project)) = published_with_block(&block).await else { return };
    took(&project.run(&["up"]).succeeds());
    let clean = project.contents().await;
    use_it(&project).await;
    let used = project.contents().await;
    project.run(&["reset", "--keep"]).succeeds();
    assert_eq!(project.contents().await, clean);
    fs_err::write(&file, "").expect("it can be written");
    for reset in [&["reset"][..], &["reset", "--keep"]] {
        let reset = project.run(reset).exits(5);
        assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
        assert_eq!(project.contents().await, clean);
    }
    fs_err::remove_file(&file).expect("it is there");
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_rows_come_faster_they_are_loaded_and_it_is_said() {
    let (maker, contents) = published().await;
    let project = newcomer(&maker, &native(), "auto");
    let up = project.run(&["up"]).succeeds();
    did_not(&up, "loading rows, not the published image");
    assert!(up.stderr.contains("they come faster from here"), "{}", up.stderr);
    assert!(up.stderr.contains("restore tables"), "{}", up.stderr);
    assert_eq!(project.contents().await, contents);
    // Programs are told as well.
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    let notes = project.run(&["up", "--json"]).succeeds().json()["notes"].to_string();
    assert!(notes.contains("loading rows, not the published image"), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_rows_are_many_the_image_comes_faster_and_is_taken() {
    let mut maker = Project::native();
    let section = format!("[store]\nurl = \"{}\"\n", store_of(&maker));
    let production = Production::new(&section).await;
    // 800 MB of text, of which there is next to nothing in a compressed page.
    let notes = "create table shop.note as
        select repeat('x', 10000) as body from generate_series(1, 80000)";
    production.sql(notes).await;
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;
    images_on(&mut maker, "never");
    make(&maker);
    let project = newcomer(&maker, &native(), "auto");
    took(&project.run(&["up"]).succeeds());
    assert_eq!(project.text("select count(*) from shop.note").await, "80000");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_published_to_s3_and_taken_from_there() {
    let Some(moto) = moto() else { return };
    let bucket = unique("images");
    moto.create_bucket(&bucket).await;
    let account =
        Account { access_key_id: "anybody".to_owned(), secret_access_key: "anything".to_owned() };
    let section = moto.store_section(&bucket, "team", &account);
    let production = Production::new(&section).await;
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;
    let mut projects = [Project::native(), Project::native()];
    for project in &mut projects {
        let text = project.sandbox.read("conf/seedbed.toml");
        project.sandbox.write("conf/seedbed.toml", format!("{section}{text}"));
        images_on(project, "always");
    }
    let [maker, project] = &projects;
    let made = make(maker);
    assert_eq!(made["store"], format!("s3://{bucket}/team"));
    took(&project.run(&["up"]).succeeds());
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");
}

/// A maker with its image and a newcomer; nobody goes on from behind a repeatable script.
async fn without_repeatables() -> (Project, Project) {
    let without = |project: &Project| {
        let view = project.sandbox.project().join("sql/R__totals.sql");
        fs_err::remove_file(view).expect("is there");
    };
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    without(&maker);
    make(&maker);
    let project = newcomer(&maker, &native(), "always");
    without(&project);
    (maker, project)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_an_older_checkout_is_migrated_before_anybody_sees_it() {
    let (maker, project) = without_repeatables().await;
    // A script that fails leaves no database, as in a build.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text); select 1 / 0;");
    let up = project.run(&["up"]).exits(6);
    assert!(up.stderr.contains("V3__notes.sql"), "{}", up.stderr);
    assert_eq!(project.databases().await, Vec::<String>::new());
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let up = project.run(&["up"]).succeeds();
    took(&up);
    assert!(up.stderr.contains("from the published image of"), "{}", up.stderr);
    assert!(up.stderr.contains("1 script to go"), "{}", up.stderr);
    assert_eq!(project.text("select count(*) from shop.note").await, "0");
    project.run(&["validate"]).succeeds();
    // Where there is a database the exact one is wanted: a reset is a build, or its clone.
    use_it(&project).await;
    let reset = project.run(&["reset", "--set", "images.kind=template"]).succeeds();
    assert!(!reset.stderr.contains(TAKEN), "{}", reset.stderr);
    let mut rows = newcomer(&maker, &native(), "never");
    fs_err::remove_file(rows.sandbox.project().join("sql/R__totals.sql")).expect("is there");
    rows.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    images_on(&mut rows, "never");
    rows.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, rows.contents().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_branches_that_take_one_image_of_an_older_checkout_at_once_both_have_it() {
    let (_maker, project) = without_repeatables().await;
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let branches = ["one", "two"];
    let runs = branches.map(|branch| {
        let mut command = project.sandbox.command(&["up", "--branch", branch]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the program was built for this suite")
    });
    for run in runs {
        let output = run.wait_with_output().expect("our own child");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains(TAKEN), "{text}");
        assert!(text.contains("1 script to go") && !text.contains("restore tables"), "{text}");
    }
    project.run(&["up"]).succeeds();
    for branch in branches {
        let target = on_branch(&project, branch);
        assert_eq!(contents_of(&target).await, project.contents().await);
        assert_eq!(query_text(&target, "select count(*) from shop.note").await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ci_goes_on_from_an_image_where_there_is_no_database_yet() {
    let (_maker, project) = without_repeatables().await;
    ci_goes_on_from_an_image(&project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ci_in_docker_goes_on_from_an_image_where_there_is_no_database_yet() {
    let Some((mut project, pool)) = in_docker().await else { return };
    let (maker, _) = without_repeatables().await;
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", &format!("postgres:{}", native_major()));
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    fs_err::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("is there");
    ci_goes_on_from_an_image(&project).await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")), "");
}

/// Scripts of this project are those of the image; there is no database yet.
async fn ci_goes_on_from_an_image(project: &Project) {
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let ci = project.run(&["ci"]).succeeds();
    took(&ci);
    assert!(ci.stdout.contains("V3__notes.sql: migrated"), "{}", ci.stdout);
    assert!(ci.stdout.contains("pending migrations run: 1 script"), "{}", ci.stdout);
    assert_eq!(project.databases().await, Vec::<String>::new());

    project.sandbox.write("sql/V4__wrong.sql", "select 1 / 0;");
    let ci = project.run(&["ci"]).exits(6);
    assert!(ci.stderr.contains("V4__wrong.sql"), "{}", ci.stderr);
    assert_eq!(project.databases().await, Vec::<String>::new());

    // Exactly this checkout's: its scripts have run on the same rows.
    for script in ["sql/V3__notes.sql", "sql/V4__wrong.sql"] {
        fs_err::remove_file(project.sandbox.project().join(script)).expect("is there");
    }
    let ci = project.run(&["ci", "--databases", "2", "--", "true"]).succeeds();
    took(&ci);
    assert!(ci.stdout.contains("pending migrations run: 0 scripts"), "{}", ci.stdout);
    assert_eq!(project.databases().await, Vec::<String>::new());

    // Nothing that is live is replaced for it.
    project.run(&["up"]).succeeds();
    use_it(project).await;
    let used = project.contents().await;
    let ci = project.run(&["ci"]).succeeds();
    assert!(!ci.stderr.contains(TAKEN) && ci.stderr.contains("restore tables"), "{}", ci.stderr);
    assert_eq!(project.contents().await, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_in_the_way_is_said_and_the_rows_are_loaded() {
    let (maker, contents) = published().await;
    let store = store_of(&maker);
    // Another script.
    let project = newcomer(&maker, &native(), "always");
    project.sandbox.write("sql/R__totals.sql", "create view shop.totals as select 1 as one;");
    did_not(&project.run(&["up"]).succeeds(), "it was built with other scripts");

    // A piece that is damaged, then one that is missing.
    let piece = shell(&format!("find {store}/images -mindepth 2 -type f | sort | head -n 1"));
    let whole = fs_err::read(&piece).expect("readable");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let loaded = |run: &Run, why: &str| {
        assert!(run.stderr.contains("loading rows, the published image"), "{}", run.stderr);
        assert!(run.stderr.contains(why), "{}", run.stderr);
    };
    let project = newcomer(&maker, &native(), "always");
    fs_err::write(&piece, &flipped).expect("writable");
    loaded(&project.run(&["up"]).succeeds(), "its sha256 is");
    assert_eq!(project.contents().await, contents);
    let project = newcomer(&maker, &native(), "always");
    fs_err::remove_file(&piece).expect("is there");
    loaded(&project.run(&["up"]).succeeds(), "images/");
    assert_eq!(project.contents().await, contents);
    fs_err::write(&piece, &whole).expect("writable");

    // A document that was changed.
    let document = Utf8PathBuf::from(shell(&format!("ls {store}/images/*.json")));
    let text = fs_err::read_to_string(&document).expect("readable");
    fs_err::write(&document, text.replacen("PG_VERSION", "../VERSION", 1)).expect("writable");
    let project = newcomer(&maker, &native(), "always");
    let up = project.run(&["up"]).succeeds();
    did_not(&up, "it cannot be read");
    assert_eq!(project.contents().await, contents);
    fs_err::write(&document, &text).expect("writable");

    // What the server holds beside the database would go.
    let project = newcomer(&maker, &native(), "always");
    project.run(&["up", "--seed", "none"]).succeeds();
    crate::harness::postgres::run_sql(&project.admin(), "create database other_data").await;
    let reset = project.run(&["reset"]).succeeds();
    did_not(&reset, "it would replace database `other_data` as well");
    assert_eq!(project.contents().await, contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_with_their_snapshots_and_older_ones_of_a_kind_before() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let (first, second) = (make(&maker), make(&maker));
    let documents = || {
        let listed = shell(&format!("find {}/images -name '*.json'", store_of(&maker)));
        listed.lines().filter(|line| !line.is_empty()).count()
    };
    assert_eq!(documents(), 2);
    let fresh = maker.run(&["snapshot", "prune", "--yes"]).succeeds().stdout;
    assert!(!fresh.contains("images:") && documents() == 2, "young ones stay: {fresh}");
    let store = store_of(&maker);
    shell(&format!("find {store}/images -type f -exec touch -d '3 days ago' {{}} +"));
    let shown = maker.run(&["snapshot", "prune"]).succeeds().stdout;
    assert!(shown.contains("images: 1 to be removed"), "{shown}");
    assert_eq!(documents(), 2, "only shown");
    maker.run(&["snapshot", "prune", "--yes"]).succeeds();
    assert_eq!(documents(), 1);
    let id = |made: &serde_json::Value| made["id"].as_str().expect("an id").to_owned();
    let kept = shell(&format!("find {}/images -mindepth 2 -type f", store_of(&maker)));
    assert!(kept.contains(&id(&second)) && !kept.contains(&id(&first)), "{kept}");
    let snapshot = second["snapshot"].as_str().expect("an id").to_owned();
    maker.run(&["snapshot", "delete", &snapshot, "--yes"]).succeeds();
    assert_eq!(documents(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn natively_an_image_is_shared_where_copies_share_blocks() {
    let (maker, contents) = published().await;
    let Some(mut project) = native_with_reflinks().await else { return };
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    took(&project.run(&["up"]).succeeds());
    assert_eq!(project.contents().await, contents);
    use_it(&project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, contents);
}

/// As from one that was built here.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_fetched_is_gone_on_from_by_a_branch_and_by_a_reset() {
    let (maker, _) = without_repeatables().await;
    let Some(mut project) = native_with_reflinks().await else { return };
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    fs_err::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("is there");
    took(&project.run(&["up"]).succeeds());
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let goes_on = |run: &Run| {
        assert!(run.stderr.contains("from the image of"), "{}", run.stderr);
        assert!(run.stderr.contains("1 script to go"), "{}", run.stderr);
        assert!(!run.stderr.contains(TAKEN), "{}", run.stderr);
        assert!(!run.stderr.contains("restore tables"), "{}", run.stderr);
    };
    goes_on(&project.run(&["up", "--branch", "notes"]).succeeds());
    project.run(&["branch", "delete", "notes", "--yes"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.other (body text);");
    goes_on(&project.run(&["reset"]).succeeds());
    assert_eq!(project.text("select count(*) from shop.other").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_taken_counts_among_those_of_the_machine() {
    let (maker, _) = published().await;
    let Some(mut project) = native_with_reflinks().await else { return };
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_IMAGES_MAX_SIZE", "1");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    let images = || shell(&format!("ls {}/.seedbed/images | wc -l", project.sandbox.project()));
    project.run(&["up", "--seed", "none"]).succeeds();
    assert_eq!(images(), "1");
    took(&project.run(&["reset"]).succeeds());
    assert_eq!(images(), "1", "the older one is too much");
}

/// Of one major version and one distribution: what Debian's packages gave natively and in a container.
#[tokio::test(flavor = "multi_thread")]
async fn docker_and_native_take_each_others_images() {
    if !docker_is_here() {
        return;
    }
    let engine = format!("kind = \"docker\"\nimage = \"postgres:{}\"\n", native_major());
    let (maker, contents) = published().await;
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", &format!("postgres:{}", native_major()));
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    took(&project.run(&["up"]).succeeds());
    assert_eq!(project.contents().await, contents);
    let data = project.text("show data_directory").await;
    let container =
        format!("docker ps -q --filter label=seedbed.path={}", project.sandbox.project());
    let look = format!("docker exec $({container}) sh -c '{}'", not_the_servers_alone(&data));
    assert_eq!(shell(&look), "");
    use_it(&project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, contents);
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")), "");

    // And the other way round.
    let mut maker = Project::on_its_own(&engine).with_snapshot().await;
    images_on(&mut maker, "never");
    maker.sandbox.set("SEEDBED_IMAGES_POOL", &unique("seedbed-test-pool"));
    make(&maker);
    let path = maker.sandbox.project();
    let left = format!("docker ps -aq --filter label=seedbed.path={path}/.seedbed/image");
    assert_eq!(shell(&left), "", "the scratch server is gone");
    let project = newcomer(&maker, &native(), "always");
    let up = project.run(&["up"]).succeeds();
    // The official image's clusters are made for the locale that its LANG names.
    match shell("locale -a").contains("en_US.utf8") {
        true => took(&up),
        false => did_not(&up, "it needs the locale `en_US.utf8`"),
    }
    assert_eq!(project.contents().await, contents);
}

/// The same program in a container image that somebody else has made.
#[tokio::test(flavor = "multi_thread")]
async fn container_images_that_were_made_by_themselves_take_each_others_images() {
    if !docker_is_here() {
        return;
    }
    let other = format!("{}:17", unique("seedbed-test-postgres"));
    watchdog::at_exit(&format!("docker rmi -f {other}"));
    match harness::full() {
        // A minute: from the packages once more.
        true => shell(&format!(
            "{}/scripts/postgres-image --as {} 17",
            env!("CARGO_MANIFEST_DIR"),
            other.trim_end_matches(":17")
        )),
        false => shell(&format!(
            "id=$(docker create postgres:17) && \
             docker commit --change 'ENV MADE_BY=somebody' --change 'CMD [\"postgres\"]' $id {other} && \
             docker rm -v $id"
        )),
    };
    let mut maker = Project::on_its_own(&format!("kind = \"docker\"\nimage = \"{other}\"\n"))
        .with_snapshot()
        .await;
    images_on(&mut maker, "never");
    maker.sandbox.set("SEEDBED_IMAGES_POOL", &unique("seedbed-test-pool"));
    make(&maker);
    // The official image's `template1` sorts by `en_US.utf8`, whatever the database does.
    let document = fs_err::read(shell(&format!("ls {}/images/*.json", store_of(&maker))));
    let image = seedbed::published::Image::read(&document.expect("one image")).expect("an image");
    assert!(image.platform.libc.is_some(), "{:?}", image.platform);
    let Some((mut project, _)) = in_docker().await else { return };
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    took(&project.run(&["up"]).succeeds());
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");
}

pub(super) fn native_major() -> String {
    let bin_dir = newest_bin_dir();
    let version = shell(&format!("{}/postgres --version", bin_dir.display()));
    let number = version.rsplit("(PostgreSQL) ").next().expect("its version").to_owned();
    number.split('.').next().expect("a major version").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_publishes_an_image_with_the_snapshot() {
    let project = Project::native().with_snapshot().await;
    project.run(&["up"]).succeeds();
    let created = project.run(&["snapshot", "create", "--image", "--json"]).succeeds().json();
    assert_eq!(created["image"]["snapshot"], created["id"]);
    assert_eq!(created["image"]["schema_version"], "2");
    let wrong = ["snapshot", "create", "--image", "--image-env", "nowhere"];
    let run = project.run(&wrong).exits(3);
    assert!(run.stderr.contains("nowhere"), "{}", run.stderr);
}
