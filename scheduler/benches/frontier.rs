//! What the frontier costs: a job brought in, picked and settled, with few hosts and with very many. Time is simulated,
//! the work is not.
//!
//! `cargo bench --bench frontier -- [HOSTS...]` prints a line of JSON for each number of hosts.

use std::collections::VecDeque;
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
    let mut adds: Vec<Duration> = (0..hosts)
        .map(|number| {
            let refill = jobs(number, dispatch);
            let host = refill.host.clone();
            let start = Instant::now();
            frontier.found(TENANT, &host);
            frontier.refilled(0, refill, JOBS_A_HOST as i64 + 1);
            start.elapsed()
        })
        .collect();
    let mut viewing = Duration::ZERO;
    loop {
        let start = Instant::now();
        let asked = frontier.wants_view(VIEWS);
        viewing += start.elapsed();
        if asked.is_empty() {
            break;
        }
        let views = asked.iter().map(|host| view(host)).collect();
        let start = Instant::now();
        frontier.viewed(0, &asked, views);
        viewing += start.elapsed();
    }
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
    let add_us = (adds.iter().sum::<Duration>() + viewing).as_secs_f64() * 1e6 / hosts as f64;
    let add_p99_us = adds[adds.len() * 99 / 100].as_secs_f64() * 1e6;
    let pick_us = spent.as_secs_f64() * 1e6 / picked as f64;
    println!(
        "{{\"hosts\": {hosts}, \"add_us\": {add_us:.2}, \"add_p99_us\": {add_p99_us:.2}, \"pick_us\": {pick_us:.2}, \
         \"picks\": {picked}, \"memory_mib\": {}}}",
        memory_kib / 1024
    );
}

fn jobs(host: usize, dispatch: Uuid) -> Refill {
    let due = (0..JOBS_A_HOST)
        .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch, alone: false, exempt: false })
        .collect();
    Refill { tenant: TENANT.to_owned(), host: format!("https://host-{host}.example.org"), due, ..Refill::default() }
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
