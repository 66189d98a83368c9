//! MQTT over WebSocket.

mod rig;

use std::sync::Arc;

use broker::Refusal;
use futures_util::{SinkExt, StreamExt};
use rig::*;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

type WebSocket = WebSocketStream<TlsStream<TcpStream>>;

async fn open(
    rig: &Rig,
    tls: Arc<ClientConfig>,
    protocol: Option<&'static str>,
) -> Result<WebSocket, Error> {
    let address = rig.broker().websocket_addrs()[0];
    let raw = rig.try_raw_at(address, tls).await?;
    let mut request = format!("wss://{address}/mqtt").into_client_request()?;
    if let Some(protocol) = protocol {
        let value = protocol.parse().unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", value);
    }
    let (socket, response) = within("handshake", client_async(request, raw.stream)).await?;
    let chosen = response.headers().get("Sec-WebSocket-Protocol");
    assert_eq!(chosen.unwrap(), "mqtt");
    Ok(socket)
}

async fn send(socket: &mut WebSocket, bytes: &[u8]) {
    let message = Message::Binary(bytes.to_vec().into());
    socket.send(message).await.unwrap();
}

/// The next bytes of MQTT; `None` at the end.
async fn receive(socket: &mut WebSocket) -> Option<Vec<u8>> {
    loop {
        match within("a message", socket.next()).await {
            Some(Ok(Message::Binary(bytes))) => return Some(bytes.to_vec()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            _ => return None,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_certificates_get_in_and_messages_pass() {
    let everything = "[all]\nsubscribe = [\"dcnet/1/+/public/#\"]\n";
    let rig = Rig::serving(&[("dashboard", "correct horse")], everything).await;
    let public = format!("dcnet/1/{NET}/public/aggregate");
    let mut user = open(&rig, rig.tls(None), Some("mqttv3.1, mqtt"))
        .await
        .unwrap();
    // Packets begin and end anywhere in the messages.
    let mut bytes = connect_as(5, "page", "dashboard", "correct horse");
    bytes.extend(subscribe(5, 1, &public, 1));
    bytes.extend(subscribe(5, 2, &format!("dcnet/1/{NET}/all/#"), 1));
    for chunk in bytes.chunks(7) {
        send(&mut user, chunk).await;
    }
    send(&mut user, &[]).await;
    let mut answers = Vec::new();
    while !answers.ends_with(&[0x90, 4, 0, 2, 0, 0x87]) {
        answers.extend(receive(&mut user).await.expect("answers"));
    }
    assert_eq!(answers[0], 0x20);

    // A meter by its certificate, under the same permissions as everywhere.
    let mut meter = open(&rig, rig.tls(Some(&rig.meter)), Some("mqtt"))
        .await
        .unwrap();
    send(&mut meter, &connect(4, &rig.meter.client_id(), &[])).await;
    assert_eq!(receive(&mut meter).await.unwrap(), [0x20, 2, 0, 0]);
    send(&mut meter, &subscribe(4, 1, "#", 1)).await;
    assert_eq!(receive(&mut meter).await.unwrap(), [0x90, 3, 0, 1, 0x80]);

    // Longer than one message of the broker's.
    let payload = vec![b'x'; 100_000];
    let provider = rig.client(&rig.provider).await;
    provider.publish(&public, &payload).await;
    let mut received = Vec::new();
    while received.len() < payload.len() {
        received.extend(receive(&mut user).await.expect("the message"));
    }
    assert!(received.ends_with(&payload[..1000]));
    assert_eq!(received[0], 0x32);
    user.send(Message::Ping(b"there?".to_vec().into()))
        .await
        .unwrap();
    let answer = within("a pong", user.next()).await.unwrap().unwrap();
    assert_eq!(answer, Message::Pong(b"there?".to_vec().into()));
    let counters = rig.broker().counters();
    assert!(counters.users["dashboard"].bytes_out > 100_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_mqtt_over_websocket_is_refused_and_counted() {
    let rig = Rig::serving(&[("dashboard", "correct horse")], "").await;
    for (count, protocol) in [(1, None), (2, Some("chat"))] {
        let error = open(&rig, rig.tls(None), protocol).await.err().unwrap();
        assert!(
            matches!(error, Error::Http(ref r) if r.status() == 400),
            "{error}"
        );
        until("counted", || rig.refused(Refusal::WebSocket) == count).await;
    }
    let address = rig.broker().websocket_addrs()[0];
    let mut raw = rig.try_raw_at(address, rig.tls(None)).await.unwrap();
    raw.try_send(&connect_as(4, "x", "dashboard", "correct horse"))
        .await;
    assert_eq!(raw.end().await, None, "MQTT without WebSocket");
    until("counted", || rig.refused(Refusal::WebSocket) == 3).await;

    let enter = async || {
        let mut socket = open(&rig, rig.tls(None), Some("mqtt")).await.unwrap();
        send(
            &mut socket,
            &connect_as(4, "", "dashboard", "correct horse"),
        )
        .await;
        assert_eq!(receive(&mut socket).await.unwrap(), [0x20, 2, 0, 0]);
        socket
    };
    let mut socket = enter().await;
    socket.send(Message::Text("hello".into())).await.unwrap();
    assert_eq!(receive(&mut socket).await, None);
    until("counted", || rig.refused(Refusal::Malformed) == 1).await;
    // More than a packet may have.
    let mut socket = enter().await;
    let _ = socket.send(Message::Binary(vec![0; 300_000].into())).await;
    assert_eq!(receive(&mut socket).await, None);
    until("counted", || rig.refused(Refusal::Malformed) == 2).await;
    // A client that is simply gone is no offence.
    drop(enter().await);
    until("the end", || rig.broker().sessions_open() == 0).await;
    assert_eq!(rig.refused(Refusal::Malformed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_users_a_certificate_is_demanded() {
    let mut rig = Rig::serving(&[], "").await;
    rig.config.passwords = None;
    rig.config.listen_third_parties.clear();
    rig.restart().await;
    assert!(open(&rig, rig.tls(None), Some("mqtt")).await.is_err());
    until("counted", || rig.refused(Refusal::Tls) == 1).await;
    assert!(
        open(&rig, rig.tls(Some(&rig.meter)), Some("mqtt"))
            .await
            .is_ok()
    );
}
