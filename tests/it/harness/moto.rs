//! `moto_server`, an S3 server in Python that `scripts/test` installs: it has tags, atomic
//! `If-None-Match`, and accounts with IAM policies.
//!
//! A process of its own on a free port, ended by the watchdog. One is shared by all tests; a test that
//! turns credentials on starts its own, since they hold for the whole server.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use seedbed::config::S3Config;

use super::{python_tool, require, watchdog};

/// What nobody checks, as long as credentials are off; it only says which service is meant.
const SIGNED_FOR: &str = "AWS4-HMAC-SHA256 Credential=anybody/20260101/us-east-1/";

/// The server as it is but for one thing: it looks whether an object is there and stores it with no lock
/// between the two, so that under load two writers were told that they came first
/// (moto 5.2.5, `S3Response.put_object`).
const ATOMIC_SERVER: &str = "
import sys, threading
from moto.s3.responses import S3Response
from moto.server import main
put_object, lock = S3Response.put_object, threading.Lock()
def one_at_a_time(self):
    with lock:
        return put_object(self)
S3Response.put_object = one_at_a_time
sys.exit(main())
";

/// A running server.
pub struct Moto {
    pub endpoint: String,
}

/// An account of the server.
pub struct Account {
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// The server that all tests of this process share, if it is installed.
pub fn moto() -> Option<&'static Moto> {
    static MOTO: OnceLock<Option<Moto>> = OnceLock::new();
    MOTO.get_or_init(Moto::start).as_ref()
}

impl Moto {
    /// Starts another one, if it is installed.
    pub fn start() -> Option<Self> {
        let program = python_tool("moto_server");
        if !require("moto_server (installed by scripts/test)", program.is_some()) {
            return None;
        }
        let mut child = Command::new(program?.with_file_name("python3"))
            .args(["-c", ATOMIC_SERVER, "-H", "127.0.0.1", "-p", "0"])
            .env_clear()
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was found");
        watchdog::at_exit(&format!("kill {}", child.id()));
        let stderr = child.stderr.take().expect("it was started with a pipe");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut said = Vec::new();
        let endpoint = lines.by_ref().find_map(|line| {
            let address = line.split_once("Running on ").map(|(_, url)| url.trim().to_owned());
            said.push(line);
            address
        });
        let endpoint = endpoint.unwrap_or_else(|| panic!("moto_server did not start: {said:?}"));
        // It writes a line for each request and would stop at a full pipe.
        std::thread::spawn(move || {
            lines.for_each(drop);
            let _ = child.wait();
        });
        Some(Self { endpoint })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub async fn create_bucket(&self, name: &str) {
        let answer = reqwest::Client::new()
            .put(format!("{}/{name}", self.endpoint))
            .header("authorization", format!("{SIGNED_FOR}s3/aws4_request"))
            .send()
            .await
            .expect("the server answers");
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// The tags of an object as the XML that S3 answers with.
    pub async fn tags(&self, bucket: &str, key: &str) -> String {
        let url = format!("{}/{bucket}/{key}?tagging", self.endpoint);
        let request = reqwest::Client::new()
            .get(url)
            .header("authorization", format!("{SIGNED_FOR}s3/aws4_request"));
        let answer = request.send().await.expect("the server answers");
        answer.text().await.expect("XML is text")
    }

    /// What the server says of an object.
    pub async fn headers(&self, bucket: &str, key: &str) -> reqwest::header::HeaderMap {
        let request = reqwest::Client::new()
            .head(format!("{}/{bucket}/{key}", self.endpoint))
            .header("authorization", format!("{SIGNED_FOR}s3/aws4_request"));
        let answer = request.send().await.expect("the server answers");
        assert!(answer.status().is_success(), "{key}: {answer:?}");
        answer.headers().clone()
    }

    /// The `[store]` section of a configuration file that means `bucket` under `prefix`, as `account`.
    pub fn store_section(&self, bucket: &str, prefix: &str, account: &Account) -> String {
        format!(
            "[store]\nurl = \"s3://{bucket}/{prefix}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
             path_style = true\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
            self.endpoint, account.access_key_id, account.secret_access_key
        )
    }

    /// A new account that may do what `policy`, a document of IAM, allows.
    pub async fn account(&self, name: &str, policy: &str) -> Account {
        self.iam(&[("Action", "CreateUser"), ("UserName", name)]).await;
        self.iam(&[
            ("Action", "PutUserPolicy"),
            ("UserName", name),
            ("PolicyName", "given"),
            ("PolicyDocument", policy),
        ])
        .await;
        let key = self.iam(&[("Action", "CreateAccessKey"), ("UserName", name)]).await;
        let between = |tag: &str| {
            let (_, rest) = key.split_once(&format!("<{tag}>")).expect("the answer holds the key");
            rest.split_once('<').expect("the answer is XML").0.to_owned()
        };
        Account {
            access_key_id: between("AccessKeyId"),
            secret_access_key: between("SecretAccessKey"),
        }
    }

    async fn iam(&self, fields: &[(&str, &str)]) -> String {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .append_pair("Version", "2010-05-08")
            .finish();
        let request = reqwest::Client::new()
            .post(&self.endpoint)
            .header("authorization", format!("{SIGNED_FOR}iam/aws4_request"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let answer = request.send().await.expect("the server answers");
        let (status, text) = (answer.status(), answer.text().await.expect("XML is text"));
        assert!(status.is_success(), "{fields:?}: {text}");
        text
    }

    /// From now on every request is signed by an account that may do what it asks for.
    pub async fn demand_credentials(&self) {
        let request =
            reqwest::Client::new().post(format!("{}/moto-api/reset-auth", self.endpoint)).body("0");
        let answer = request.send().await.expect("the server answers");
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// `bucket` under `prefix` as the library's type.
    pub fn config(&self, bucket: &str, prefix: &str) -> S3Config {
        S3Config {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: Some("us-east-1".to_owned()),
            endpoint: Some(self.endpoint.clone()),
            path_style: true,
            profile: None,
            access_key_id: Some("anybody".to_owned()),
            secret_access_key: Some("anything".to_owned().into()),
            session_token: None,
            checksums: seedbed::config::Checksums::Auto,
            sse: None,
            kms_key_id: None,
            kms_bucket_key: None,
        }
    }
}

/// A policy of `deploy/aws`, without the actions in `without`. Left out are its conditions and the ban on
/// plain HTTP, which moto takes for a ban on everything.
pub fn committed_policy(file: &str, without: &[&str]) -> String {
    let path = camino::Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/aws").join(file);
    let text = std::fs::read_to_string(path).expect("a file of the repository");
    let mut policy: serde_json::Value = serde_json::from_str(&text).expect("a policy is JSON");
    let statements = policy["Statement"].as_array_mut().expect("statements");
    statements.retain(|statement| statement["Effect"] == "Allow");
    for statement in statements.iter_mut() {
        statement.as_object_mut().expect("an object").remove("Condition");
        if let Some(actions) = statement["Action"].as_array_mut() {
            actions.retain(|action| action.as_str().is_some_and(|text| !without.contains(&text)));
        }
    }
    statements.retain(|statement| !without.iter().any(|action| statement["Action"] == *action));
    policy.to_string()
}
