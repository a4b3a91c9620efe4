//! Which daemon to talk to: `DOCKER_HOST`, the current Docker context, or a socket that is there.
//!
//! bollard knows the variable only; contexts are read here from the Docker client's own files.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::env::Env;

/// A daemon's address, as `unix:///var/run/docker.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub address: String,
    /// Where the address came from, for people.
    pub source: &'static str,
}

impl Host {
    /// Whether a port that the daemon publishes on its loopback address is on ours.
    pub fn is_here(&self) -> bool {
        if self.address.starts_with("unix://") || self.address.starts_with("npipe://") {
            return true;
        }
        let Ok(url) = url::Url::parse(&self.address.replacen("tcp://", "http://", 1)) else {
            return false;
        };
        match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }
}

/// The Docker client's folder: `DOCKER_CONFIG` or `~/.docker`.
pub(super) fn config_dir(env: &Env) -> Option<Utf8PathBuf> {
    env.get("DOCKER_CONFIG")
        .map(Utf8PathBuf::from)
        .or_else(|| env.home().map(|home| home.join(".docker")))
}

/// The daemon of this environment. Errors say what is wrong with the Docker client's files.
pub(super) fn find(env: &Env) -> Result<Host, String> {
    if let Some(address) = env.get("DOCKER_HOST") {
        return Ok(Host { address: address.to_owned(), source: "DOCKER_HOST" });
    }
    let dir = config_dir(env);
    let context = match (env.get("DOCKER_CONTEXT"), &dir) {
        (Some(name), _) => Some(name.to_owned()),
        (None, Some(dir)) => current_context(dir)?,
        (None, None) => None,
    };
    match (context.filter(|name| name != "default"), dir) {
        (Some(name), Some(dir)) => {
            Ok(Host { address: context_address(&dir, &name)?, source: "the Docker context" })
        }
        (Some(_) | None, _) => Ok(socket(env)),
    }
}

#[derive(Deserialize)]
struct ClientConfig {
    #[serde(rename = "currentContext")]
    current_context: Option<String>,
}

fn current_context(dir: &Utf8Path) -> Result<Option<String>, String> {
    let path = dir.join("config.json");
    let Ok(text) = std::fs::read(&path) else { return Ok(None) };
    let config: ClientConfig =
        serde_json::from_slice(&text).map_err(|error| format!("read `{path}`: {error}"))?;
    Ok(config.current_context.filter(|name| !name.is_empty()))
}

/// A context's folder is named by the hash of its name (docker/cli, `context/store`).
fn context_address(dir: &Utf8Path, name: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "Endpoints")]
        endpoints: Endpoints,
    }
    #[derive(Deserialize)]
    struct Endpoints {
        docker: Endpoint,
    }
    #[derive(Deserialize)]
    struct Endpoint {
        #[serde(rename = "Host")]
        host: String,
    }
    let path = dir.join("contexts/meta").join(hex(&Sha256::digest(name))).join("meta.json");
    let text = std::fs::read(&path)
        .map_err(|error| format!("read the Docker context `{name}` in `{path}`: {error}"))?;
    let meta: Meta =
        serde_json::from_slice(&text).map_err(|error| format!("read `{path}`: {error}"))?;
    Ok(meta.endpoints.docker.host)
}

pub(in crate::engine) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Docker's own socket, else that of a rootless daemon, Docker Desktop or Podman.
fn socket(env: &Env) -> Host {
    const DOCKER: &str = "/var/run/docker.sock";
    let runtime = env.get("XDG_RUNTIME_DIR").map(Utf8PathBuf::from);
    let mut places: Vec<(Utf8PathBuf, &'static str)> = vec![(DOCKER.into(), "Docker's socket")];
    if let Some(dir) = &runtime {
        places.push((dir.join("docker.sock"), "the rootless daemon's socket"));
    }
    if let Some(home) = env.home() {
        places.push((home.join(".docker/run/docker.sock"), "Docker Desktop's socket"));
    }
    if let Some(dir) = &runtime {
        places.push((dir.join("podman/podman.sock"), "Podman's socket"));
    }
    places.push(("/run/podman/podman.sock".into(), "Podman's socket"));
    let there = places.into_iter().find(|(path, _)| path.exists());
    let (path, source) = there.unwrap_or((DOCKER.into(), "Docker's socket"));
    Host { address: format!("unix://{path}"), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &[(&str, &str)]) -> Env {
        let variables = variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned()));
        Env::from_variables(variables, Utf8PathBuf::from("/"))
    }

    #[test]
    fn the_variable_wins() {
        let host = find(&env(&[("DOCKER_HOST", "tcp://10.0.0.1:2375")])).expect("found");
        assert_eq!(host.address, "tcp://10.0.0.1:2375");
        assert!(!host.is_here());
    }

    #[test]
    fn loopback_addresses_are_here() {
        for (address, here) in [
            ("unix:///var/run/docker.sock", true),
            ("tcp://127.0.0.1:2375", true),
            ("tcp://localhost:2375", true),
            ("tcp://[::1]:2375", true),
            ("tcp://docker:2375", false),
        ] {
            let host = Host { address: address.to_owned(), source: "" };
            assert_eq!(host.is_here(), here, "{address}");
        }
    }

    #[test]
    fn the_current_context_is_followed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = Utf8Path::from_path(dir.path()).expect("UTF-8");
        std::fs::write(path.join("config.json"), r#"{"currentContext": "colima"}"#)
            .expect("writes");
        let missing = find(&env(&[("DOCKER_CONFIG", path.as_str())])).expect_err("no meta");
        assert!(missing.contains("`colima`"), "{missing}");
        let meta = path.join("contexts/meta").join(hex(&Sha256::digest("colima")));
        std::fs::create_dir_all(&meta).expect("makes");
        std::fs::write(
            meta.join("meta.json"),
            r#"{"Name":"colima","Endpoints":{"docker":{"Host":"unix:///home/x/.colima/docker.sock"}}}"#,
        )
        .expect("writes");
        let host = find(&env(&[("DOCKER_CONFIG", path.as_str())])).expect("found");
        assert_eq!(host.address, "unix:///home/x/.colima/docker.sock");
        let host = find(&env(&[("DOCKER_CONFIG", path.as_str()), ("DOCKER_CONTEXT", "default")]));
        assert_eq!(host.expect("found").address, "unix:///var/run/docker.sock");
    }
}
