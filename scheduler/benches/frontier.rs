//! What the frontier costs: a job brought in, picked and settled, with few hosts and with very many. Time is simulated,
//! the work is not.
//!
//! `cargo bench --bench frontier -- [HOSTS...]` prints a line of JSON for each number of hosts.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use dodo_common::clock::Millis;
use dodo_common::db::host::{HostState, HostView};
use dodo_common::db::schedule::{DueJob, Refill};
use dodo_common::model::stream_id::StreamId;
use dodo_scheduler::frontier::Frontier;
use dodo_scheduler::frontier::budget::Rules;
use dodo_scheduler::frontier::issued::SettledJob;
use uuid::Uuid;

const TENANT: &str = "default";
const JOBS_A_HOST: usize = 4;
/// Requests under way at once, and how long each takes.
const WINDOW: usize = 512;
const SERVICE_MS: Millis = 50;
const DELAY_MS: Millis = 1000;
/// Jobs picked and settled in a measurement.
const PICKS: usize = 400_000;
/// Hosts of a slice of the scan, flows of a refill and hosts looked up at once: those of the dispatcher.
const SLICE: usize = 500;
const REFILLS: usize = 200;
const VIEWS: usize = 500;

fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|number| number.parse().ok()).collect();
    for hosts in if asked.is_empty() { vec![20_000, 1_000_000] } else { asked } {
        measure(hosts);
    }
}

fn measure(hosts: usize) {
    let before = resident_kib();
    let dispatch = Uuid::now_v7();
    let mut frontier = Frontier::bounded(hosts);
    frontier.set_rules(dispatch, Rules { delay_ms: DELAY_MS, host_concurrency: 1, idle: false, ..Rules::idle() });
    let mut adds = Vec::with_capacity(hosts);
    for first in (0..hosts).step_by(SLICE) {
        adds.extend(add(&mut frontier, first..hosts.min(first + SLICE), dispatch));
    }
    assert_eq!(adds.len(), hosts, "each is refilled once");
    let memory_kib = resident_kib().saturating_sub(before);

    let (mut now, mut serial, mut picked) = (0, 0, 0);
    let mut open: VecDeque<(Millis, StreamId)> = VecDeque::new();
    let mut spent = Duration::ZERO;
    let mut jobs_left = hosts * JOBS_A_HOST;
    while picked < PICKS.min(hosts * JOBS_A_HOST) && jobs_left > 0 {
        let start = Instant::now();
        while open.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, entry)) = open.pop_front() {
                let settled =
                    SettledJob { requested: true, answered: Some((SERVICE_MS, true)), ..SettledJob::default() };
                frontier.settled(now, entry, &settled);
            }
        }
        let picks = frontier.pick(now, WINDOW - open.len());
        picked += picks.len();
        jobs_left -= picks.len();
        for pick in picks {
            serial += 1;
            let entry = StreamId { ms: serial, seq: 0 };
            frontier.issued(now, entry, pick);
            open.push_back((now + SERVICE_MS, entry));
        }
        spent += start.elapsed();
        let ended = open.front().map(|(at, _)| *at);
        let due = frontier.next_due_ms().filter(|at| *at > now);
        // A full window waits for an answer, another for whatever comes first.
        now = if open.len() >= WINDOW { ended } else { ended.into_iter().chain(due).min() }
            .unwrap_or(now + 1)
            .max(now + 1);
    }
    adds.sort();
    let add_us = adds.iter().sum::<Duration>().as_secs_f64() * 1e6 / hosts as f64;
    let add_p99_us = adds[adds.len() * 99 / 100].as_secs_f64() * 1e6;
    let pick_us = spent.as_secs_f64() * 1e6 / picked as f64;
    println!(
        "{{\"hosts\": {hosts}, \"add_us\": {add_us:.2}, \"add_p99_us\": {add_p99_us:.2}, \"pick_us\": {pick_us:.2}, \
         \"picks\": {picked}, \"memory_mib\": {}}}",
        memory_kib / 1024
    );
}

/// What a slice of the scan costs as the dispatcher takes it, for each of its hosts: its own refill, and its share of all
/// else.
fn add(frontier: &mut Frontier, hosts: Range<usize>, dispatch: Uuid) -> Vec<Duration> {
    let count = hosts.len() as u32;
    let names: Vec<String> = hosts.map(|number| format!("https://host-{number}.example.org")).collect();
    let mut adds = Vec::new();
    let mut shared = Duration::ZERO;
    let start = Instant::now();
    for host in &names {
        frontier.found(TENANT, host);
    }
    shared += start.elapsed();
    loop {
        let start = Instant::now();
        let wanted = frontier.wants_refill(0, REFILLS);
        shared += start.elapsed();
        if wanted.is_empty() {
            break;
        }
        for look in wanted.into_iter().flat_map(|wanted| wanted.looks) {
            let refill = jobs(look.host, dispatch);
            let start = Instant::now();
            frontier.refilled(0, refill, look.limit);
            adds.push(start.elapsed());
        }
    }
    loop {
        let start = Instant::now();
        let asked = frontier.wants_view(VIEWS);
        shared += start.elapsed();
        if asked.is_empty() {
            break;
        }
        let views = asked.iter().map(|host| view(host)).collect();
        let start = Instant::now();
        frontier.viewed(0, &asked, views);
        shared += start.elapsed();
    }
    let start = Instant::now();
    drop(frontier.take_short());
    shared += start.elapsed();
    adds.into_iter().map(|add| add + shared / count).collect()
}

fn jobs(host: String, dispatch: Uuid) -> Refill {
    let due = (0..JOBS_A_HOST)
        .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch, alone: false, exempt: false })
        .collect();
    Refill { tenant: TENANT.to_owned(), host, due, ..Refill::default() }
}

/// Each host has an address of its own: the dearest case.
fn view(host: &str) -> HostView {
    let number: u32 = host.bytes().filter(u8::is_ascii_digit).fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    HostView {
        host: host.to_owned(),
        addresses: vec![std::net::Ipv4Addr::from(number).to_string()],
        state: HostState::Ready,
        crawl_delay_ms: None,
        hold_in_ms: None,
        valid_in_ms: 86_400_000,
        robots_at: None,
        pace_ms: None,
    }
}

/// Memory of this process, KiB.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}
