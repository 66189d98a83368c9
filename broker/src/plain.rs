//! A listener without TLS, for measuring what TLS costs; only with the feature `plain`, which
//! no shipped broker has. The client shows its certificate without proving that it has the key:
//! its length in two bytes and the DER, and MQTT follows.

use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt;

use crate::counters::{CountedStream, Refusal};

/// Longest certificate, in bytes.
const LONGEST: u16 = 4096;

/// Takes the certificate.
pub(crate) async fn accept(
    mut stream: CountedStream,
) -> Result<(CountedStream, CertificateDer<'static>), Refusal> {
    let read = async {
        let length = stream.read_u16().await?.min(LONGEST);
        let mut der = vec![0; usize::from(length)];
        stream.read_exact(&mut der).await?;
        std::io::Result::Ok(der)
    };
    let der = read.await.map_err(|_| Refusal::Certificate)?;
    Ok((stream, der.into()))
}
