//! A private CA, and TLS sites that it vouches for.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A private CA.
pub struct Ca {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut about = CertificateParams::new(Vec::new())?;
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        std::fs::write(dir.path().join("ca.pem"), about.self_signed(&key)?.pem())?;
        Ok(Self { dir, issuer: Issuer::new(about, key) })
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A site at `address` with a certificate for `name`, which offers these protocols. A handler may ask for [`ConnectInfo`].
    pub async fn serve(&self, name: &str, address: Ipv4Addr, protocols: &[&str], site: Router) -> Result<SocketAddr> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut tls =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
        tls.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((address, 0)).await?;
        let place = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let site = TowerToHyperService::new(site.clone().layer(Extension(ConnectInfo(peer))));
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), site).await;
                });
            }
        });
        Ok(place)
    }
}
