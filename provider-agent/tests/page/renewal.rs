//! A renewed certificate, as the running daemon takes it up.

use std::fs;

use gateway_admin::{KeyPair, Terms};

use crate::daemon::{Daemon, set_password};
use crate::world::{World, policy, until};

/// Gives the provider another certificate of its key.
fn renew(world: &World, days: u32) {
    let key = KeyPair::read(&world.path("identity/key.pem")).unwrap();
    let terms = Terms::default().days(days);
    let renewed = world.authority.enrol_provider(key, &terms).unwrap();
    let directory = world.path(&format!("renewed-{days}"));
    renewed.write(&directory).unwrap();
    let path = world.path("identity/certificate.pem");
    fs::rename(directory.join("certificate.pem"), path).unwrap();
}

/// Days from now to the end of the certificate that it runs with.
fn days_left(daemon: &Daemon) -> Option<u64> {
    let metrics = daemon.get("/metrics").body;
    let end = metrics
        .lines()
        .find_map(|line| line.strip_prefix("provider_agent_certificate_end_seconds "))?;
    let now = provider_agent::utc::now().as_millis() / 1000;
    Some(end.parse::<u64>().unwrap().saturating_sub(now) / 86_400)
}

#[test]
fn a_reload_takes_up_a_renewed_certificate() {
    let mut world = World::new();
    world.without_broker();
    world.create_net(policy(900, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    until("the certificate that there is is used", || {
        days_left(&daemon).is_some_and(|days| days > 3000)
    });
    // With what cannot be used it goes on.
    fs::write(world.path("identity/certificate.pem"), "damaged").unwrap();
    daemon.reload();
    until("that is told", || {
        daemon.said("goes on with the certificates")
    });
    assert!(days_left(&daemon).is_some_and(|days| days > 3000));
    renew(&world, 100);
    daemon.reload();
    until("the renewed one is used", || {
        days_left(&daemon).is_some_and(|days| days <= 100)
    });
    daemon.is_started();
}
