//! Who may talk to the server: a certificate authority of its own, an administrator's certificate, and a token.
//!
//! They are made once and kept in a directory that only its owner can enter, so that a kubeconfig written earlier stays
//! good over restarts. The server's own certificate is made anew at each start and never stored.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};

use crate::authorize;
use crate::user::User;

/// Why credentials can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file or directory can't be read or written.
    #[error("can't {action} {path}: {source}; check its owner and mode")]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A stored key or certificate is damaged.
    #[error(
        "{path} is not usable ({why}); remove {directory} to make new credentials, and use the new kubeconfig"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The directory of all credentials.
        directory: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate can't be made.
    #[error("can't make a certificate: {0}")]
    Certificate(String),
}

/// The server's credentials. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    ca: String,
    admin_certificate: String,
    admin_key: String,
    token: String,
    token_digest: [u8; 32],
    tls: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// The administrator's name and group, as Kubernetes' installers choose them.
const ADMIN: &str = "orlop-admin";
const ADMIN_GROUP: &str = "system:masters";
/// Years that certificates are good for.
const YEARS: i32 = 10;

impl Credentials {
    /// Reads the credentials in `directory`, or makes those that are missing there (directory 0700, files 0600). The
    /// server's certificate is good for `hosts`, names or addresses. Blocks on files; meant for the start.
    pub fn open(directory: &Path, hosts: &[String]) -> Result<Self, CredentialsError> {
        let files = Files { directory };
        files.prepare()?;
        let ca_key = files.key("ca.key")?;
        let ca = match files.read("ca.crt")? {
            Some(ca) => ca,
            None => {
                let ca = authority()?.self_signed(&ca_key).map_err(unmade)?.pem();
                files.write("ca.crt", &ca)?;
                ca
            }
        };
        let ca_der =
            CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| files.damaged("ca.crt", error))?;
        check_key(&ca_der, &ca_key)
            .map_err(|()| files.damaged("ca.crt", "it is of another key than ca.key"))?;
        let issuer =
            Issuer::from_ca_cert_pem(&ca, &ca_key).map_err(|error| files.damaged("ca.crt", error))?;
        let admin_key = files.key("admin.key")?;
        let admin_certificate = match files.read("admin.crt")? {
            Some(certificate) => certificate,
            None => {
                let certificate = admin()?.signed_by(&admin_key, &issuer).map_err(unmade)?.pem();
                files.write("admin.crt", &certificate)?;
                certificate
            }
        };
        let token = match files.read("token")? {
            Some(token) => token.trim().to_owned(),
            None => {
                // Two random ids: 244 random bits.
                let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
                files.write("token", &token)?;
                token
            }
        };
        if token.len() < 32 {
            return Err(files.damaged("token", "it is too short"));
        }
        let server_key = KeyPair::generate().map_err(unmade)?;
        let server = server(hosts)?.signed_by(&server_key, &issuer).map_err(unmade)?;
        let clients = clients(ca_der)?;
        check_admin(&admin_certificate, &admin_key, &*clients)
            .map_err(|why| files.damaged("admin.crt", why))?;
        let tls = tls(clients, server.der().clone(), &server_key)?;
        Ok(Self(Arc::new(Inner {
            ca,
            admin_certificate,
            admin_key: admin_key.serialize_pem(),
            token_digest: Sha256::digest(&token).into(),
            token,
            tls: Arc::new(tls),
        })))
    }

    /// The TLS side of the server: HTTP/2 and HTTP/1.1, client certificates asked for but not required.
    pub(crate) fn tls(&self) -> Arc<rustls::ServerConfig> {
        self.0.tls.clone()
    }

    /// The certificate authority that clients trust, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca
    }

    /// The bearer token.
    pub fn token(&self) -> &str {
        &self.0.token
    }

    /// Whose token this is. Digests are compared, so that the time tells nothing about the token.
    pub(crate) fn user_of_token(&self, token: &str) -> Option<User> {
        let given: [u8; 32] = Sha256::digest(token).into();
        (given == self.0.token_digest)
            .then(|| User { name: ADMIN.to_owned(), groups: vec![ADMIN_GROUP.to_owned()] })
    }

    /// A kubeconfig for the server at `url`, with the administrator's certificate.
    pub fn kubeconfig(&self, url: &str) -> String {
        let encode = |pem: &str| STANDARD.encode(pem);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: orlop\nclusters:\n- name: orlop\n  cluster:\n    \
             server: {url}\n    certificate-authority-data: {}\nusers:\n- name: {ADMIN}\n  user:\n    \
             client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: orlop\n  context:\n    \
             cluster: orlop\n    user: {ADMIN}\n    namespace: default\n",
            encode(&self.0.ca),
            encode(&self.0.admin_certificate),
            encode(&self.0.admin_key),
        )
    }

    /// Writes the kubeconfig to a file that only its owner can read, replacing what is there. The owner is a user and a
    /// group by number, or who runs this process.
    pub fn write_kubeconfig(
        &self,
        path: &Path,
        url: &str,
        owner: Option<(u32, u32)>,
    ) -> Result<(), CredentialsError> {
        write_private(path, &self.kubeconfig(url), owner)
    }
}

/// Whom a verified client certificate names: its common name, and its organisations as groups.
pub(crate) fn user_of_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups =
        subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    Some(User { name, groups })
}

fn unmade(error: impl std::fmt::Display) -> CredentialsError {
    CredentialsError::Certificate(error.to_string())
}

fn params(hosts: &[String], name: &str) -> Result<CertificateParams, CredentialsError> {
    let mut params = CertificateParams::new(hosts).map_err(unmade)?;
    let this_year = i32::from(clock::now().to_zoned(jiff::tz::TimeZone::UTC).year());
    params.not_before = rcgen::date_time_ymd(this_year - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(this_year + YEARS, 1, 1);
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn authority() -> Result<CertificateParams, CredentialsError> {
    let mut params = params(&[], "orlop-ca")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn server(hosts: &[String]) -> Result<CertificateParams, CredentialsError> {
    let mut params = params(hosts, "orlop-api")?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn admin() -> Result<CertificateParams, CredentialsError> {
    let mut params = params(&[], ADMIN)?;
    params.distinguished_name.push(DnType::OrganizationName, ADMIN_GROUP);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Why the administrator's certificate is of no use: cut short, of another key or authority, over, or of no group that
/// may do anything.
fn check_admin(pem: &str, key: &KeyPair, clients: &dyn ClientCertVerifier) -> Result<(), String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    check_key(&der, key).map_err(|()| "it is of another key than admin.key".to_owned())?;
    let now = Duration::from_secs(u64::try_from(clock::now().as_second()).unwrap_or(0));
    clients
        .verify_client_cert(&der, &[], UnixTime::since_unix_epoch(now))
        .map_err(|error| error.to_string())?;
    match user_of_certificate(&der) {
        Some(user) if authorize::is_master(&user) => Ok(()),
        _ => Err(format!("it does not name the group {ADMIN_GROUP}")),
    }
}

/// Whether the certificate is of this key.
fn check_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), ()> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) if parsed.public_key().raw == key.subject_public_key_info() => Ok(()),
        _ => Err(()),
    }
}

/// Who checks clients' certificates, which are asked for and not required.
fn clients(ca: CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(unmade)?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(unmade)
}

fn tls(
    clients: Arc<dyn ClientCertVerifier>,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Result<rustls::ServerConfig, CredentialsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(unmade)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unmade)?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .map_err(unmade)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The directory of credentials.
struct Files<'a> {
    directory: &'a Path,
}

impl Files<'_> {
    fn prepare(&self) -> Result<(), CredentialsError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.directory)
            .and_then(|()| std::fs::set_permissions(self.directory, std::fs::Permissions::from_mode(0o700)))
            .map_err(|source| failed("make the directory", self.directory, source))
    }

    fn read(&self, name: &str) -> Result<Option<String>, CredentialsError> {
        let path = self.directory.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CredentialsError> {
        write_private(&self.directory.join(name), text, None)
    }

    fn key(&self, name: &str) -> Result<KeyPair, CredentialsError> {
        match self.read(name)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|error| self.damaged(name, error)),
            None => {
                let key = KeyPair::generate().map_err(unmade)?;
                self.write(name, &key.serialize_pem())?;
                Ok(key)
            }
        }
    }

    fn damaged(&self, name: &str, why: impl std::fmt::Display) -> CredentialsError {
        CredentialsError::Damaged {
            path: self.directory.join(name),
            directory: self.directory.to_owned(),
            why: why.to_string(),
        }
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> CredentialsError {
    CredentialsError::File { action, path: path.to_owned(), source }
}

/// Writes a file of mode 0600 as a whole or not at all.
/// For its owner's eyes only: root's, or a user's and group's by number.
fn write_private(path: &Path, text: &str, owner: Option<(u32, u32)>) -> Result<(), CredentialsError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    let write = || {
        // A file of the same name can only be left over from a crash.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|source| failed("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<String> {
        vec!["localhost".into(), "127.0.0.1".into()]
    }

    #[test]
    fn credentials_are_private_and_stay_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path().join("pki");
        let first = Credentials::open(&pki, &hosts()).unwrap();
        let second = Credentials::open(&pki, &hosts()).unwrap();
        assert_eq!(first.kubeconfig("https://x"), second.kubeconfig("https://x"));
        assert_eq!(std::fs::metadata(&pki).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in std::fs::read_dir(&pki).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
        let kubeconfig = directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, "old").unwrap();
        first.write_kubeconfig(&kubeconfig, "https://127.0.0.1:1", None).unwrap();
        assert_eq!(std::fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(first.user_of_token(second.token()).is_some());
        let half = &second.token()[..second.token().len() / 2];
        for wrong in ["", "x", half, &format!("{}0", second.token())] {
            assert!(first.user_of_token(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_cut_short_or_swapped_is_noticed_at_the_start_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (own, other) = (directory.path().join("own"), directory.path().join("other"));
        Credentials::open(&own, &hosts()).unwrap();
        Credentials::open(&other, &hosts()).unwrap();
        for name in ["admin.crt", "ca.crt", "admin.key", "ca.key", "token"] {
            let path = own.join(name);
            let whole = std::fs::read_to_string(&path).unwrap();
            let cut = [0, 1, whole.len() / 3].map(|length| whole[..length].to_owned());
            let swapped = std::fs::read_to_string(other.join(name)).unwrap();
            // Any token is one, and any authority, as long as the rest is of it.
            let swapped = Some(swapped).filter(|_| name != "token");
            for bad in cut.into_iter().chain(swapped) {
                std::fs::write(&path, &bad).unwrap();
                let error = Credentials::open(&own, &hosts()).expect_err(name);
                assert!(matches!(error, CredentialsError::Damaged { .. }), "{name}: {error}");
                assert_eq!(std::fs::read_to_string(&path).unwrap(), bad, "{name}");
            }
            std::fs::write(&path, whole).unwrap();
        }
        Credentials::open(&own, &hosts()).unwrap();
    }

    #[test]
    fn a_damaged_key_is_named_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        Credentials::open(directory.path(), &hosts()).unwrap();
        std::fs::write(directory.path().join("ca.key"), "rubbish").unwrap();
        let error = Credentials::open(directory.path(), &hosts()).unwrap_err();
        assert!(
            matches!(&error, CredentialsError::Damaged { path, .. } if path.ends_with("ca.key")),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(directory.path().join("ca.key")).unwrap(), "rubbish");
    }
}
