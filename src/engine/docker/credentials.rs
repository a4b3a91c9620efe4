//! Registry credentials, from the Docker client's configuration and its credential helpers.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::host::config_dir;
use crate::context::Context;

/// The Docker Hub goes by this name in the client's files.
const HUB: &str = "https://index.docker.io/v1/";
/// A helper asks a keychain or a cloud's metadata service.
const HELPER_DEADLINE: Duration = Duration::from_secs(3);

/// A user name and a secret; or a token, when the name is `<token>`.
pub(super) struct Credentials {
    pub username: String,
    pub secret: SecretString,
    pub server: String,
}

#[derive(Deserialize, Default)]
struct ClientConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
    #[serde(rename = "credHelpers", default)]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    #[serde(default)]
    auth: String,
}

/// The registry that an image's name points at, as the client's files name it.
pub(super) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => HUB,
    }
}

/// What the Docker client would send to the registry of `image`; `None`: anonymous.
pub(super) async fn find(ctx: &Context, image: &str) -> Option<Credentials> {
    let path = config_dir(&ctx.env)?.join("config.json");
    let config: ClientConfig = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let server = registry(image);
    if let Some(helper) = config.helpers.get(server).or(config.store.as_ref()) {
        return ask_helper(ctx, helper, server).await;
    }
    from_auths(&config, server)
}

fn from_auths(config: &ClientConfig, server: &str) -> Option<Credentials> {
    let bare = |name: &str| {
        let name = name.trim_start_matches("https://").trim_start_matches("http://");
        name.split('/').next().unwrap_or(name).to_owned()
    };
    let auth = config.auths.get(server).or_else(|| {
        config.auths.iter().find(|(name, _)| bare(name) == bare(server)).map(|(_, auth)| auth)
    })?;
    let text = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok()?;
    let text = String::from_utf8(text).ok()?;
    let (username, secret) = text.split_once(':')?;
    Some(Credentials {
        username: username.to_owned(),
        secret: secret.trim_end_matches('\0').to_owned().into(),
        server: server.to_owned(),
    })
}

/// `docker-credential-NAME get` reads the server's name and answers JSON.
async fn ask_helper(ctx: &Context, helper: &str, server: &str) -> Option<Credentials> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        username: String,
        #[serde(rename = "Secret")]
        secret: SecretString,
    }
    let name = format!("docker-credential-{helper}");
    let program = ctx.env.path().into_iter().map(|dir| dir.join(&name)).find(|p| p.is_file())?;
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    stdin.write_all(server.as_bytes()).await.ok()?;
    drop(stdin);
    let output =
        tokio::time::timeout(HELPER_DEADLINE, child.wait_with_output()).await.ok()?.ok()?;
    let answer: Answer = serde_json::from_slice(&output.stdout).ok()?;
    Some(Credentials {
        username: answer.username,
        secret: answer.secret,
        server: server.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn the_registry_is_the_first_part_that_looks_like_a_host() {
        for (image, server) in [
            ("postgres:17", HUB),
            ("library/postgres:17", HUB),
            ("ghcr.io/team/postgres:17", "ghcr.io"),
            ("localhost:5000/postgres", "localhost:5000"),
        ] {
            assert_eq!(registry(image), server, "{image}");
        }
    }

    #[test]
    fn an_entry_is_found_with_and_without_its_scheme() {
        let config: ClientConfig = serde_json::from_str(
            r#"{"auths": {"https://registry.example.com/v2/": {"auth": "dXNlcjpwYTpzcw=="}}}"#,
        )
        .expect("parses");
        let found = from_auths(&config, "registry.example.com").expect("found");
        assert_eq!((found.username.as_str(), found.secret.expose_secret()), ("user", "pa:ss"));
        assert!(from_auths(&config, "other.example.com").is_none());
    }
}
