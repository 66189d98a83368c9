//! Packets of MQTT 3.1.1 and 5 as bytes.

/// PINGREQ.
pub const PINGREQ: [u8; 2] = [0xc0, 0];

/// DISCONNECT.
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// A number as a variable byte integer.
pub fn variable(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = if number > 127 { 0x80 } else { 0 };
        bytes.push((number % 128) as u8 | more);
        number /= 128;
        if number == 0 {
            return bytes;
        }
    }
}

/// A packet with its length.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    bytes.extend(variable(body.len()));
    bytes.extend_from_slice(body);
    bytes
}

/// Bytes with their length in two bytes; the length of more than 65535 is that of what would fit.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// Properties with their length, which 3.1.1 does not have.
pub fn properties(version: u8, properties: &[u8]) -> Vec<u8> {
    match version {
        5 => [variable(properties.len()).as_slice(), properties].concat(),
        _ => Vec::new(),
    }
}

/// CONNECT with flags, such as 2 for a clean session, and what follows the client identifier.
pub fn connect_with(version: u8, flags: u8, keep_alive: u16, id: &str, rest: &[u8]) -> Vec<u8> {
    let mut body = string(b"MQTT");
    body.extend([version, flags]);
    body.extend(keep_alive.to_be_bytes());
    body.extend(properties(version, &[]));
    body.extend(string(id.as_bytes()));
    body.extend_from_slice(rest);
    packet(0x10, &body)
}

/// CONNECT of somebody with a certificate.
pub fn connect(version: u8, id: &str) -> Vec<u8> {
    connect_with(version, 2, 60, id, &[])
}

/// CONNECT with user and password.
pub fn connect_as(version: u8, id: &str, user: &str, password: &str) -> Vec<u8> {
    let login = [string(user.as_bytes()), string(password.as_bytes())].concat();
    connect_with(version, 0xc2, 60, id, &login)
}

/// PUBLISH without properties; `flags` are the low four bits of the first byte.
pub fn publish(version: u8, topic: &[u8], flags: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    publish_with(version, topic, flags, id, &[], payload)
}

/// PUBLISH.
pub fn publish_with(
    version: u8,
    topic: &[u8],
    flags: u8,
    id: u16,
    props: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut body = string(topic);
    if flags & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend(properties(version, props));
    body.extend_from_slice(payload);
    packet(0x30 | flags, &body)
}

/// SUBSCRIBE to one filter.
pub fn subscribe(version: u8, id: u16, filter: &str, options: u8) -> Vec<u8> {
    subscribe_often(version, id, filter, 1, options)
}

/// SUBSCRIBE to the same filter several times.
pub fn subscribe_often(version: u8, id: u16, filter: &str, times: usize, options: u8) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(properties(version, &[]));
    for _ in 0..times {
        body.extend(string(filter.as_bytes()));
        body.push(options);
    }
    packet(0x82, &body)
}

/// UNSUBSCRIBE from one filter.
pub fn unsubscribe(version: u8, id: u16, filter: &str) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(properties(version, &[]));
    body.extend(string(filter.as_bytes()));
    packet(0xa2, &body)
}

/// PUBACK.
pub fn puback(id: [u8; 2]) -> [u8; 4] {
    [0x40, 2, id[0], id[1]]
}

/// First byte and body of the first packet, and what follows it; `None` if it is not complete.
pub fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let mut length = 0;
    for (index, &byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let (body, rest) = rest.get(index + 1..)?.split_at_checked(length)?;
            return Some((first, body, rest));
        }
    }
    None
}

/// The packet identifier of a PUBLISH with a quality of service above 0.
pub fn publish_id(body: &[u8]) -> Option<[u8; 2]> {
    let (length, rest) = body.split_first_chunk()?;
    let after = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
    after.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_split_where_they_end() {
        let long = publish(4, b"a/b", 2, 7, &[1; 300]);
        let both = [long.as_slice(), &PINGREQ].concat();
        let (first, body, rest) = split(&both).unwrap();
        assert_eq!((first, publish_id(body)), (0x32, Some([0, 7])));
        assert_eq!(rest, PINGREQ);
        for end in 0..long.len() {
            assert!(split(&long[..end]).is_none(), "{end} bytes");
        }
    }
}
