//! Whole configurations, from files on a disk.

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::{Config, EngineKind, Error, Flags, Override, StoreConfig, load};
use crate::env::Env;
use crate::pg::SslMode;

/// A project folder that lives as long as the test.
struct Project {
    _dir: TempDir,
    root: Utf8PathBuf,
    env: Vec<(String, String)>,
    flags: Flags,
}

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = Utf8Path::from_path(dir.path()).expect("UTF-8").join("my-factory");
        for (name, text) in files {
            let path = root.join(name);
            fs_err::create_dir_all(path.parent().expect("inside the project")).expect("folder");
            fs_err::write(path, text).expect("file");
        }
        Self { _dir: dir, root, env: Vec::new(), flags: Flags::default() }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn env(mut self, name: &str) -> Self {
        self.flags.env = Some(name.to_owned());
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.flags.overrides.push(Override {
            key: key.to_owned(),
            value: value.to_owned(),
            flag: format!("--set {key}"),
        });
        self
    }

    fn load(&self) -> Result<Config, Error> {
        load(&Env::from_variables(self.env.clone(), self.root.clone()), &self.flags)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|error| panic!("{error} {:?}", error.hints()))
    }

    /// The error and its hints, the project's folder replaced.
    fn error(&self) -> String {
        let error = self.load().expect_err("a configuration that is wrong");
        let mut text = error.to_string();
        for hint in error.hints() {
            text.push_str("\nhint: ");
            text.push_str(&hint);
        }
        text.replace(self.root.as_str(), "PROJECT")
    }
}

fn origin<'c>(config: &'c Config, key: &str) -> (&'c str, &'c str) {
    let origin = config.origins.iter().find(|origin| origin.key == key).expect("a known key");
    (&origin.value, &origin.source)
}

#[test]
fn an_empty_conf_folder_gives_the_defaults() {
    let project = Project::new(&[("conf/seedbed.toml", "")]);
    let config = project.config();
    assert_eq!(config.environment, "dev");
    assert_eq!(config.database.name, "my_factory");
    assert_eq!(config.database.user, "postgres");
    assert!(!config.database.named);
    assert_eq!(config.database.ssl_mode, SslMode::Prefer);
    assert_eq!(config.engine.kind, EngineKind::Auto);
    assert_eq!(config.engine.port, None);
    assert_eq!(config.migrate.locations, [project.root.join("sql")]);
    assert_eq!(config.snapshot.chunk_bytes, 4 << 20);
    assert!(
        matches!(&config.store, StoreConfig::Dir(dir) if *dir == project.root.join("seed/snapshots"))
    );
    assert_eq!(origin(&config, "flyway.table"), ("flyway_schema_history", "default"));
}

#[test]
fn a_team_file_of_flyway_works_unchanged() {
    let project = Project::new(&[(
        "conf/factory_dev.conf",
        "flyway.url=jdbc:postgresql://localhost:5432/dev_db\nflyway.user=postgres\n\
         flyway.locations=filesystem:sql\n",
    )]);
    let config = project.config();
    assert_eq!(config.environment, "factory_dev");
    assert_eq!(config.database.name, "dev_db");
    assert_eq!(config.database.port, Some(5432));
    assert_eq!(config.engine.port, Some(5432));
    assert!(config.database.named);
    assert_eq!(origin(&config, "database.name"), ("dev_db", "conf/factory_dev.conf:1"));
    assert_eq!(origin(&config, "database.user"), ("postgres", "conf/factory_dev.conf:2"));
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn later_layers_win_and_say_where_they_stand() {
    let files = [
        ("conf/seedbed.toml", "[flyway]\ntable = \"a\"\ninstalledBy = \"a\"\ntarget = \"1\"\n"),
        ("conf/flyway.conf", "flyway.installedBy=b\nflyway.target=2\nflyway.group=true"),
        ("conf/dev.toml", "[flyway]\ntarget = \"3\"\n[store]\nurl = \"s3://bucket/a/b/\"\n"),
        ("conf/dev.conf", "flyway.target=4\nflyway.placeholders.Name=x"),
    ];
    let config = Project::new(&files).config();
    assert_eq!(origin(&config, "flyway.table"), ("a", "conf/seedbed.toml:2"));
    assert_eq!(origin(&config, "flyway.installedBy"), ("b", "conf/flyway.conf:1"));
    assert_eq!(origin(&config, "flyway.target"), ("4", "conf/dev.conf:1"));
    assert_eq!(config.migrate.placeholders["Name"], "x");
    assert!(
        matches!(&config.store, StoreConfig::S3(s3) if s3.bucket == "bucket" && s3.prefix == "a/b")
    );

    let project = Project::new(&files)
        .variable("FLYWAY_TARGET", "5")
        .variable("FLYWAY_INSTALLED_BY", "f")
        .variable("SEEDBED_FLYWAY_INSTALLED_BY", "s")
        .variable("SEEDBED_TEST_REQUIRE", "1")
        .flag("flyway.target", "6");
    let config = project.config();
    assert_eq!(origin(&config, "flyway.target"), ("6", "--set flyway.target"));
    assert_eq!(origin(&config, "flyway.installedBy"), ("s", "SEEDBED_FLYWAY_INSTALLED_BY"));
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn a_later_url_replaces_the_whole_place_of_an_earlier_one() {
    let files = [
        (
            "conf/seedbed.toml",
            "[database]\nurl = \"postgresql://a:secret@db.example.com:6000/one?sslmode=require\"\n\
             port = 7000\n",
        ),
        ("conf/dev.conf", "flyway.url=jdbc:postgresql://localhost/two"),
        ("conf/other.toml", "[database]\nname = \"three\"\n"),
    ];
    let config = Project::new(&files).config();
    let database = &config.database;
    assert_eq!((database.host.as_str(), database.port), ("localhost", None));
    assert_eq!((database.name.as_str(), database.user.as_str()), ("two", "postgres"));
    assert!(database.password.is_none());

    let config = Project::new(&files).env("other").config();
    let database = &config.database;
    assert_eq!((database.host.as_str(), database.port), ("db.example.com", Some(7000)));
    assert_eq!((database.name.as_str(), database.user.as_str()), ("three", "a"));
    assert_eq!(database.ssl_mode, SslMode::Require);
    assert_eq!(config.engine.kind, EngineKind::External);
}

#[test]
fn a_host_elsewhere_is_external_and_verified() {
    let project =
        Project::new(&[("conf/prod.toml", "protected = true\n[database]\nhost = \"db.corp\"")]);
    let config = project.config();
    assert_eq!(config.environment, "prod");
    assert!(config.protected);
    assert_eq!(config.engine.kind, EngineKind::External);
    assert_eq!(config.database.ssl_mode, SslMode::VerifyFull);
    assert_eq!(
        origin(&config, "database.sslmode"),
        ("verify-full", "default for a host elsewhere")
    );
}

#[test]
fn no_variable_or_flag_lifts_protection() {
    let project = Project::new(&[("conf/prod.toml", "protected = true")])
        .variable("SEEDBED_PROTECTED", "false")
        .flag("protected", "false");
    let config = project.config();
    assert!(config.protected);
    assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    let config = Project::new(&[("conf/dev.toml", "")]).flag("protected", "true").config();
    assert!(config.protected);
}

#[test]
fn passwords_come_from_variables_and_files_and_are_never_shown() {
    let files = [
        (
            "conf/dev.toml",
            "[database]\npassword = \"env:DB_PASSWORD\"\n[engine]\n\
             superuser_password = \"file:secret.txt\"\n[flyway.placeholders]\n\
             p = \"${env:DB_PASSWORD}\"\n[store]\nurl = \"s3://b\"\naccess_key_id = \"AK\"\n\
             secret_access_key = \"hush-c\"\n",
        ),
        ("secret.txt", "hush-b\n"),
        (
            "conf/url.conf",
            "flyway.url=jdbc:postgresql://localhost/d?user=u&password=${DB_PASSWORD}",
        ),
    ];
    for environment in ["dev", "url"] {
        let project = Project::new(&files).variable("DB_PASSWORD", "hush-a").env(environment);
        let config = project.config();
        let password = config.database.password.as_ref().expect("a password");
        assert_eq!(password.expose_secret(), "hush-a");
        let shown = format!("{config:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
    let config = Project::new(&files).variable("DB_PASSWORD", "hush-a").config();
    let superuser = config.engine.superuser_password.as_ref().expect("a password");
    assert_eq!(superuser.expose_secret(), "hush-b");
    assert_eq!(config.migrate.placeholders["p"], "hush-a");
    assert_eq!(origin(&config, "database.password"), ("***", "conf/dev.toml:2"));
    let config = Project::new(&[("conf/dev.conf", "flyway.placeholders.area=north\n")])
        .variable("FLYWAY_PLACEHOLDERS_WORD", "hush")
        .flag("flyway.placeholders.owner_password", "hush")
        .config();
    assert_eq!(origin(&config, "flyway.placeholders.area").0, "north");
    assert_eq!(origin(&config, "flyway.placeholders.word").0, "***");
    assert_eq!(origin(&config, "flyway.placeholders.owner_password").0, "***");
}

#[test]
fn old_spellings_are_taken_with_a_note() {
    let project = Project::new(&[(
        "conf/dev.conf",
        "flyway.sqlMigrationSuffix=.pgsql\nflyway.driver=org.postgresql.Driver\n\
         flyway.OUTOFORDER=true\nflyway.ignoreMissingMigrations=true\nspring.name=x",
    )]);
    let config = project.config();
    assert_eq!(config.migrate.sql_migration_suffixes, [".pgsql"]);
    assert!(config.migrate.out_of_order);
    assert_eq!(config.migrate.ignore_migration_patterns, ["*:future", "*:missing"]);
    assert_eq!(
        config.notes,
        [
            "`flyway.sqlMigrationSuffix` in conf/dev.conf:1 is an old spelling of `flyway.sqlMigrationSuffixes`",
            "`flyway.driver` in conf/dev.conf:2 has no effect in seedbed",
            "`flyway.OUTOFORDER` in conf/dev.conf:3 is an old spelling of `flyway.outOfOrder`",
            "`flyway.ignoreMissingMigrations` in conf/dev.conf:4 is an old spelling of `flyway.ignoreMigrationPatterns` with `*:missing`",
            "`spring.name` in conf/dev.conf:5 has no `flyway.` before it and is left out",
        ]
    );
}

#[test]
fn flyway_toml_gives_environments() {
    let files = [(
        "flyway.toml",
        "[flyway]\nlocations = [\"filesystem:a\", \"filesystem:b\"]\n\
         [environments.default]\nurl = \"jdbc:postgresql://localhost/d\"\n\
         [environments.test]\nurl = \"jdbc:postgresql://localhost/t\"\nuser = \"${env.WHO}\"\n\
         [environments.test.flyway]\noutOfOrder = true\n",
    )];
    let config = Project::new(&files).config();
    assert_eq!((config.environment.as_str(), config.database.name.as_str()), ("default", "d"));
    assert_eq!(config.migrate.locations.len(), 2);
    let config = Project::new(&files).env("test").variable("WHO", "w").config();
    assert_eq!((config.database.name.as_str(), config.database.user.as_str()), ("t", "w"));
    assert!(config.migrate.out_of_order);
}

#[test]
fn a_flyway_toml_leaves_flyway_conf_out_and_says_so() {
    let conf = ("flyway.conf", "flyway.table=of_conf\nflyway.installedBy=of_conf\n");
    let toml = ("flyway.toml", "[flyway]\ntable = \"of_toml\"\n");
    let config = Project::new(&[conf, toml]).config();
    assert_eq!(origin(&config, "flyway.table"), ("of_toml", "flyway.toml:2"));
    assert_eq!(origin(&config, "flyway.installedBy"), ("", "default"));
    assert_eq!(
        config.notes,
        [
            "`flyway.conf` is left out, as in Flyway: `flyway.toml` counts and the two are never mixed"
        ]
    );
    let config = Project::new(&[conf]).config();
    assert_eq!(origin(&config, "flyway.table"), ("of_conf", "flyway.conf:1"));
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn files_that_a_variable_names_are_read_above_the_environments() {
    let files = [
        ("conf/dev.conf", "flyway.table=a\nflyway.target=1\n"),
        ("prod.conf", "flyway.table=b\nflyway.installedBy=b\n"),
        ("more/prod.conf", "flyway.installedBy=c\n"),
        ("prod.toml", "[flyway]\ntable = \"t\"\n[environments.dev]\nuser = \"${env.WHO}\"\n"),
        ("flyway.toml", "[flyway]\ntable = \"shared\"\n"),
    ];
    let with = |value: &str| Project::new(&files).variable("FLYWAY_CONFIG_FILES", value);
    let config = with("prod.conf, more/prod.conf").config();
    assert_eq!(origin(&config, "flyway.table"), ("b", "prod.conf:1"));
    assert_eq!(origin(&config, "flyway.installedBy"), ("c", "more/prod.conf:1"));
    assert_eq!(origin(&config, "flyway.target"), ("1", "conf/dev.conf:2"));
    assert_eq!(
        config.notes,
        [
            "`flyway.toml` is left out, as in Flyway: `FLYWAY_CONFIG_FILES` counts and the two are never \
             mixed"
        ]
    );
    let config = with("prod.toml").variable("WHO", "w").variable("FLYWAY_TABLE", "v").config();
    assert_eq!(origin(&config, "flyway.table"), ("v", "FLYWAY_TABLE"));
    assert_eq!(origin(&config, "database.user"), ("w", "prod.toml:4"));
    assert_eq!(
        with("none.conf").error(),
        "`none.conf` in FLYWAY_CONFIG_FILES: there is no such file"
    );
    assert_eq!(
        with("prod.conf,prod.toml").error(),
        "`prod.toml` in FLYWAY_CONFIG_FILES: `.conf` and `.toml` cannot be mixed"
    );
    assert_eq!(
        Project::new(&[("conf/dev.conf", "flyway.configFiles=prod.conf")]).error(),
        "`flyway.configFiles` in conf/dev.conf:1: only a variable names further files\n\
         hint: `export FLYWAY_CONFIG_FILES=prod.conf`"
    );
}

#[test]
fn every_variable_of_flyways_that_names_no_key_is_named() {
    let config = Project::new(&[("conf/dev.toml", "")])
        .variable("FLYWAY_QUITE_UNKNOWN", "x")
        .variable("FLYWAY_TABEL", "x")
        .variable("FLYWAY_TARGT", "x")
        .variable("FLYWAY_ENVIRONMENTS_DEFAULT_USER", "x")
        .config();
    let said = |variable: &str| {
        let note = config.notes.iter().find(|note| note.contains(&format!("`{variable}`")));
        note.map_or("", String::as_str)
    };
    assert_eq!(
        said("FLYWAY_QUITE_UNKNOWN"),
        "variable `FLYWAY_QUITE_UNKNOWN` names no key and is left out"
    );
    assert_eq!(
        said("FLYWAY_TABEL"),
        "variable `FLYWAY_TABEL` names no key and is left out; did you mean `FLYWAY_TABLE`?"
    );
    assert!(said("FLYWAY_TARGT").ends_with("did you mean `FLYWAY_TARGET`?"), "{:?}", config.notes);
    assert!(
        said("FLYWAY_ENVIRONMENTS_DEFAULT_USER").contains("names no key"),
        "{:?}",
        config.notes
    );
    assert_eq!(config.notes.len(), 4);
}

#[test]
fn properties_of_the_driver_are_read_as_parameters_of_the_url() {
    let url = "flyway.url=jdbc:postgresql://db.corp/d?sslmode=require\n";
    let conf = format!(
        "{url}flyway.jdbcProperties.currentSchema=app\nflyway.jdbcProperties.sslmode=disable\n\
         flyway.jdbcProperties.tcpKeepAlive=true\nflyway.jdbcProperties.password=hush\n"
    );
    let config = Project::new(&[("conf/dev.conf", &conf)]).config();
    let search_path = |schema: &str| vec![("search_path".to_owned(), schema.to_owned())];
    assert_eq!(config.database.settings, search_path("app"));
    // The URL counts, as in pgjdbc.
    assert_eq!(config.database.ssl_mode, SslMode::Require);
    assert_eq!(config.database.password.as_ref().map(ExposeSecret::expose_secret), Some("hush"));
    assert_eq!(origin(&config, "flyway.jdbcProperties.password").0, "***");
    assert_eq!(
        config.notes,
        ["`flyway.jdbcProperties.tcpKeepAlive` in conf/dev.conf:4 has no effect in seedbed"]
    );
    let toml = "[environments.dev]\nurl = \"jdbc:postgresql://localhost/d\"\n\
        [environments.dev.jdbcProperties]\ncurrentSchema = \"of_toml\"\n";
    let config = Project::new(&[("flyway.toml", toml)]).config();
    assert_eq!(config.database.settings, search_path("of_toml"));
    let config = Project::new(&[("conf/dev.conf", url)])
        .variable("FLYWAY_JDBC_PROPERTIES_currentSchema", "of_variable")
        .config();
    assert_eq!(config.database.settings, search_path("of_variable"));
    // What is about sessions is shared; an account is the one of its own server.
    let shared = "flyway.url=jdbc:postgresql://old.corp/d\nflyway.jdbcProperties.password=hush\n\
        flyway.jdbcProperties.currentSchema=shared\n";
    let config = Project::new(&[("conf/flyway.conf", shared), ("conf/dev.conf", url)]).config();
    assert_eq!(config.database.settings, search_path("shared"));
    assert!(config.database.password.is_none());
    let wrong = Project::new(&[("conf/dev.conf", "flyway.jdbcProperties.sslmode=on")]);
    assert_eq!(
        wrong.error(),
        "`flyway.jdbcProperties.sslmode` in conf/dev.conf:1: `on` is no sslmode"
    );
}

#[test]
fn what_nothing_resolves_in_toml_is_refused_where_it_stands() {
    for (key, value) in [
        ("url", "jdbc:postgresql://${vault.host}/d"),
        ("user", "${git.branch}"),
        ("password", "${vault.password}"),
        ("password", "${env:WORD"),
    ] {
        let toml = format!("[environments.dev]\n{key} = \"{value}\"\n");
        assert_eq!(
            Project::new(&[("flyway.toml", &toml)]).error(),
            format!(
                "`database.{key}` in flyway.toml:2: nothing here resolves its `${{…}}`\n\
                 hint: write `${{env:NAME}}` and set the variable"
            )
        );
    }
}

#[test]
fn a_jdbc_url_without_a_database_means_the_users() {
    let conf = "flyway.url=jdbc:postgresql://localhost/\nflyway.user=app\n";
    let config = Project::new(&[("conf/dev.conf", conf)]).config();
    assert_eq!(origin(&config, "database.name"), ("app", "default of JDBC: the user's name"));
}

#[test]
fn the_environment_is_the_named_the_default_dev_or_the_only_one() {
    let two =
        [("conf/a.toml", ""), ("conf/b.conf", ""), ("conf/seedbed.toml", "default_env = \"b\"")];
    assert_eq!(Project::new(&two).config().environment, "b");
    assert_eq!(Project::new(&two).variable("SEEDBED_ENV", "a").config().environment, "a");
    assert_eq!(Project::new(&two).variable("SEEDBED_ENV", "b").env("a").config().environment, "a");
    assert_eq!(
        Project::new(&[("conf/dev.toml", ""), ("conf/a.toml", "")]).config().environment,
        "dev"
    );
}

#[test]
fn the_project_is_the_named_the_variable_s_or_the_nearest() {
    let (one, two) =
        (Project::new(&[("conf/one.toml", "")]), Project::new(&[("conf/two.toml", "")]));
    let env = |variables: &[(&str, &Utf8Path)], current: &Utf8Path| {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), value.to_string()));
        Env::from_variables(variables, current.to_owned())
    };
    let named = |env: &Env, project: Option<Utf8PathBuf>| {
        let flags = Flags { project, ..Flags::default() };
        load(env, &flags).expect("a project").environment
    };
    let inside = two.root.join("conf");
    assert_eq!(named(&env(&[], &inside), None), "two");
    let variable = env(&[("SEEDBED_PROJECT", &one.root)], &inside);
    assert_eq!(named(&variable, None), "one");
    assert_eq!(named(&variable, Some(two.root.clone())), "two");
}

#[test]
fn each_mistake_has_its_own_words() {
    let dev = |text| Project::new(&[("conf/dev.toml", text)]);
    let conf = |text| Project::new(&[("conf/dev.conf", text)]);
    let table = [
        (
            Project::new(&[("conf/a.toml", ""), ("conf/b.toml", "")]),
            "no environment named and no default: there are `a`, `b`\nhint: name one: `--env a`\n\
             hint: or write `default_env = \"a\"` in `conf/seedbed.toml`",
        ),
        (
            dev("").env("prod"),
            "no environment `prod`: there is `dev`\nhint: name one that exists: `--env dev`\n\
             hint: or make it: `conf/prod.toml`",
        ),
        (
            dev("\n[flyway]\noutOfOrdr = true"),
            "unknown key `flyway.outOfOrdr` in conf/dev.toml:3\nhint: did you mean `flyway.outOfOrder`?",
        ),
        (
            conf("a=1\nflyway.usr=x"),
            "unknown key `flyway.usr` in conf/dev.conf:2\nhint: did you mean `flyway.user`?",
        ),
        (
            dev("[strange]\nthing = 1"),
            "unknown key `strange.thing` in conf/dev.toml:2\nhint: `seedbed config` lists every key",
        ),
        (
            dev("protected = \"maybe\""),
            "`protected` in conf/dev.toml:1 wants `true` or `false`, not `maybe`",
        ),
        (
            dev("[engine]\nkind = \"podman\""),
            "`engine.kind` in conf/dev.toml:2 wants one of `auto`, `docker`, `native`, `embedded`, \
             `external`, not `podman`",
        ),
        (
            dev("[database]\nport = 70000"),
            "`database.port` in conf/dev.toml:2 wants a whole number, not `70000`",
        ),
        (
            dev("[database]\npassword = \"env:NONE\""),
            "`database.password` in conf/dev.toml:2 takes variable `NONE`, which is not set\n\
             hint: `export NONE=…`",
        ),
        (
            dev("[database]\npassword = \"file:none.txt\""),
            "read the file that `database.password` in conf/dev.toml:2 names, `PROJECT/none.txt`",
        ),
        (
            conf("flyway.url=jdbc:mysql://h/d"),
            "`database.url` in conf/dev.conf:1: `mysql` is not a PostgreSQL URL\n\
             hint: write it as `jdbc:postgresql://host:5432/database` or `postgresql://user@host/database`",
        ),
        (
            conf("flyway.locations=classpath:db/migration"),
            "`flyway.locations` in conf/dev.conf:1: `classpath:db/migration` is on a Java class path; \
             no folder `PROJECT/src/main/resources/db/migration`\n\
             hint: write `filesystem:FOLDER`, relative to the project",
        ),
        (
            dev("[store]\nurl = \"gs://bucket\""),
            "`store.url` in conf/dev.toml:2: no store speaks `gs`\n\
             hint: write `s3://bucket/prefix` or a folder",
        ),
        (
            dev("[store]\naccess_key_id = \"A\""),
            "`store.access_key_id` in conf/dev.toml:2: it needs `store.secret_access_key` beside it",
        ),
        (
            dev("[engine]\nkind = \"docker\"\n[database]\nhost = \"db.corp\""),
            "`engine.kind` in conf/dev.toml:2: a server that seedbed starts is on this machine, but \
             the database is on `db.corp`\nhint: write `kind = \"external\"`, or `localhost` in the URL",
        ),
    ];
    for (project, expected) in table {
        assert_eq!(project.error(), expected);
    }
}

#[test]
fn a_folder_without_a_project_says_how_to_make_one() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("UTF-8");
    let env = Env::from_variables([], path.clone());
    let error = load(&env, &Flags::default()).expect_err("no project");
    assert!(matches!(error, Error::NoProject { .. }), "{error}");
    assert_eq!(error.hints()[0], "make one here with `seedbed init`");
    let flags = Flags { project: Some(path), ..Flags::default() };
    assert!(matches!(load(&env, &flags), Err(Error::NotAProject { .. })));
}

#[test]
fn a_file_that_is_no_text_is_named() {
    let project = Project::new(&[("conf/dev.toml", "")]);
    fs_err::write(project.root.join("conf/dev.conf"), b"flyway.user=\xe4").expect("file");
    let error = project.load().expect_err("not UTF-8");
    assert!(matches!(error, Error::Read { .. }), "{error}");
    assert_eq!(project.error(), "read `PROJECT/conf/dev.conf`");
    let broken = Project::new(&[("conf/dev.toml", "a = ")]);
    assert!(broken.error().starts_with("read `conf/dev.toml:1`: "), "{}", broken.error());
}

#[test]
fn encryption_that_the_store_cannot_ask_for_is_refused() {
    let store = |text: &str| {
        Project::new(&[("conf/dev.toml", &format!("[store]\nurl = \"s3://b/p\"\n{text}"))])
    };
    let table = [
        ("sse = \"foo\"", "one of `AES256`, `aws:kms`"),
        ("kms_key_id = \"1234\"", "it needs `store.sse = \"aws:kms\"` beside it"),
        ("sse = \"AES256\"\nkms_key_id = \"1\"", "it needs `store.sse = \"aws:kms\"` beside it"),
        ("kms_bucket_key = true", "it needs `store.sse = \"aws:kms\"` beside it"),
        ("sse = \"aws:kms\"\nkms_bucket_key = \"yes\"", "`true` or `false`"),
    ];
    for (text, reason) in table {
        let error = store(text).error();
        assert!(error.contains(reason) && error.contains("conf/dev.toml"), "{text}: {error}");
    }
    let whole = "sse = \"aws:kms\"\nkms_key_id = \"1\"\nkms_bucket_key = true";
    let StoreConfig::S3(config) = store(whole).config().store else { panic!("a bucket") };
    assert_eq!(config.sse.as_deref(), Some("aws:kms"));
    assert_eq!((config.kms_key_id.as_deref(), config.kms_bucket_key), (Some("1"), Some(true)));
}
