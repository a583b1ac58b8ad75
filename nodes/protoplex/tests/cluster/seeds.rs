//! Three seeds, each with a datastore, on one PostgreSQL and one NATS: the leader dies, is stopped, leaves; all of them are
//! gone; the database is gone. Backends check for themselves that no key ever has two owners and that no epoch goes back.

mod bench;

use std::thread;
use std::time::{Duration, Instant};

use protoplex_testkit::machines::SEEDS;
use protoplex_testkit::until;
use rustix::process::Signal;

use self::bench::{Bench, Events, ROOMS, known_elsewhere, room};
use crate::get;

/// Of members.
const LEASE: Duration = Duration::from_secs(5);

#[test]
fn a_leader_killed_under_load_fails_no_request_for_what_is_known_and_moves_no_key() {
    let mut bench = Bench::start();
    assert_eq!(bench.machines.leader(), "seed-1");
    let before = bench.owners();
    let (load, events) = (bench.load(), Events::start(&bench.machines));
    // All of its machine, the datastore that everybody used among it.
    bench.machines.kill("datastore-1");
    bench.machines.kill("seed-1");
    let took = bench.until_assigned(Instant::now());
    println!("leader killed: assignments flow again after {took:?}");
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    let leader = bench.machines.leader();
    assert_ne!(leader, "seed-1");

    // Whoever was the leader comes back, as an understudy.
    bench.machines.start_machine(1);
    until("it has joined", || {
        let status = bench.machines.status();
        let seeds = status["seeds"].as_array()?.clone();
        (seeds.len() == SEEDS && seeds.iter().all(|seed| seed["ready"] == true)).then_some(())
    });
    assert_eq!(bench.machines.leader(), leader);
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 100, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before, "no key has moved, and none has another epoch");
    let published = events.stop();
    assert!(published > 100, "{published} events were acknowledged, and read");
    bench.check();

    // A command that comes right behind the next death waits for whoever leads then.
    bench.machines.kill(&leader);
    let add = ["handler", "add", "late", "--path", "/late/{x}", "--key", "{x}", "--pool", "late"];
    let added = bench.machines.run(&add);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
}

#[test]
fn a_leader_that_was_stopped_for_ten_seconds_does_no_harm_and_learns_it() {
    let bench = Bench::start();
    assert_eq!(bench.machines.leader(), "seed-1");
    let before = bench.owners();
    let load = bench.load();
    let began = Instant::now();
    bench.machines.signal("seed-1", Signal::STOP);
    let took = bench.until_assigned(began);
    println!("leader stopped: assignments flow again after {took:?}");
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    thread::sleep(Duration::from_secs(10).saturating_sub(began.elapsed()));
    let mut client = bench.client();
    let rooms: Vec<_> = (0..20).map(|_| bench.fresh_room()).collect();
    bench.machines.signal("seed-1", Signal::CONT);
    for room in &rooms {
        assert_eq!(client.get(room), 200);
    }
    until("it has learnt who leads", || {
        bench.machines.meta("seed-1", "status")?.1.contains("understudy of").then_some(())
    });
    let leader = bench.machines.leader();
    assert_ne!(leader, "seed-1");
    assert_eq!(bench.metric("seed-1", "protoplex_seed_leading"), 0.0);
    for room in &rooms {
        assert_eq!(client.get(room), 200);
    }
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 100, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before);
    bench.check();
}

#[test]
fn a_planned_hand_over_takes_less_than_a_second_and_fails_no_request() {
    let mut bench = Bench::start();
    let before = bench.owners();
    let load = bench.load();
    let newcomers = bench.newcomers();

    newcomers.until_answered();
    assert_eq!(bench.machines.leader(), "seed-1");
    let drained = bench.machines.run(&["drain", "seed-1"]);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let second = bench.machines.leader();
    assert_ne!(second, "seed-1");
    newcomers.until_answered();
    newcomers.tell("drain of the leader");

    // The next one goes on as another program, and comes back as an understudy.
    bench.machines.restart("seed-1");
    bench.machines.ready("seed-1");
    let upgraded = bench.machines.run(&["upgrade", &second]);
    assert!(upgraded.status.success(), "{}", String::from_utf8_lossy(&upgraded.stderr));
    until("another one leads", || (bench.machines.leader() != second).then_some(()));
    bench.machines.ready(&second);
    newcomers.until_answered();
    newcomers.tell("upgrade of the leader");

    // The next one is ended by SIGTERM, as systemd does.
    let third = bench.machines.leader();
    assert_eq!(bench.machines.stop(&third), Some(0));
    assert_ne!(bench.machines.leader(), third);
    newcomers.until_answered();
    newcomers.tell("SIGTERM to the leader");

    newcomers.stop();
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 100, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before, "no key has moved");
    bench.check();
}

#[test]
fn with_every_seed_gone_what_is_known_goes_on_and_says_so() {
    let mut bench = Bench::start();
    let before = bench.owners();
    let load = bench.load();
    (1..=SEEDS).for_each(|index| bench.machines.kill(&format!("seed-{index}")));
    let gone = Instant::now();
    until("the nodes say that no seed is there", || {
        let (status, text) = bench.machines.meta("proxy-1", "readyz")?;
        (status == 200 && text.contains("no seed has been reachable")).then_some(())
    });
    thread::sleep((LEASE * 3).saturating_sub(gone.elapsed()));
    for node in ["proxy-1", "fileserver-1", "live-1"] {
        let (status, text) = bench.machines.meta(node, "readyz").unwrap();
        assert!(status == 200 && text.starts_with("ready\nfor "), "{node}: {status} {text}");
        assert_eq!(bench.metric(node, "protoplex_seed_reachable"), 0.0);
        assert!(bench.metric(node, "protoplex_seed_lost_seconds") > 10.0);
    }
    let refused = get(&format!("http://{}{}", bench.machines.http(), bench.fresh_room()), &[]);
    assert_eq!(refused.status, 503, "a new key can't be assigned");
    assert!(refused.header("retry-after").is_some());
    let status = bench.machines.run(&["status"]);
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(3));
    assert!(told.contains("No seed has led for ") && told.contains("what is known goes on"), "{told}");

    bench.machines.start_seed(2);
    let back = Instant::now();
    let took = bench.until_assigned(back);
    println!("all seeds gone for {:?}: assignments flow {took:?} after one is ready again", back - gone);
    until("the nodes have found it", || {
        let lost = ["proxy-1", "fileserver-1", "live-1"].map(|node| bench.machines.meta(node, "readyz"));
        lost.iter().all(|page| page.as_ref().is_some_and(|(_, text)| text == "ready\n")).then_some(())
    });
    assert_eq!(bench.metric("proxy-1", "protoplex_seed_reachable"), 1.0);
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 1000, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before, "every key is where it was");
    bench.check();
}

#[test]
fn seeds_that_die_one_after_another_take_no_key_from_who_knows_its_owner() {
    let mut bench = Bench::start();
    let before = bench.owners();
    // Nobody asks for what is known meanwhile: who leads next can't vouch for it.
    for _ in 1..SEEDS {
        bench.machines.kill(&bench.machines.leader());
        bench.until_assigned(Instant::now());
    }
    bench.machines.kill(&bench.machines.leader());
    until("the proxy says that no seed is there", || {
        let (status, text) = bench.machines.meta("proxy-1", "readyz")?;
        (status == 200 && text.contains("no seed has been reachable")).then_some(())
    });
    let mut client = bench.client();
    for number in 0..ROOMS {
        assert_eq!(client.get(&room(number)), 200, "{number}");
    }
    assert_eq!(bench.owners(), before);
    bench.check();
}

#[test]
fn row_a_database_that_is_away_ends_no_seed_and_epochs_go_on_growing() {
    let bench = Bench::start();
    bench.machines.server.kill();
    until("no seed leads", || {
        let (status, text) = bench.machines.meta("proxy-1", "readyz")?;
        (status == 200 && text.contains("no seed has")).then_some(())
    });
    let mut client = bench.client();
    for path in known_elsewhere() {
        assert_eq!(client.get(&path), 200, "{path}: what needs no owner goes on");
    }
    let (status, _) = bench.machines.meta("seed-1", "readyz").unwrap();
    assert_eq!(status, 503, "a seed that could not lead is not ready");
    // Seeds that answer, but don't lead, know who is there as little as those that don't.
    let status = bench.machines.run(&["status"]);
    let told = [&status.stdout, &status.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(status.status.code(), Some(3), "{told:?}");
    assert!(told[0].contains("Seed seed-2") && told[0].contains("does not lead"), "{told:?}");
    assert!(told[0].contains("proxy-1:0") && !told[0].contains("LOST"), "{told:?}");
    assert!(told[1].contains("no seed leads; the one at") && told[1].contains("can't lead"), "{told:?}");
    bench.machines.server.resume();
    bench.until_assigned(Instant::now());
    for path in (0..ROOMS).map(room) {
        until(&path, || (client.get(&path) == 200).then_some(()));
    }
    bench.machines.leader();
    bench.check();
}
