//! What a crawl costs at the least on this machine: the durable steps of a page and nothing else, no scheduler, no
//! robots.txt, no politeness. What Dodo takes above it is the price of the rest, or room for better code.
//!
//! `scripts/bench --only limit` starts the servers. Each way prints a line of JSON:
//! - `limit crawl SEED PAGES REDIS_URL POSTGRES_URL [ARCHIVE_DIRECTORY]`: a crawl of the generated site on empty servers,
//! - `limit steps SITE_DIRECTORY`: single steps on one thread over its pages, beside those of a worker.

use anyhow::{Context as _, Result, bail};

mod archive;
mod commit;
mod crawl;
mod page;
mod steps;

/// As in a worker.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the kernel counts CPU time in, on every architecture (proc_pid_stat(5), `sysconf(_SC_CLK_TCK)`).
const TICKS_PER_S: f64 = 100.0;

fn main() -> Result<()> {
    // Cargo adds flags of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = match words[..] {
        ["crawl", seed, pages, redis, postgres, ref more @ ..] if more.len() <= 1 => crawl::run(crawl::Asked {
            seed,
            pages: pages.parse().context("the number of pages")?,
            redis,
            postgres,
            archive: more.first().copied(),
        })?,
        ["steps", site] => steps::measure(site.as_ref())?,
        _ => bail!("scripts/bench --only limit runs this, as `limit crawl ..` and `limit steps ..`"),
    };
    println!("{found}");
    Ok(())
}

/// CPU time of this process so far, threads that have ended included, seconds.
fn cpu_s() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The program's name, in brackets, may hold anything.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/self/stat")?;
    let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_PER_S)
}
