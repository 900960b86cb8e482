//! Proxies chosen, bounded, and left alone: times are given.

use slotmap::SlotMap;

use super::*;

const BASE_MS: Millis = 1000;

fn exits(text: &str, concurrency: u32) -> Exits {
    Exits::new(0, &text.parse().unwrap(), Bounds { concurrency, delay_ms: 0, quarantine_ms: BASE_MS }, &[])
}

fn flow() -> FlowId {
    SlotMap::with_key().insert(())
}

/// Where a request may leave now.
fn ask(
    exits: &mut Exits,
    now: Millis,
    host: &str,
    region: Option<&str>,
    flow: FlowId,
) -> Result<Option<Arc<str>>, Wait> {
    let chosen = exits.choose(now, host, &region.map(Arc::from))?;
    chosen.map(|exit| exits.allow(now, exit, flow)).transpose()
}

/// Where each of many hosts would go.
fn places(exits: &mut Exits, now: Millis) -> Vec<String> {
    let place = |n| ask(exits, now, &format!("http://h{n}.test"), None, flow()).unwrap().unwrap().to_string();
    (0..900).map(place).collect()
}

fn say_of(exits: &mut Exits, now: Millis, address: &str, host: &str, word: ProxyWord) {
    exits.enter(address);
    exits.leave(now, address, host, true, Some(word));
}

#[test]
fn a_proxy_that_leaves_moves_only_its_hosts_and_they_come_back() {
    let mut exits = exits("eu=http://a:1,eu=http://b:1,us=http://c:1", 1000);
    let before = places(&mut exits, 0);
    for address in ["a:1", "b:1", "c:1"] {
        let count = before.iter().filter(|place| *place == address).count();
        assert!((200..400).contains(&count), "{address} has {count} of 900");
    }
    for n in 0..4 {
        say_of(&mut exits, 0, "b:1", &format!("http://x{n}.test"), ProxyWord::Blocked);
    }
    let moved = places(&mut exits, 0);
    assert!(moved.iter().all(|place| place != "b:1"));
    assert!(before.iter().zip(&moved).all(|(before, now)| before == now || before == "b:1"));
    say_of(&mut exits, BASE_MS, "b:1", "http://x.test", ProxyWord::Good);
    assert_eq!(places(&mut exits, BASE_MS), before);
    assert!(ask(&mut exits, 0, "http://h.test", Some("us"), flow()).unwrap().is_some_and(|address| &*address == "c:1"));
}

#[test]
fn one_request_at_a_time_is_a_trial_and_the_rest_wait_for_it() {
    let mut exits = exits("eu=http://a:1", 8);
    exits.enter("a:1");
    for _ in 0..3 {
        say_of(&mut exits, 0, "a:1", "http://h.test", ProxyWord::Down);
    }
    let quarantined = Err(Wait::until(BASE_MS, Cause::Quarantine));
    assert_eq!(ask(&mut exits, 0, "http://h.test", None, flow()), quarantined);
    assert_eq!(exits.gate(0, &None), Gate::Shut);
    let flow = flow();
    let choose = |exits: &mut Exits| ask(exits, BASE_MS, "http://h.test", None, flow);
    assert_eq!(choose(&mut exits), Err(Wait::event(Cause::Quarantine)), "one had left before, which is no trial");
    exits.leave(BASE_MS, "a:1", "http://h.test", true, Some(ProxyWord::Good));
    assert_eq!(exits.gate(BASE_MS, &None), Gate::Trial);
    assert!(choose(&mut exits).is_ok());
    exits.enter("a:1");
    assert_eq!((exits.gate(BASE_MS, &None), exits.wake()), (Gate::Shut, Vec::new()));
    assert_eq!(choose(&mut exits), Err(Wait::event(Cause::Quarantine)));
    let row = &exits.take_changed(BASE_MS)[0];
    assert_eq!((row.quarantined_ms, row.failures, row.successes), (Some(0), 3, 1));
    exits.leave(BASE_MS, "a:1", "http://h.test", true, Some(ProxyWord::Good));
    assert_eq!(exits.gate(BASE_MS, &None), Gate::Open);
    assert_eq!(exits.take_changed(BASE_MS)[0].quarantined_ms, None);
    assert_eq!(exits.take_changed(BASE_MS), []);
}

#[test]
fn a_proxy_has_bounds_of_its_own() {
    let mut exits = exits("eu=http://a:1", 2);
    let mut flows = SlotMap::with_key();
    let flows: Vec<FlowId> = (0..3).map(|_| flows.insert(())).collect();
    let choose = |exits: &mut Exits, flow| ask(exits, 0, "http://h.test", None, flow);
    for _ in 0..2 {
        assert!(choose(&mut exits, flows[0]).is_ok());
        exits.enter("a:1");
    }
    for flow in [flows[0], flows[1], flows[1], flows[2]] {
        assert_eq!(choose(&mut exits, flow), Err(Wait::event(Cause::Proxy)));
    }
    assert_eq!(exits.wake(), []);
    exits.leave(0, "a:1", "http://h.test", true, None);
    assert_eq!(exits.wake(), [flows[0]], "one place, one flow");
    assert_eq!(exits.wake(), [flows[1]], "it was not taken");
    exits.bounds.delay_ms = 50;
    assert_eq!(choose(&mut exits, flows[0]), Err(Wait::until(50, Cause::Proxy)));
    exits.complete_all(100);
    assert_eq!(exits.wake(), []);
    assert_eq!(choose(&mut exits, flows[0]), Err(Wait::until(150, Cause::Proxy)), "as after a takeover");
}

#[test]
fn a_host_that_refuses_everybody_takes_no_proxy_along() {
    let mut exits = exits("eu=http://a:1,eu=http://b:1,eu=http://c:1", 8);
    let host = "http://h.test";
    let blocked = |exits: &mut Exits, now| {
        let address = ask(exits, now, host, None, flow()).unwrap().unwrap();
        say_of(exits, now, &address, host, ProxyWord::Blocked);
        address.to_string()
    };
    let used: Vec<String> = (0..100).map(|_| blocked(&mut exits, 0)).collect();
    let turns: Vec<_> = used.chunk_by(|a, b| a == b).map(|turn| (turn[0].as_str(), turn.len())).collect();
    assert_eq!(turns.len(), 4, "{turns:?}: each in its turn, then the first again");
    assert!(turns[..3].iter().all(|(_, times)| *times == 3) && turns[3].0 == turns[0].0, "{turns:?}");
    assert!(exits.take_changed(0).iter().all(|row| row.quarantined_ms.is_none()));
    // What it says by another is no good word for the first one, but for the host.
    say_of(&mut exits, 0, &used[3], host, ProxyWord::Good);
    assert_eq!(blocked(&mut exits, 0), used[3]);
}

/// Whatever the share of the host in what leaves by its proxy.
#[test]
fn a_host_that_does_not_let_its_proxy_in_leaves_by_another_for_a_while() {
    let mut exits = exits("eu=http://a:1,eu=http://b:1,us=http://c:1", 8);
    let host = "http://h.test";
    let of = |exits: &mut Exits, now, region| ask(exits, now, host, region, flow()).unwrap().unwrap().to_string();
    let own = of(&mut exits, 0, Some("eu"));
    let other = ["a:1", "b:1"].into_iter().find(|address| *address != own).unwrap();
    for n in 0..3 {
        assert_eq!(of(&mut exits, 0, Some("eu")), own, "after {n} bad answers");
        for good in 0..19 {
            say_of(&mut exits, 0, &own, &format!("http://x{good}.test"), ProxyWord::Good);
        }
        say_of(&mut exits, 0, &own, host, ProxyWord::Blocked);
    }
    assert_eq!(of(&mut exits, 0, Some("eu")), other);
    say_of(&mut exits, 0, other, host, ProxyWord::Good);
    assert_eq!(of(&mut exits, BASE_MS - 1, Some("eu")), other, "it does not flap");
    assert!(exits.take_changed(0).iter().all(|row| row.quarantined_ms.is_none()), "others get through");
    assert_eq!(of(&mut exits, BASE_MS, Some("eu")), own, "another look");
    say_of(&mut exits, BASE_MS, &own, host, ProxyWord::Blocked);
    assert_eq!(of(&mut exits, BASE_MS, Some("eu")), other, "one is enough by now");
    say_of(&mut exits, 2 * BASE_MS, &own, host, ProxyWord::Good);
    say_of(&mut exits, 2 * BASE_MS, &own, host, ProxyWord::Blocked);
    assert_eq!(of(&mut exits, 2 * BASE_MS, Some("eu")), own);
    // Alone in its region it is used all the same.
    for _ in 0..3 {
        say_of(&mut exits, 0, "c:1", host, ProxyWord::Blocked);
    }
    assert_eq!(of(&mut exits, 0, Some("us")), "c:1");
}

#[test]
fn nothing_leaves_without_a_proxy_of_its_region() {
    let mut exits = exits("eu=http://a:1", 8);
    let nowhere = Err(Wait::event(Cause::Quarantine));
    assert_eq!(ask(&mut exits, 0, "http://h.test", Some("us"), flow()), nowhere);
    let mut none = Exits::default();
    assert_eq!(ask(&mut none, 0, "http://h.test", Some("us"), flow()), nowhere);
    assert_eq!(ask(&mut none, 0, "http://h.test", None, flow()), Ok(None));
}
