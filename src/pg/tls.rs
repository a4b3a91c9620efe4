//! TLS towards a server: rustls on aws-lc-rs, with libpq's meaning of `sslmode`.
//!
//! `prefer` and `require` encrypt without verifying, as libpq does; `verify-ca` checks the chain (and
//! so does `require` where a file of authorities is named), `verify-full` the host name as well. The
//! system's trust store is used unless a file is named.

use std::sync::Arc;

use camino::Utf8Path;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::Error;
use super::target::{SslMode, Target};

pub(super) type Connector = MakeRustlsConnect;

pub(super) fn connector(target: &Target) -> Result<Connector, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Protocol { reason: error.to_string() })?;
    let builder = match (target.ssl_mode, &target.ssl_root_cert) {
        (SslMode::Disable | SslMode::Prefer, _) | (SslMode::Require, None) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        }
        (SslMode::VerifyFull, None) => builder
            .with_platform_verifier()
            .map_err(|error| Error::Protocol { reason: error.to_string() })?,
        (SslMode::VerifyFull, Some(path)) => builder.with_root_certificates(roots(path)?),
        (SslMode::VerifyCa, None) => {
            return Err(Error::Certificate {
                path: "sslrootcert".to_owned(),
                reason: "`verify-ca` needs a root certificate file".to_owned(),
            });
        }
        // As in libpq, `require` checks the chain once there is something to check it with.
        (SslMode::VerifyCa | SslMode::Require, Some(path)) => {
            let roots = Arc::new(roots(path)?);
            let inner =
                rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| Error::Protocol { reason: error.to_string() })?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(ChainOnly(inner)))
        }
    };
    let config = match &target.ssl_client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key = private_key(&client.key)?;
            let chain = certificates(&client.certificate)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| Error::Certificate {
                path: client.certificate.to_string(),
                reason: error.to_string(),
            })?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(path: &Utf8Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let fail = |reason: String| Error::Certificate { path: path.to_string(), reason };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?.collect();
    let found = found.map_err(|error| fail(error.to_string()))?;
    if found.is_empty() { Err(fail("no certificate in it".to_owned())) } else { Ok(found) }
}

/// libpq's own rule for who else may read it (fe-secure-openssl.c, `initialize_SSL`).
fn private_key(path: &Utf8Path) -> Result<PrivateKeyDer<'static>, Error> {
    use std::os::unix::fs::MetadataExt;
    let fail =
        |reason: &str| Error::Certificate { path: path.to_string(), reason: reason.to_owned() };
    let metadata = fs_err::metadata(path).map_err(|error| fail(&error.to_string()))?;
    let open_to_others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & open_to_others != 0 {
        return Err(fail(
            "others may read this private key; its mode must be 0600, or 0640 when root owns it",
        ));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        fail(&format!("no private key without a passphrase is in it, as PEM: {error}"))
    })
}

fn roots(path: &Utf8Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| Error::Certificate {
            path: path.to_string(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// Encrypts without asking who is there: libpq's `prefer` and `require`.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks the chain and not the name: libpq's `verify-ca`.
#[derive(Debug)]
struct ChainOnly(Arc<rustls::client::WebPkiServerVerifier>);

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.0.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
