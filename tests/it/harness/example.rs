//! The example project of this repository in a sandbox, with `dev` on a server that is not the one its
//! sample snapshot was taken from.

use secrecy::ExposeSecret;

use super::{Sandbox, Server};

/// `conf`, `sql`, `users` and `seed` as they are committed; `dev` is a database of `server`.
pub fn example(server: &Server, database: &str) -> Sandbox {
    let mut sandbox = Sandbox::new();
    for folder in ["conf", "sql", "users", "seed"] {
        sandbox.copy_from_repository(folder);
    }
    let dev = sandbox.read("conf/dev.toml").replace("factory_dev", database);
    let password = server.admin.password.as_ref().expect("the harness sets one");
    let place = format!("[database]\nhost = \"127.0.0.1\"\nport = {}", server.admin.port);
    let external = "[engine]\nkind = \"external\"\nsuperuser = \"postgres\"\n\
                    superuser_password = \"env:TEST_SUPERUSER\"\n";
    sandbox.write("conf/dev.toml", format!("{external}\n{}", dev.replace("[database]", &place)));
    sandbox.set("TEST_SUPERUSER", password.expose_secret());
    sandbox
}
