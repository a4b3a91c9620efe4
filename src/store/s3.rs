//! A bucket as a store. The only file that names `aws_*`.
//!
//! The SDK retries requests but neither a body that breaks off after its head nor a commit whose
//! answer was lost; both are done here. Bodies are given as bytes in memory with their sha256 in a
//! header, never with a checksum trailer, which many other servers do not understand. What AWS calls
//! `service error` leaves as one of our own errors, in words.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Object, ServerSideEncryption};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use super::{Entry, Error, Put};
use crate::config::{Checksums, S3Config};
use crate::report::Reporter;

/// With a tenth of all calls refused one call in a million fails for good; a refused connection is
/// given up after about two seconds.
const ATTEMPTS: u32 = 6;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// Longer than any answer on a line that works.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An upload is answered when its body is there: a line slower than this is as good as none.
const SLOWEST_UPLOAD: u64 = 64 * 1024;

/// A body without a byte for this long has stalled, however long an answer may take.
const STALL_GRACE: Duration = Duration::from_secs(20);

/// How often a body may break off without having brought a byte.
const IDLE_RESUMES: u32 = 3;

/// How often a body may begin again: some gateways know no ranges, and cut every body at the same byte.
const RESTARTS: u32 = 3;

/// How often a put meets a removal of the same name; S3 asks to try again (409).
const CONFLICTS: u32 = 5;

/// The IAM action of reading.
pub(super) const READ: &str = "s3:GetObject";

/// S3 takes ten tags of at most 256 characters.
const MAX_TAGS: usize = 10;
const MAX_TAG_VALUE: usize = 256;

pub struct S3 {
    client: Client,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
    endpoint: String,
    send_checksum: AtomicBool,
    /// What an answer may take.
    stall: Duration,
    encryption: Option<ServerSideEncryption>,
    kms_key_id: Option<String>,
    kms_bucket_key: Option<bool>,
    /// HEAD was denied: this role may write and list, but not read what it writes.
    blind: AtomicBool,
    report: Reporter,
}

/// What was asked, for the words of an error.
struct Call<'a> {
    what: &'static str,
    action: &'static str,
    name: &'a str,
}

fn list_call(prefix: &str) -> Call<'_> {
    Call { what: "list", action: "s3:ListBucket", name: prefix }
}

impl S3 {
    /// `stall`: after which time without an answer a request is sent again.
    pub(super) async fn open(
        config: &S3Config,
        stall: Duration,
        report: Reporter,
    ) -> Result<Self, Error> {
        let store = format!("s3://{}/{}", config.bucket, config.prefix);
        let client = Client::from_conf(sdk_config(config, stall, &store).await?);
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => "AWS S3".to_owned(),
        };
        Ok(Self {
            client,
            bucket: config.bucket.clone(),
            prefix: match config.prefix.as_str() {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            endpoint,
            send_checksum: AtomicBool::new(config.checksums == Checksums::Auto),
            stall,
            encryption: config.sse.as_deref().map(ServerSideEncryption::from),
            kms_key_id: config.kms_key_id.clone(),
            kms_bucket_key: config.kms_bucket_key,
            blind: AtomicBool::new(false),
            report,
        })
    }

    pub(super) fn describe(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix.trim_end_matches('/'))
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Entry>, Error> {
        let call = list_call(prefix);
        let mut entries = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.page(&call, token.clone(), None).await?;
            entries.extend(page.contents().iter().filter_map(|object| self.entry(object)));
            let next = page.next_continuation_token().map(str::to_owned);
            match next {
                // An empty page may have a successor; the same token again would never end.
                Some(next) if token.as_ref() == Some(&next) => {
                    let reason = "it gives the same page again and again".to_owned();
                    return Err(self.refused(&call, reason));
                }
                Some(next) => token = Some(next),
                None if page.is_truncated() == Some(true) => {
                    let reason = "it says that more follows, but not where".to_owned();
                    return Err(self.refused(&call, reason));
                }
                None => return Ok(entries),
            }
        }
    }

    /// Some object of a listing.
    pub(super) async fn first(&self, prefix: &str) -> Result<Option<Entry>, Error> {
        let page = self.page(&list_call(prefix), None, Some(1)).await?;
        Ok(page.contents().iter().find_map(|object| self.entry(object)))
    }

    async fn page(
        &self,
        call: &Call<'_>,
        token: Option<String>,
        at_most: Option<i32>,
    ) -> Result<ListObjectsV2Output, Error> {
        self.client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.key(call.name))
            .set_continuation_token(token)
            .set_max_keys(at_most)
            .send()
            .await
            .map_err(|error| self.words(&error, call))
    }

    /// `None` for an object outside of our prefix.
    fn entry(&self, object: &Object) -> Option<Entry> {
        let name = object.key()?.strip_prefix(&self.prefix)?.to_owned();
        let size = u64::try_from(object.size().unwrap_or_default()).unwrap_or_default();
        let modified =
            object.last_modified().and_then(|at| jiff::Timestamp::new(at.secs(), 0).ok());
        Some(Entry { name, size, modified })
    }

    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, Error> {
        let call = Call { what: "read", action: READ, name };
        let mut answer = self.request(&call, None, None).await?;
        let said = answer.content_length().and_then(|length| u64::try_from(length).ok());
        if let Some(bytes) = said.filter(|bytes| *bytes > limit) {
            return Err(Error::TooLarge { name: name.to_owned(), bytes, limit });
        }
        let mut etag = answer.e_tag().map(str::to_owned);
        let mut body = BytesMut::with_capacity(usize::try_from(said.unwrap_or(0)).unwrap_or(0));
        let (mut idle, mut restarts) = (0, 0);
        loop {
            let before = body.len();
            let Err(reason) = drain(&mut answer, &mut body, limit).await else {
                if body.len() as u64 > limit {
                    let bytes = body.len() as u64;
                    return Err(Error::TooLarge { name: name.to_owned(), bytes, limit });
                }
                return Ok(body.freeze());
            };
            idle = if body.len() > before { 0 } else { idle + 1 };
            if idle > IDLE_RESUMES || restarts > RESTARTS {
                return Err(self.broken_off(name, body.len(), reason));
            }
            self.report.detail(format!("`{name}` broke off after {} bytes: {reason}", body.len()));
            let range = format!("bytes={}-", body.len());
            match self.request(&call, Some(range), etag.clone()).await {
                Ok(resumed) if resumed.content_range().is_some() => answer = resumed,
                // No range: all of it again.
                Ok(whole) => {
                    body.clear();
                    restarts += 1;
                    answer = whole;
                }
                // Written again meanwhile: from the start; whoever knows its hash decides.
                Err(error) if is_changed(&error) => {
                    body.clear();
                    restarts += 1;
                    answer = self.request(&call, None, None).await?;
                    etag = answer.e_tag().map(str::to_owned);
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Error> {
        let call = Call { what: "read", action: READ, name };
        let mut body = BytesMut::new();
        let mut etag: Option<String> = None;
        let (mut idle, mut restarts) = (0, 0);
        loop {
            let begin = offset + body.len() as u64;
            let range = format!("bytes={begin}-{}", offset + length - 1);
            let mut answer = match self.request(&call, Some(range), etag.clone()).await {
                // Beyond the end there is nothing.
                Err(Error::Refused { reason, .. }) if reason.starts_with("InvalidRange") => {
                    return Ok(body.freeze());
                }
                // Written again meanwhile: from the start.
                Err(error) if is_changed(&error) && restarts < RESTARTS => {
                    body.clear();
                    etag = None;
                    restarts += 1;
                    continue;
                }
                other => other?,
            };
            if answer.content_range().is_none() {
                let whole = self.get(name, u64::MAX).await?;
                let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(whole.len());
                let end = begin.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
                return Ok(whole.slice(begin..end.min(whole.len())));
            }
            etag = etag.or_else(|| answer.e_tag().map(str::to_owned));
            let before = body.len();
            let Err(reason) = drain(&mut answer, &mut body, length).await else {
                return Ok(body.freeze());
            };
            idle = if body.len() > before { 0 } else { idle + 1 };
            if idle > IDLE_RESUMES {
                return Err(self.broken_off(name, body.len(), reason));
            }
        }
    }

    pub(super) async fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        if self.blind.load(Ordering::Relaxed) {
            return self.size_by_list(name).await;
        }
        let call = Call { what: "look at", action: READ, name };
        let answer =
            self.client.head_object().bucket(&self.bucket).key(self.key(name)).send().await;
        match answer.map_err(|error| self.words(&error, &call)) {
            Ok(head) => Ok(head.content_length().and_then(|size| u64::try_from(size).ok())),
            Err(Error::Missing { .. }) => Ok(None),
            Err(Error::Denied { .. }) => {
                let listed = self.size_by_list(name).await?;
                self.blind.store(true, Ordering::Relaxed);
                Ok(listed)
            }
            Err(error) => Err(error),
        }
    }

    /// The size by way of a listing, for a role that may not read what it writes.
    async fn size_by_list(&self, name: &str) -> Result<Option<u64>, Error> {
        let entries = self.list(name).await?;
        Ok(entries.into_iter().find(|entry| entry.name == name).map(|entry| entry.size))
    }

    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<Put, Error> {
        match self.size(name).await {
            Ok(Some(size)) if size == bytes.len() as u64 => return Ok(Put::Exists),
            // A role that may only write is sound; it sends what is there once more.
            Ok(_) | Err(Error::Denied { .. }) => (),
            Err(error) => return Err(error),
        }
        self.put_again(name, bytes).await.map(|()| Put::Created)
    }

    pub(super) async fn put_again(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        let call = Call { what: "write", action: "s3:PutObject", name };
        let mut again = false;
        loop {
            match self.send_put(name, bytes.clone(), false, None).await {
                Ok(Answer::Stored) => return Ok(()),
                Ok(Answer::Vague) => return self.is_there(&call, bytes.len() as u64).await,
                Err(error) if self.knows_no_checksum(&Refusal::of(&error), &mut again) => {}
                Err(error) => return Err(self.words(&error, &call)),
            }
        }
    }

    /// Some servers and proxies say 200 and mean an error: what they answer then has no ETag.
    async fn is_there(&self, call: &Call<'_>, bytes: u64) -> Result<(), Error> {
        if self.blind.load(Ordering::Relaxed) || self.size(call.name).await? == Some(bytes) {
            return Ok(());
        }
        Err(self.refused(call, "it answers 200, but the object is not there".to_owned()))
    }

    /// Whether the server refused the checksum; none is sent to it from now on. `again`: this upload was
    /// sent once more for it already.
    fn knows_no_checksum(&self, refusal: &Refusal, again: &mut bool) -> bool {
        if !refusal.is_about_checksums() {
            return false;
        }
        let first = !std::mem::replace(again, true);
        if !self.send_checksum.swap(false, Ordering::Relaxed) {
            // Another upload has found that out while this one was on its way.
            return first;
        }
        let why = refusal.words();
        self.report.detail(format!("{} takes no checksums: {why}", self.endpoint));
        true
    }

    pub(super) async fn put_new(
        &self,
        name: &str,
        bytes: Bytes,
        tags: &[(String, String)],
    ) -> Result<Put, Error> {
        let (put, untagged) = self.put_tagged(name, bytes, tags).await?;
        match untagged {
            Some(error @ Error::Denied { .. }) => {
                self.report.note(format!("`{name}` gets no tags: {error}"));
            }
            Some(error) => self.report.detail(format!("`{name}` gets no tags: {error}")),
            None => {}
        }
        Ok(put)
    }

    /// As [`S3::put_new`]; says as well why the object has no tags.
    pub(super) async fn put_tagged(
        &self,
        name: &str,
        bytes: Bytes,
        tags: &[(String, String)],
    ) -> Result<(Put, Option<Error>), Error> {
        let mut untagged = None;
        let put = self.put_if_free(name, bytes, tags, &mut untagged).await?;
        Ok((put, untagged))
    }

    async fn put_if_free(
        &self,
        name: &str,
        bytes: Bytes,
        tags: &[(String, String)],
        untagged: &mut Option<Error>,
    ) -> Result<Put, Error> {
        let call = Call { what: "write", action: "s3:PutObject", name };
        let mut tags = Some(tagging(tags)).filter(|tags| !tags.is_empty());
        let mut conditional = true;
        let mut conflicts = 0;
        let mut again = false;
        loop {
            let sent = self.send_put(name, bytes.clone(), conditional, tags.as_deref()).await;
            let error = match sent {
                Ok(Answer::Stored) => return Ok(Put::Created),
                Ok(Answer::Vague) => {
                    return match self.compare(name, &bytes).await {
                        Err(Error::Missing { .. }) => {
                            let reason = "it answers 200, but the object is not there";
                            Err(self.refused(&call, reason.to_owned()))
                        }
                        compared => compared,
                    };
                }
                Err(error) => error,
            };
            let refusal = Refusal::of(&error);
            if self.knows_no_checksum(&refusal, &mut again) {
                continue;
            }
            if tags.is_some() && refusal.is_about_tags() {
                let tag = Call { what: "tag", action: "s3:PutObjectTagging", name };
                *untagged = Some(self.words(&error, &tag));
                tags = None;
                continue;
            }
            if conditional && refusal.not_implemented() {
                // Unique names make it harmless, see `probe`.
                if self.size(name).await?.is_some() {
                    return self.compare(name, &bytes).await;
                }
                self.report.detail(format!("{} knows no If-None-Match", self.endpoint));
                conditional = false;
                continue;
            }
            if refusal.is_conflict() {
                match self.compare(name, &bytes).await {
                    // Somebody removed the name at this moment: it is free again.
                    Err(Error::Missing { .. }) if conflicts < CONFLICTS => {
                        conflicts += 1;
                        continue;
                    }
                    Err(Error::Missing { .. }) => return Err(self.refused(&call, refusal.words())),
                    compared => return compared,
                }
            }
            let error = self.words(&error, &call);
            if matches!(error, Error::Unreachable { .. } | Error::Refused { .. }) {
                // The answer may have been lost after the object was made.
                if let Ok(Put::Created) = self.compare(name, &bytes).await {
                    return Ok(Put::Created);
                }
            }
            return Err(error);
        }
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        let call = Call { what: "remove", action: "s3:DeleteObject", name };
        let request = self.client.delete_object().bucket(&self.bucket).key(self.key(name));
        match request.send().await.map_err(|error| self.words(&error, &call)) {
            Ok(_) | Err(Error::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether what is there is what we sent.
    async fn compare(&self, name: &str, bytes: &Bytes) -> Result<Put, Error> {
        match self.get(name, bytes.len() as u64).await {
            Ok(there) if there == *bytes => Ok(Put::Created),
            Ok(_) | Err(Error::TooLarge { .. }) => Ok(Put::Exists),
            Err(error) => Err(error),
        }
    }

    async fn request(
        &self,
        call: &Call<'_>,
        range: Option<String>,
        etag: Option<String>,
    ) -> Result<GetObjectOutput, Error> {
        self.client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(call.name))
            .set_range(range)
            .set_if_match(etag)
            .send()
            .await
            .map_err(|error| self.words(&error, call))
    }

    async fn send_put(
        &self,
        name: &str,
        bytes: Bytes,
        conditional: bool,
        tags: Option<&str>,
    ) -> Result<Answer, SdkError<aws_sdk_s3::operation::put_object::PutObjectError>> {
        let with_checksum = self.send_checksum.load(Ordering::Relaxed);
        let checksum = if with_checksum { Some(checksum(&bytes).await) } else { None };
        let on_the_line = Duration::from_secs(bytes.len() as u64 / SLOWEST_UPLOAD);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(self.stall + on_the_line)
            .build();
        let answer = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(name))
            .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
            .set_checksum_sha256(checksum)
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .set_tagging(tags.map(str::to_owned))
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key_id.clone())
            .set_bucket_key_enabled(self.kms_bucket_key)
            .body(ByteStream::from(bytes))
            .customize()
            .config_override(aws_sdk_s3::config::Builder::new().timeout_config(timeouts))
            .send()
            .await?;
        Ok(if answer.e_tag().is_some() { Answer::Stored } else { Answer::Vague })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn broken_off(&self, name: &str, bytes: usize, reason: String) -> Error {
        Error::BrokenOff {
            endpoint: self.endpoint.clone(),
            name: name.to_owned(),
            bytes: bytes as u64,
            reason,
        }
    }

    fn refused(&self, call: &Call<'_>, reason: String) -> Error {
        let (what, name) = (call.what, call.name.to_owned());
        Error::Refused { endpoint: self.endpoint.clone(), what, name, reason }
    }

    /// An error of the SDK as one of ours.
    fn words<E>(&self, error: &SdkError<E>, call: &Call<'_>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let endpoint = self.endpoint.clone();
        let Some(status) = error.raw_response().map(|response| response.status().as_u16()) else {
            let reason = chain(error);
            let about_credentials = ["credential", "sso", "token"];
            if about_credentials.iter().any(|word| reason.to_lowercase().contains(word)) {
                return Error::NoCredentials { store: self.describe(), reason };
            }
            return Error::Unreachable { endpoint, reason };
        };
        let refusal = Refusal::of(error);
        let reason = refusal.words();
        match (refusal.code.as_str(), status) {
            ("NoSuchBucket", _) => Error::NoBucket { bucket: self.bucket.clone(), endpoint },
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "TokenRefreshRequired"
                | "InvalidClientTokenId"
                | "NotSignedUp",
                _,
            )
            | (_, 401) => Error::Credentials { endpoint, reason },
            ("RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture", _) => {
                Error::ClockSkew { endpoint, reason }
            }
            (
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
                _,
            )
            | (_, 301) => Error::Region { bucket: self.bucket.clone(), reason },
            ("NoSuchKey" | "NotFound" | "NoSuchVersion", _) | (_, 404) => {
                Error::Missing { store: self.describe(), name: call.name.to_owned() }
            }
            ("AccessDenied" | "AllAccessDisabled" | "AccountProblem", _) | (_, 403) => {
                let name = format!("{}{}", self.prefix, call.name);
                let action = denied_action(&refusal.message).unwrap_or(call.action).to_owned();
                Error::Denied { endpoint, action, name, reason }
            }
            ("ResponseNotReadable", _) => Error::Unreachable { endpoint, reason },
            _ => self.refused(call, reason),
        }
    }
}

/// The action that a denial names: the call's own, or one of KMS that S3 asks for by the way.
fn denied_action(message: &str) -> Option<&str> {
    // What S3 says of another account's key.
    if message.contains("ciphertext refers to a customer master key") {
        return Some("kms:Decrypt");
    }
    let (_, named) = message.split_once("not authorized to perform: ")?;
    let end = named.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != ':');
    let action = &named[..end.unwrap_or(named.len())];
    action.contains(':').then_some(action)
}

/// What came back for a put.
enum Answer {
    Stored,
    /// A success without what a success has.
    Vague,
}

/// Whether an object is no longer the one that a read began with.
fn is_changed(error: &Error) -> bool {
    let changed = ["PreconditionFailed", "HTTP 412"];
    matches!(error, Error::Refused { reason, .. } if changed.iter().any(|code| reason.starts_with(code)))
}

/// What a server said no with.
struct Refusal {
    code: String,
    message: String,
    status: u16,
}

impl Refusal {
    fn of<E: ProvideErrorMetadata + std::error::Error + 'static>(error: &SdkError<E>) -> Self {
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let readable = error.as_service_error().is_some();
        let code = error.code().map(str::to_owned);
        Self {
            code: code.unwrap_or_else(|| match (status, readable) {
                (0, _) => String::new(),
                // A body that is no XML and no S3 error: a proxy, or a broken answer.
                (200..300, _) => "ResponseNotReadable".to_owned(),
                (status, _) => format!("HTTP {status}"),
            }),
            message: error.message().map(str::to_owned).unwrap_or_default(),
            status,
        }
    }

    fn words(&self) -> String {
        match self.message.as_str() {
            "" => self.code.clone(),
            message => format!("{}: {message}", self.code),
        }
    }

    fn not_implemented(&self) -> bool {
        self.status == 501 || self.code == "NotImplemented"
    }

    /// Other servers refuse a header that they do not know, each in its own way.
    fn is_about_checksums(&self) -> bool {
        let refuses = self.not_implemented()
            || matches!(self.code.as_str(), "InvalidRequest" | "InvalidArgument");
        refuses && self.message.to_lowercase().contains("checksum")
    }

    /// Without the right to tag, S3 denies the whole put.
    fn is_about_tags(&self) -> bool {
        self.not_implemented()
            || matches!(self.code.as_str(), "AccessDenied" | "InvalidTag" | "MethodNotAllowed")
            || self.status == 403 && self.code.starts_with("HTTP")
    }

    fn is_conflict(&self) -> bool {
        self.status == 412
            || self.status == 409
            || matches!(self.code.as_str(), "PreconditionFailed" | "ConditionalRequestConflict")
    }
}

async fn sdk_config(
    config: &S3Config,
    stall: Duration,
    store: &str,
) -> Result<aws_sdk_s3::Config, Error> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(endpoint) = &config.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let (Some(key), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        let token = config.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        let secret = secret.expose_secret().to_owned();
        loader = loader.credentials_provider(Credentials::new(
            key.clone(),
            secret,
            token,
            None,
            "seedbed.toml",
        ));
    }
    let loaded = loader.load().await;
    let mut builder = aws_sdk_s3::config::Builder::from(&loaded)
        .force_path_style(config.path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(
            RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(FIRST_BACKOFF),
        )
        .timeout_config(
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(stall).build(),
        )
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled().grace_period(stall.min(STALL_GRACE)).build(),
        );
    if loaded.region().is_none() {
        // Other servers take any region; AWS needs the right one.
        if config.endpoint.is_none() {
            return Err(Error::Setup {
                store: store.to_owned(),
                reason: "no region is configured".to_owned(),
                hint: "set `store.region` in `conf/seedbed.toml`, or `AWS_REGION`".to_owned(),
            });
        }
        builder = builder.region(Region::new("us-east-1"));
    }
    Ok(builder.build())
}

/// Appends the answer's body; stops early beyond `limit`.
async fn drain(
    answer: &mut GetObjectOutput,
    body: &mut BytesMut,
    limit: u64,
) -> Result<(), String> {
    loop {
        match answer.body.try_next().await {
            Ok(Some(part)) => body.extend_from_slice(&part),
            Ok(None) => return Ok(()),
            Err(error) => return Err(chain(&error)),
        }
        if body.len() as u64 > limit {
            return Ok(());
        }
    }
}

async fn checksum(bytes: &Bytes) -> String {
    let bytes = bytes.clone();
    let digest = tokio::task::spawn_blocking(move || Sha256::digest(&bytes)).await;
    match digest {
        Ok(digest) => base64::engine::general_purpose::STANDARD.encode(digest),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Tags as S3 takes them in a header; characters that it refuses become `_`.
fn tagging(tags: &[(String, String)]) -> String {
    let clean = |text: &str| -> String {
        let allowed = |letter: char| {
            if letter.is_alphanumeric() || " +-=._:/@".contains(letter) { letter } else { '_' }
        };
        text.chars().take(MAX_TAG_VALUE).map(allowed).collect()
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in tags.iter().take(MAX_TAGS) {
        query.append_pair(&clean(name), &clean(value));
    }
    query.finish()
}

/// An error and its causes in one line, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = vec![error.to_string()];
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !texts.iter().any(|said| said.contains(&text)) {
            texts.push(text);
        }
        source = inner.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::{denied_action, tagging};

    #[test]
    fn a_denial_may_name_the_action_of_a_key() {
        let table = [
            ("Access Denied", None),
            (
                "User: arn:aws:iam::1:user/a is not authorized to perform: kms:GenerateDataKey on \
                 resource: arn:aws:kms:eu-central-1:1:key/2 because no identity-based policy allows it",
                Some("kms:GenerateDataKey"),
            ),
            ("x is not authorized to perform: s3:PutObject", Some("s3:PutObject")),
            ("x is not authorized to perform: this", None),
            (
                "The ciphertext refers to a customer master key that does not exist, does not exist \
                 in this region, or you are not allowed to access.",
                Some("kms:Decrypt"),
            ),
        ];
        for (message, action) in table {
            assert_eq!(denied_action(message), action, "{message}");
        }
    }

    #[test]
    fn tags_hold_only_what_s3_takes() {
        let tags = [
            ("schema-version".to_owned(), "1.2".to_owned()),
            ("database".to_owned(), "a&b=ü\n\"x\" y".to_owned()),
        ];
        assert_eq!(tagging(&tags), "schema-version=1.2&database=a_b%3D%C3%BC__x_+y");
        assert_eq!(tagging(&[]), "");
    }
}
