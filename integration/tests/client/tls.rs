//! Encrypted connections.

use std::fs;
use std::path::Path;

use maos_client::{Applied, Client, Config, Error, SetOptions, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::harness::{Server, Setup};

/// A certificate authority, and a certificate for 127.0.0.1 that it has signed, as PEM files.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    // A name of its own, or the certificate it signs would look like one that signed itself.
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &ca).unwrap();
    fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

fn port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let dir = std::env::temp_dir().join(format!("maos-tls-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    certificates(&dir);
    let file = |name: &str| dir.join(name);
    let text = |name: &str| file(name).display().to_string();
    let port = port();
    let _server: Server = Setup::new()
        .set("tls-port", &port.to_string())
        .set("tls-ca-cert-file", &text("ca.pem"))
        .set("tls-cert-file", &text("cert.pem"))
        .set("tls-key-file", &text("key.pem"))
        .set("tls-auth-clients", "yes")
        .start();
    let config = || Config::new(&format!("rediss://127.0.0.1:{port}/")).unwrap();
    let trusted = Tls::new().ca_file(file("ca.pem"));
    let known = trusted.clone().identity(file("cert.pem"), file("key.pem"));
    let client = Client::connect(config().tls(known)).await.unwrap();
    client.set("app:k:1", "v", SetOptions::new()).await.unwrap();
    assert_eq!(client.get("app:k:1").await.unwrap().unwrap().value, b"v");

    // No certificate of ours; none that we trust; no TLS at all.
    for config in [
        config().tls(trusted),
        config(),
        Config::new(&format!("redis://127.0.0.1:{port}/")).unwrap(),
    ] {
        match Client::connect(config.clone()).await {
            Err(Error::Transport {
                applied: Applied::No,
                ..
            }) => {}
            other => panic!("{config:?}: {other:?}"),
        }
    }
    let nowhere = Tls::new().ca_file(file("none.pem"));
    match Client::connect(config().tls(nowhere)).await {
        Err(Error::Config { field, .. }) => assert_eq!(field, "tls.ca_file"),
        other => panic!("{other:?}"),
    }
    fs::remove_dir_all(&dir).unwrap();
}
