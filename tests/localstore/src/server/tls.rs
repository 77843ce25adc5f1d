//! A certificate authority of its own, for https on loopback.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// The server's side of https, and the authority that clients must trust.
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) ca_file: PathBuf,
}

impl Tls {
    /// A new authority, written to `ca_file`, and a certificate for localhost, this address and
    /// these names; valid from the first day of one year to that of another, where those are given.
    pub(crate) fn generate(
        ca_file: &Path,
        address: IpAddr,
        others: &[String],
        years: Option<(i32, i32)>,
    ) -> anyhow::Result<Self> {
        let authority_key = KeyPair::generate().context("generating the CA's key")?;
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "localstore CA");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_pem = authority.self_signed(&authority_key).context("signing the CA")?.pem();
        let issuer = Issuer::new(authority, authority_key);

        let key = KeyPair::generate().context("generating the server's key")?;
        let mut names = vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "::1".to_owned()];
        if !names.contains(&address.to_string()) {
            names.push(address.to_string());
        }
        names.extend_from_slice(others);
        let mut server = CertificateParams::new(names).context("naming the server")?;
        server.distinguished_name.push(DnType::CommonName, "localhost");
        server.use_authority_key_identifier_extension = true;
        if let Some((first, last)) = years {
            server.not_before = date_time_ymd(first, 1, 1);
            server.not_after = date_time_ymd(last, 1, 1);
        }
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = server.signed_by(&key, &issuer).context("signing the server")?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        std::fs::write(ca_file, authority_pem)
            .with_context(|| format!("writing {}", ca_file.display()))?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca_file: ca_file.to_owned() })
    }
}
